package hbone

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"testing"
)

// loads are the streams on each tunnel, the fullest first.
func loads(p *Pool) []int {
	var l []int
	for _, i := range p.Stats() {
		l = append(l, i.Streams)
	}
	slices.Sort(l)
	slices.Reverse(l)
	return l
}

// waiting is how many callers wait for a tunnel.
func waiting(w *world) int {
	w.pool.mu.Lock()
	defer w.pool.mu.Unlock()
	n := 0
	for _, g := range w.pool.groups {
		n += len(g.waiters)
	}
	return n
}

// A burst of first connections must not all land on the tunnel that is up first.
func TestSpreadFirstStreamsFillSeveralTunnels(t *testing.T) {
	w := newWorld(t, worldOptions{handle: hold})
	waitForAll := make(chan struct{})
	w.pool.cfg.Dial = func(ctx context.Context, tg Target) (*net.TCPConn, error) {
		<-waitForAll
		return dialTarget(ctx, tg)
	}
	w.target.Spread = 4
	done := make(chan error, 1)
	go func() {
		_, err := openMany(w, 16)
		done <- err
	}()
	until(t, "16 callers wait", func() bool { return waiting(w) == 16 })
	close(waitForAll)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, want := loads(w.pool), []int{4, 4, 4, 4}; !slices.Equal(got, want) {
		t.Errorf("16 first streams are on tunnels as %v, want %v", got, want)
	}
	// There are no more than BusyConns of them, and further streams go where there are least.
	if failed, err := openMany(w, 20); failed > 0 {
		t.Fatalf("%d failed: %v", failed, err)
	}
	if got, want := loads(w.pool), []int{9, 9, 9, 9}; !slices.Equal(got, want) {
		t.Errorf("36 streams are on tunnels as %v, want %v", got, want)
	}
}

func TestSpreadFewStreamsUseOneTunnel(t *testing.T) {
	w := newWorld(t, worldOptions{handle: hold})
	w.target.Spread = 4
	for range 4 {
		w.open()
	}
	if got, want := loads(w.pool), []int{4}; !slices.Equal(got, want) {
		t.Errorf("4 streams are on tunnels as %v, want %v", got, want)
	}
	// The fifth does not wait for the tunnel that it has dialled.
	w.open()
	until(t, "a second tunnel", func() bool { return len(loads(w.pool)) == 2 })
	for range 3 {
		w.open()
	}
	if got, want := loads(w.pool), []int{5, 3}; !slices.Equal(got, want) {
		t.Errorf("8 streams are on tunnels as %v, want %v", got, want)
	}
}

// A peer that takes one tunnel only gets all streams on that one.
func TestSpreadWithoutAnotherTunnelUsesTheFirst(t *testing.T) {
	w := newWorld(t, worldOptions{handle: hold})
	var dials atomic.Int32
	w.pool.cfg.Dial = func(ctx context.Context, tg Target) (*net.TCPConn, error) {
		if dials.Add(1) > 1 {
			return nil, errors.New("refused")
		}
		return dialTarget(ctx, tg)
	}
	w.target.Spread = 4
	w.open()
	if failed, err := openMany(w, 20); failed > 0 {
		t.Fatalf("%d failed: %v", failed, err)
	}
	if got, want := loads(w.pool), []int{21}; !slices.Equal(got, want) {
		t.Errorf("21 streams are on tunnels as %v, want %v", got, want)
	}
}

// Of several first dials some fail: nobody fails with them who can go through another tunnel.
func TestSpreadFailedDialFailsNobody(t *testing.T) {
	w := newWorld(t, worldOptions{handle: hold})
	up, first := make(chan struct{}), make(chan struct{})
	var dials atomic.Int32
	w.pool.cfg.Dial = func(ctx context.Context, tg Target) (*net.TCPConn, error) {
		if dials.Add(1) == 1 {
			<-up
			return dialTarget(ctx, tg)
		}
		select {
		case <-first:
			return nil, errors.New("refused")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	w.target.Spread = 4
	done := make(chan error, 1)
	go func() {
		_, err := openMany(w, 16)
		done <- err
	}()
	until(t, "16 callers wait", func() bool { return waiting(w) == 16 })
	close(up)
	until(t, "the first tunnel has its share", func() bool { return slices.Equal(loads(w.pool), []int{4}) })
	close(first)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, want := loads(w.pool), []int{16}; !slices.Equal(got, want) {
		t.Errorf("16 streams are on tunnels as %v, want %v", got, want)
	}
}

// Without a limit of its own, a target's streams share a tunnel as before.
func TestSpreadIsPartOfTheKey(t *testing.T) {
	w := newWorld(t, worldOptions{handle: hold})
	w.open()
	w.target.Spread = 4
	w.open()
	if n := len(loads(w.pool)); n != 2 {
		t.Errorf("%d tunnels, want one with and one without", n)
	}
}
