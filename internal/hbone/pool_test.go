package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

func TestTunnelsAreReused(t *testing.T) {
	w := newWorld(t, worldOptions{})
	for range 20 {
		c := w.dial()
		c.roundTrip(t, "x")
		c.CloseWrite()
		io.Copy(io.Discard, c)
		c.wait(t)
	}
	if n := w.tunnelCount(); n != 1 {
		t.Errorf("%d tunnels for streams one after the other, want 1", n)
	}
	if s := w.pool.Stats(); len(s) != 1 || s[0].Opened != 20 || s[0].Peer[0] != serverID {
		t.Errorf("Stats = %+v", s)
	}
}

func TestUniqueKeysNeverShareATunnel(t *testing.T) {
	w := newWorld(t, worldOptions{})
	base := w.target
	local := netip.MustParseAddr("127.0.0.2")
	other := Target{Source: base.Source, Dest: []string{serverID, "spiffe://cluster.local/ns/b/sa/other"}, Addr: base.Addr}
	sorted := other
	sorted.Dest = []string{other.Dest[1], other.Dest[0]}
	targets := []Target{
		base,
		{Source: base.Source + "2", Dest: base.Dest, Addr: base.Addr},
		{Source: base.Source, Dest: base.Dest, Addr: base.Addr, Local: local},
		other,
	}
	seen := map[*conn]int{}
	open := func(tg Target) *conn {
		w.target = tg
		return w.dial().s.c
	}
	for i, tg := range targets {
		c := open(tg)
		if j, ok := seen[c]; ok {
			t.Errorf("targets %d and %d share a tunnel", i, j)
		}
		seen[c] = i
	}
	if c := open(sorted); seen[c] != 3 {
		t.Error("the order of Dest makes another tunnel")
	}
	w.target = base
}

func TestFullTunnelSpillsToANewOne(t *testing.T) {
	w := newWorld(t, worldOptions{client: Limits{MaxStreams: 2}})
	for i := range 5 {
		w.dial().roundTrip(t, "x")
		if want := i/2 + 1; w.tunnelCount() != want {
			t.Errorf("%d streams use %d tunnels, want %d", i+1, w.tunnelCount(), want)
		}
	}
}

func TestPeersStreamLimitIsKept(t *testing.T) {
	w := newWorld(t, worldOptions{server: Limits{MaxStreams: 3}})
	for range 7 {
		w.dial().roundTrip(t, "x")
	}
	if n := w.tunnelCount(); n != 3 {
		t.Errorf("7 streams use %d tunnels of 3 streams", n)
	}
}

// openMany opens n streams at once and reports how many failed.
func openMany(w *world, n int) (failed int, first error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	start := make(chan struct{})
	for range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			<-start
			ctx, cancel := w.ctxTimeout()
			defer cancel()
			_, err := w.pool.Open(ctx, w.target, "10.0.0.1:80", nil)
			if err != nil {
				mu.Lock()
				failed++
				first = err
				mu.Unlock()
			}
		}()
	}
	close(start)
	wg.Wait()
	return failed, first
}

// hold accepts every CONNECT and keeps the stream until it ends.
func hold(ctx context.Context, r *Request) {
	s, err := r.Accept(nil)
	if err != nil {
		return
	}
	<-s.Done()
}

func TestConcurrentFirstRequestsShareOneHandshake(t *testing.T) {
	w := newWorld(t, worldOptions{handle: hold})
	if failed, err := openMany(w, 100); failed > 0 {
		t.Fatalf("%d failed: %v", failed, err)
	}
	if n := w.tunnelCount(); n != 1 {
		t.Errorf("100 concurrent first requests made %d tunnels, want 1", n)
	}
}

func TestThousandConcurrentFirstConnectsMakeTenTunnels(t *testing.T) {
	w := newWorld(t, worldOptions{handle: hold})
	if failed, err := openMany(w, 1000); failed > 0 {
		t.Fatalf("%d failed: %v", failed, err)
	}
	if n := w.tunnelCount(); n > 10 {
		t.Errorf("1000 concurrent first requests made %d tunnels, want at most 10", n)
	}
}

