package hbone

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pattern is a stream of bytes that depend on their position, so that a lost, doubled or moved byte shows.
type pattern struct {
	rng  *rand.ChaCha8
	left int64
}

func newPattern(seed byte, n int64) *pattern {
	return &pattern{rng: rand.NewChaCha8([32]byte{seed}), left: n}
}

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.left))
	p.rng.Read(b[:n])
	p.left -= int64(n)
	return n, nil
}

// sum returns the hash of all bytes of r, and how many they are.
func sum(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%x", h.Sum(nil)), n, err
}

func patternSum(seed byte, n int64) string {
	s, _, _ := sum(newPattern(seed, n))
	return s
}

// transfer sends n bytes through an echo and compares what comes back.
func transfer(c *client, seed byte, n int64) error {
	errs := make(chan error, 1)
	go func() {
		_, err := io.Copy(struct{ io.Writer }{c}, newPattern(seed, n))
		if err == nil {
			err = c.CloseWrite()
		}
		errs <- err
	}()
	got, m, err := sum(c)
	if werr := <-errs; werr != nil {
		return fmt.Errorf("write: %w", werr)
	}
	if err != nil {
		return fmt.Errorf("read after %d bytes: %w", m, err)
	}
	if want := patternSum(seed, n); got != want {
		return fmt.Errorf("%d bytes came back with another hash, %d were sent", m, n)
	}
	return nil
}

func TestEveryByteArrivesOnManyStreams(t *testing.T) {
	w := newWorld(t, worldOptions{})
	var wg sync.WaitGroup
	for i := range 8 {
		c := w.dial()
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := transfer(c, byte(i), 2<<20); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
			if _, err := c.wait(t); err != nil {
				t.Errorf("stream %d: Splice: %v", i, err)
			}
		}()
	}
	wg.Wait()
}

func TestSmallWindowsCarryBigTransfers(t *testing.T) {
	small := Limits{StreamWindow: 4 << 10, MaxStreamWindow: 4 << 10, ConnWindow: 64 << 10, SendQueue: 16 << 10}
	w := newWorld(t, worldOptions{server: small, client: small})
	if err := transfer(w.dial(), 7, 1<<20); err != nil {
		t.Error(err)
	}
}

func TestServerSpeaksFirst(t *testing.T) {
	w := newWorld(t, worldOptions{app: func(c *net.TCPConn) {
		io.WriteString(c, "220 ready")
		c.CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
	}})
	s := w.open()
	until(t, "the greeting waits in the stream", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.heldN == 9 && s.gotEnd
	})
	c := w.attach(s)
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "220 ready" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestHalfCloseLeavesOtherDirectionOpen(t *testing.T) {
	t.Run("client first", func(t *testing.T) {
		w := newWorld(t, worldOptions{app: func(c *net.TCPConn) {
			defer c.Close()
			b, _ := io.ReadAll(c) // until the client's end
			c.Write(bytes.ToUpper(b))
		}})
		c := w.dial()
		io.WriteString(c, "question")
		c.CloseWrite()
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "QUESTION" {
			t.Errorf("read %q, %v", got, err)
		}
		if _, err := c.wait(t); err != nil {
			t.Errorf("Splice: %v", err)
		}
	})
	t.Run("server first", func(t *testing.T) {
		late := make(chan string, 1)
		w := newWorld(t, worldOptions{app: func(c *net.TCPConn) {
			defer c.Close()
			io.WriteString(c, "bye")
			c.CloseWrite()
			b, _ := io.ReadAll(c)
			late <- string(b)
		}})
		c := w.dial()
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "bye" {
			t.Fatalf("read %q, %v", got, err)
		}
		io.WriteString(c, "still here")
		c.CloseWrite()
		if got := <-late; got != "still here" {
			t.Errorf("the application read %q after its own end", got)
		}
		if _, err := c.wait(t); err != nil {
			t.Errorf("Splice: %v", err)
		}
	})
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func TestResetPassesBothWays(t *testing.T) {
	t.Run("client resets", func(t *testing.T) {
		seen := make(chan error, 1)
		w := newWorld(t, worldOptions{app: func(c *net.TCPConn) {
			defer c.Close()
			_, err := io.Copy(io.Discard, c)
			seen <- err
		}})
		c := w.dial()
		io.WriteString(c, "x")
		until(t, "the byte is there", func() bool { _, n := c.s.Bytes(); return n == 1 })
		c.SetLinger(0)
		c.Close()
		if err := <-seen; !isReset(err) {
			t.Errorf("the application's read ended with %v, want a reset", err)
		}
		_, err := c.wait(t)
		var se *StreamError
		if !errors.As(err, &se) || se.Code != CodeConnect || se.Remote {
			t.Errorf("Splice = %v, want a local CONNECT_ERROR", err)
		}
	})
	t.Run("server resets", func(t *testing.T) {
		w := newWorld(t, worldOptions{app: func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
			c.Close()
		}})
		c := w.dial()
		io.WriteString(c, "x")
		if _, err := io.Copy(io.Discard, c); !isReset(err) {
			t.Errorf("read ended with %v, want a reset", err)
		}
		_, err := c.wait(t)
		var se *StreamError
		if !errors.As(err, &se) || se.Code != CodeConnect || !se.Remote {
			t.Errorf("Splice = %v, want a remote CONNECT_ERROR", err)
		}
	})
	t.Run("caller resets", func(t *testing.T) {
		seen := make(chan error, 1)
		w := newWorld(t, worldOptions{app: func(c *net.TCPConn) {
			defer c.Close()
			_, err := io.Copy(io.Discard, c)
			seen <- err
		}})
		c := w.dial()
		c.s.Reset(CodeRefusedStream)
		if err := <-seen; !isReset(err) {
			t.Errorf("the application's read ended with %v, want a reset", err)
		}
		if _, err := io.Copy(io.Discard, c); !isReset(err) {
			t.Errorf("the client's read ended with %v, want a reset", err)
		}
	})
	t.Run("cancel reads as an end", func(t *testing.T) {
		seen := make(chan error, 1)
		w := newWorld(t, worldOptions{app: func(c *net.TCPConn) {
			defer c.Close()
			b, err := io.ReadAll(c)
			if string(b) != "x" {
				err = fmt.Errorf("read %q, %w", b, err)
			}
			seen <- err
		}})
		c := w.dial()
		io.WriteString(c, "x")
		until(t, "the byte is there", func() bool { _, n := c.s.Bytes(); return n == 1 })
		c.s.Reset(CodeCancel)
		if err := <-seen; err != nil {
			t.Errorf("the application's read ended with %v, want an end", err)
		}
	})
	t.Run("tunnel dies", func(t *testing.T) {
		w := newWorld(t, worldOptions{})
		c := w.dial()
		c.roundTrip(t, "x")
		c.s.c.tcp.SetLinger(0)
		c.s.c.tcp.Close()
		if _, err := io.Copy(io.Discard, c); !isReset(err) {
			t.Errorf("read ended with %v, want a reset", err)
		}
		if _, err := c.wait(t); !errors.Is(err, ErrTunnelClosed) {
			t.Errorf("Splice = %v, want ErrTunnelClosed", err)
		}
	})
}

