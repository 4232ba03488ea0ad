package hbone

import (
	"context"
	"io"
	"math/rand/v2"

	"sync"
	"testing"
	"time"
)

// TestFrozenTunnelsResumeWithoutLosingAByte freezes and resumes both ends of tunnels again and again while streams move
// bytes, open, half-close and end.
func TestFrozenTunnelsResumeWithoutLosingAByte(t *testing.T) {
	// Small windows and queues, so that freezes meet waiting pumps, drainers and cut writes.
	lim := Limits{StreamWindow: 32 << 10, MaxStreamWindow: 64 << 10, ConnWindow: 128 << 10, SendQueue: 64 << 10, ConnsPerKey: 1}
	w := newWorld(t, worldOptions{server: lim, client: lim, smallSockets: true})
	stop := make(chan struct{})
	var movers, traffic sync.WaitGroup
	for i := range 4 {
		traffic.Add(1)
		go func() {
			defer traffic.Done()
			for round := 0; ; round++ {
				select {
				case <-stop:
					return
				default:
				}
				seed := byte(i*16 + round%16)
				if err := w.transferOnce(seed, 300<<10); err != nil {
					t.Errorf("mover %d: %v", i, err)
					return
				}
			}
		}()
	}
	until(t, "the tunnel is there", func() bool { return len(w.server.list()) == 1 && len(w.pool.Stats()) == 1 })
	client := w.pool.groups[w.target.key()].conns[0].c
	server := w.server.list()[0]
	frozen := 0
	var mu sync.Mutex
	for _, c := range []*conn{client, server} {
		movers.Add(1)
		go func() {
			defer movers.Done()
			rng := rand.New(rand.NewPCG(1, 2))
			for range 60 {
				pause := time.NewTimer(time.Duration(rng.IntN(8000)) * time.Microsecond)
				<-pause.C
				if !c.freeze() {
					t.Error("a live tunnel did not freeze")
					return
				}
				checkFrozen(t, c)
				c.resume()
				mu.Lock()
				frozen++
				mu.Unlock()
			}
		}()
	}
	movers.Wait()
	close(stop)
	traffic.Wait()
	if n := w.tunnelCount(); n != 1 {
		t.Errorf("%d tunnels, want the one that was frozen %d times", n, frozen)
	}
}

// checkFrozen fails the test if a frozen tunnel still runs.
func checkFrozen(t *testing.T, c *conn) {
	t.Helper()
	c.mu.Lock()
	streams, writing := c.streamList(), c.writing
	c.mu.Unlock()
	if writing {
		t.Error("somebody writes for a frozen tunnel")
	}
	for _, s := range streams {
		s.mu.Lock()
		if s.pumping || s.draining {
			t.Errorf("stream %d of a frozen tunnel: pumping %v, draining %v", s.id, s.pumping, s.draining)
		}
		s.mu.Unlock()
	}
}

// transferOnce opens a stream, sends n bytes through the echo and compares.
func (w *world) transferOnce(seed byte, n int64) error {
	ctx, cancel := w.ctxTimeout()
	defer cancel()
	s, err := w.pool.Open(ctx, w.target, "10.0.0.1:80", nil)
	if err != nil {
		return err
	}
	near, far := tcpPair(w.t)
	defer near.Close()
	near.SetDeadline(time.Now().Add(testDeadline))
	c := &client{TCPConn: near, s: s, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.result, c.err = s.Splice(far)
	}()
	if err := transfer(c, seed, n); err != nil {
		return err
	}
	<-c.done
	return c.err
}

func TestFrozenTunnelHoldsNewWorkAtTheGate(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c := w.dial()
	c.roundTrip(t, "x")
	tunnel := c.s.c
	if !tunnel.freeze() {
		t.Fatal("the tunnel did not freeze")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	entered := make(chan error, 1)
	go func() {
		ctx, cancel := w.ctxTimeout()
		defer cancel()
		_, err := w.pool.Open(ctx, w.target, "10.0.0.1:80", nil)
		entered <- err
	}()
	io.WriteString(c, "waits in the socket")
	select {
	case err := <-entered:
		t.Fatalf("a stream was opened on a frozen tunnel: %v", err)
	case <-ctx.Done():
	}
	tunnel.resume()
	if err := <-entered; err != nil {
		t.Errorf("Open after resume: %v", err)
	}
	got := make([]byte, len("waits in the socket"))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Errorf("read after resume: %v", err)
	}
}

func TestClosingAFrozenTunnelEndsIt(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c := w.dial()
	c.roundTrip(t, "x")
	if !c.s.c.freeze() {
		t.Fatal("the tunnel did not freeze")
	}
	w.pool.Close()
	if _, err := io.Copy(io.Discard, c); !isReset(err) {
		t.Errorf("read ended with %v, want a reset", err)
	}
	c.s.c.resume() // comes too late and does nothing
	if _, err := c.wait(t); err == nil {
		t.Error("Splice ended without an error")
	}
}

// TestSilentPeerIsDead: a peer that takes bytes but never answers.
func TestSilentPeerIsDead(t *testing.T) {
	w := newWorld(t, worldOptions{client: Limits{PingInterval: 20 * time.Millisecond, PingTimeout: 100 * time.Millisecond}})
	c := w.dial()
	c.roundTrip(t, "x")
	server := w.server.list()[0]
	alive := time.NewTimer(300 * time.Millisecond)
	<-alive.C // several PINGs that were answered
	c.roundTrip(t, "alive")
	if !server.freeze() {
		t.Fatal("the server's end did not freeze")
	}
	if _, err := io.Copy(io.Discard, c); !isReset(err) {
		t.Errorf("read ended with %v, want a reset", err)
	}
	if _, err := c.wait(t); err != errDead {
		t.Errorf("Splice = %v, want %v", err, errDead)
	}
	server.resume()
}