func TestUnknownPeerLimitIsLearnt(t *testing.T) {
	w := newWorld(t, worldOptions{handle: hold, server: Limits{MaxStreams: 10}})
	if failed, err := openMany(w, 100); failed > 0 {
		t.Fatalf("%d failed: %v", failed, err)
	}
	// The first tunnel is dialled for 100, and the peer's limit becomes known while the others wait.
	if n := w.tunnelCount(); n < 10 || n > 12 {
		t.Errorf("100 streams on tunnels of 10 made %d tunnels", n)
	}
}

func TestGoAwayReplacesTheTunnel(t *testing.T) {
	w := newWorld(t, worldOptions{})
	old := w.dial()
	old.roundTrip(t, "before")
	for _, c := range w.server.list() {
		c.drain()
	}
	until(t, "the client knows", func() bool { return w.pool.Stats()[0].Draining })
	fresh := w.dial()
	if fresh.s.c == old.s.c {
		t.Error("a stream was opened on a tunnel that goes away")
	}
	fresh.roundTrip(t, "new")
	old.roundTrip(t, "old still lives")
	old.CloseWrite()
	io.Copy(io.Discard, old)
	old.wait(t)
	until(t, "the old tunnel ends with its last stream", func() bool { return len(w.pool.Stats()) == 1 })
	fresh.roundTrip(t, "new still lives")
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, err := range w.ended {
		if err != nil {
			t.Errorf("drained tunnel ended with %v", err)
		}
	}
}

// TestATunnelEndsAfterSlowApplications: a peer that drains closes the tunnel when it has sent everything; what waits for a
// slow application here is delivered all the same.
func TestATunnelEndsAfterSlowApplications(t *testing.T) {
	const size = 200 << 10 // within a stream's first window
	w := newWorld(t, worldOptions{app: func(c *net.TCPConn) {
		c.Write(make([]byte, size))
		c.Close()
	}})
	s := w.open()
	near, far := tcpPair(t)
	near.SetReadBuffer(4 << 10)
	far.SetWriteBuffer(4 << 10)
	spliced := make(chan error, 1)
	go func() { _, err := s.Splice(far); spliced <- err }()
	near.CloseWrite()
	until(t, "the peer has closed the tunnel", func() bool {
		for _, c := range w.server.list() {
			c.drain()
		}
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		return s.c.peerDone || s.c.err != nil
	})
	near.SetDeadline(time.Now().Add(testDeadline))
	if n, err := io.Copy(io.Discard, near); n != size || err != nil {
		t.Errorf("read %d bytes, %v; want %d", n, err, size)
	}
	if err := <-spliced; err != nil {
		t.Errorf("Splice: %v", err)
	}
	until(t, "the tunnel is gone", func() bool { return len(w.pool.Stats()) == 0 })
}

func TestDrainUnderLoadLosesNothing(t *testing.T) {
	w := newWorld(t, worldOptions{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := w.ctxTimeout()
				s, err := w.pool.Open(ctx, w.target, "10.0.0.1:80", nil)
				cancel()
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				near, far := tcpPair(t)
				done := make(chan error, 1)
				go func() { _, err := s.Splice(far); done <- err }()
				near.SetDeadline(time.Now().Add(testDeadline))
				io.WriteString(near, "ping")
				near.CloseWrite()
				if b, err := io.ReadAll(near); err != nil || string(b) != "ping" {
					t.Errorf("read %q, %v", b, err)
				}
				near.Close()
				if err := <-done; err != nil {
					t.Errorf("Splice: %v", err)
				}
			}
		}()
	}
	for range 10 {
		n := w.tunnelCount()
		until(t, "another tunnel is in use", func() bool {
			for _, c := range w.server.list() {
				c.drain()
			}
			return w.tunnelCount() > n
		})
	}
	close(stop)
	wg.Wait()
}