// oneTunnel keeps all streams of a pool on one tunnel.
var oneTunnel = Limits{ConnsPerKey: 1}

// stall opens n streams whose server side never reads, and fills them.
func stall(t *testing.T, w *world, n int) []*client {
	t.Helper()
	var l []*client
	for range n {
		c := w.dial()
		io.WriteString(c, "stall")
		c.roundTripless(t)
		l = append(l, c)
	}
	return l
}

// roundTripless writes until nothing more is taken for a while.
func (c *client) roundTripless(t *testing.T) {
	t.Helper()
	buf := make([]byte, 256<<10)
	go func() {
		c.SetWriteDeadline(time.Time{})
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
}

// stallable echoes, unless the first bytes are "stall": then it never reads again.
func stallable(release <-chan struct{}) func(c *net.TCPConn) {
	return func(c *net.TCPConn) {
		defer c.Close()
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		if string(b) == "stall" {
			<-release
			c.SetLinger(0)
			return
		}
		c.Write(b)
		io.Copy(c, c)
	}
}

func TestStalledStreamsDoNotStallOthers(t *testing.T) {
	release := make(chan struct{})
	mem := NewMemory(0, 0)
	w := newWorld(t, worldOptions{app: stallable(release), smallSockets: true, server: Limits{Memory: mem}, client: oneTunnel})
	defer close(release)
	const n = 32
	stalled := stall(t, w, n)
	until(t, "the stalled streams have used up their windows", func() bool {
		c := stalled[0].s.c
		c.mu.Lock()
		defer c.mu.Unlock()
		dry := 0
		for _, s := range stalled {
			if s.s.sendWin <= 0 {
				dry++
			}
		}
		return dry == n
	})
	// What an application's socket buffer took while it filled grew no window: it was not read.
	if held := mem.Buffered(); held > n*defaultStreamWindow || held == 0 {
		t.Errorf("%d stalled streams hold %d bytes", n, held)
	} else {
		t.Logf("%d stalled streams hold %d KiB", n, held>>10)
	}
	live := w.dial()
	if live.s.c != stalled[0].s.c {
		t.Fatal("the live stream is on another tunnel")
	}
	if err := transfer(live, 1, 8<<20); err != nil {
		t.Errorf("live stream: %v", err)
	}
}

func TestMemoryOfStalledStreamsIsCapped(t *testing.T) {
	release := make(chan struct{})
	const memCap = 2 << 20
	mem := NewMemory(1, memCap)
	w := newWorld(t, worldOptions{app: stallable(release), smallSockets: true, server: Limits{Memory: mem}, client: oneTunnel})
	defer close(release)
	live := w.dial()
	live.roundTrip(t, "12345")
	stalled := stall(t, w, 32) // 32 windows are four times the cap
	reset := func() int {
		n := 0
		for _, c := range stalled {
			select {
			case <-c.s.Done():
				n++
			default:
			}
		}
		return n
	}
	peak := int64(0)
	until(t, "streams beyond the cap were reset and the others have stalled", func() bool {
		peak = max(peak, mem.Buffered())
		c := live.s.c
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range stalled {
			if c.streams[s.s.id] == s.s && s.s.sendWin > 0 {
				return false
			}
		}
		return true
	})
	// A batch is counted before the stream that brought it is reset.
	if peak > memCap+plainSize {
		t.Errorf("undelivered bytes reached %d, cap is %d", peak, memCap)
	}
	if n := reset(); n == 0 || n == len(stalled) {
		t.Errorf("%d of %d stalled streams were reset", n, len(stalled))
	} else {
		t.Logf("%d of %d stalled streams were reset, peak %d KiB", n, len(stalled), peak>>10)
	}
	live.roundTrip(t, "still alive")
}