func TestIdleTunnelsAreEvictedAndLiveOnesAreNot(t *testing.T) {
	w := newWorld(t, worldOptions{client: Limits{IdleTimeout: 50 * time.Millisecond}})
	c := w.dial()
	c.roundTrip(t, "x")
	live := time.NewTimer(200 * time.Millisecond)
	<-live.C // four times the idle time
	c.roundTrip(t, "live")
	if n := len(w.pool.Stats()); n != 1 {
		t.Fatalf("%d tunnels with a live stream", n)
	}
	c.CloseWrite()
	io.Copy(io.Discard, c)
	c.wait(t)
	until(t, "the idle tunnel is gone", func() bool { return len(w.pool.Stats()) == 0 })
	until(t, "the server saw it end", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.ended) == 1 })
	if w.ended[0] != nil {
		t.Errorf("evicted tunnel ended with %v", w.ended[0])
	}
	if len(w.pool.groups) != 0 {
		t.Error("a group without tunnels is kept")
	}
	w.dial().roundTrip(t, "new")
}

func TestBusyTunnelGetsACompanion(t *testing.T) {
	w := newWorld(t, worldOptions{client: Limits{BusyConns: 2}})
	first := w.dial()
	pc := w.pool.groups[w.target.key()].conns[0]
	pc.c.rxRun.Store(busyRun) // as after a long run without an empty socket
	second := w.dial()
	if first.s.c != second.s.c {
		t.Error("the caller waited for another tunnel")
	}
	until(t, "another tunnel is there", func() bool { return len(w.pool.Stats()) == 2 })
	pc.c.rxRun.Store(busyRun)
	if third := w.dial(); third.s.c == first.s.c {
		t.Error("the busy tunnel was chosen though another one is there")
	}
	pc.c.rxRun.Store(busyRun)
	w.dial()
	if n := len(w.pool.Stats()); n > 2 {
		t.Errorf("%d tunnels, BusyConns is 2", n)
	}
}

func TestLimitsOfTunnelsHold(t *testing.T) {
	t.Run("per key", func(t *testing.T) {
		w := newWorld(t, worldOptions{client: Limits{MaxStreams: 1, ConnsPerKey: 2}})
		a := w.dial()
		w.dial()
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if _, err := w.pool.Open(ctx, w.target, "x:1", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("third stream: %v, want a wait", err)
		}
		got := make(chan error, 1)
		go func() {
			ctx, cancel := w.ctxTimeout()
			defer cancel()
			_, err := w.pool.Open(ctx, w.target, "10.0.0.1:80", nil)
			got <- err
		}()
		until(t, "somebody waits", func() bool {
			w.pool.mu.Lock()
			defer w.pool.mu.Unlock()
			return len(w.pool.groups[w.target.key()].waiters) == 1
		})
		a.Close()
		if err := <-got; err != nil {
			t.Errorf("a waiting caller did not get the free place: %v", err)
		}
	})
	t.Run("overall", func(t *testing.T) {
		w := newWorld(t, worldOptions{client: Limits{MaxConns: 1}})
		a := w.dial()
		tg := w.target
		tg.Source += "2"
		ctx, cancel := w.ctxTimeout()
		defer cancel()
		if _, err := w.pool.Open(ctx, tg, "10.0.0.1:80", nil); !errors.Is(err, ErrPoolFull) {
			t.Errorf("second key: %v, want ErrPoolFull", err)
		}
		a.CloseWrite()
		io.Copy(io.Discard, a)
		a.wait(t)
		// The idle tunnel makes room.
		if _, err := w.pool.Open(ctx, tg, "10.0.0.1:80", nil); err != nil {
			t.Errorf("second key after the first fell idle: %v", err)
		}
	})
}

func TestDialErrorReachesEveryWaiter(t *testing.T) {
	dialled := make(chan struct{})
	fail := make(chan struct{})
	boom := errors.New("boom")
	var once sync.Once
	p := NewPool(PoolConfig{Dial: func(context.Context, Target) (*net.TCPConn, error) {
		once.Do(func() { close(dialled) })
		<-fail
		return nil, boom
	}})
	defer p.Close()
	errs := make(chan error, 5)
	for range 5 {
		go func() {
			_, err := p.Open(context.Background(), Target{Addr: mustAddr("127.0.0.1:1")}, "x:1", nil)
			errs <- err
		}()
	}
	<-dialled
	until(t, "all wait", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, g := range p.groups {
			return len(g.waiters) == 5
		}
		return false
	})
	close(fail)
	for range 5 {
		if err := <-errs; !errors.Is(err, boom) {
			t.Errorf("Open = %v", err)
		}
	}
	if n := p.total; n != 0 {
		t.Errorf("%d tunnels counted after none was made", n)
	}
}

func TestClosedPoolTakesNoWork(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c := w.dial()
	w.pool.Drain()
	if _, err := w.pool.Open(context.Background(), w.target, "x:1", nil); !errors.Is(err, ErrPoolClosed) {
		t.Errorf("Open after Drain = %v", err)
	}
	c.roundTrip(t, "drain leaves streams alone")
	w.pool.Close()
	if _, err := io.Copy(io.Discard, c); !isReset(err) {
		t.Errorf("read after Close ended with %v, want a reset", err)
	}
	if s := w.pool.Stats(); len(s) != 0 {
		t.Errorf("Stats after Close = %v", s)
	}
}

func TestPoolDrainEndsTunnelsWithTheirLastStream(t *testing.T) {
	w := newWorld(t, worldOptions{})
	c := w.dial()
	c.roundTrip(t, "x")
	w.pool.Drain()
	c.CloseWrite()
	io.Copy(io.Discard, c)
	c.wait(t)
	until(t, "the tunnel ends", func() bool { return len(w.pool.Stats()) == 0 })
}

func TestWrongIdentityIsRefused(t *testing.T) {
	w := newWorld(t, worldOptions{})
	cfg := w.ca.clientTLS(t, "spiffe://cluster.local/ns/b/sa/somebody-else")
	p := NewPool(PoolConfig{Dial: dialTarget, TLS: fixedTLS(cfg)})
	defer p.Close()
	ctx, cancel := w.ctxTimeout()
	defer cancel()
	if _, err := p.Open(ctx, w.target, "x:1", nil); err == nil {
		t.Error("opened a stream to a peer with another identity")
	}
}

func TestCallersContextEndsOpenOnly(t *testing.T) {
	entered := make(chan struct{}, 1)
	gone := make(chan struct{})
	w := newWorld(t, worldOptions{handle: func(ctx context.Context, r *Request) {
		if r.Authority != "slow:1" {
			hold(ctx, r)
			return
		}
		entered <- struct{}{}
		<-ctx.Done() // the peer's reset ends it
		close(gone)
		if _, err := r.Accept(nil); err == nil {
			t.Error("Accept of a stream that was reset")
		}
	}})
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan error, 1)
	go func() {
		_, err := w.pool.Open(ctx, w.target, "slow:1", nil)
		got <- err
	}()
	<-entered
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("Open = %v", err)
	}
	<-gone

	ctx, cancel = context.WithCancel(context.Background())
	s, err := w.pool.Open(ctx, w.target, "fast:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	ctx2, cancel2 := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel2()
	select {
	case <-s.Done():
		t.Errorf("the stream ended with its opener's context: %v", s.Err())
	case <-ctx2.Done():
	}
}

func fixedTLS(cfg *tls.Config) func(context.Context, Target) (*tls.Config, error) {
	return func(context.Context, Target) (*tls.Config, error) { return cfg, nil }
}

func ExampleStatusError() {
	fmt.Println(&StatusError{Status: 401})
	// Output: hbone: peer answered 401
}

func TestStuckTunnelGetsNoNewStreams(t *testing.T) {
	w := newWorld(t, worldOptions{client: Limits{ConnsPerKey: 2}})
	first := w.dial()
	// A peer that returns connection credit only when its applications read, and they do not.
	stick := func(c *conn) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.sendWin, c.dryAt = 0, time.Now().Add(-stuckAfter)
	}
	stick(first.s.c)
	second := w.dial()
	if second.s.c == first.s.c {
		t.Error("a stream was opened on a stuck tunnel")
	}
	stick(second.s.c)
	w.dial() // no more tunnels than ConnsPerKey: a stuck one is better than none
	if n := w.tunnelCount(); n != 2 {
		t.Errorf("%d tunnels, ConnsPerKey is 2", n)
	}
}
