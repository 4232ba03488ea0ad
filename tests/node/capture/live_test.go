package capture

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/internal/linux"
)

// liveStreams is how many connections of each direction and family are held
// open through each change.
const liveStreams = 5

// openStreams opens streams in both directions and families.
func (f *fixture) openStreams(t *testing.T) []*stream {
	t.Helper()
	var all []*stream
	for range liveStreams {
		for _, v6 := range []bool{false, true} {
			all = append(all,
				mustConnect(t, f.pod.ns, f.outside.at(f.peer.addr(v6))),
				mustConnect(t, f.peer.ns, f.app.at(f.pod.addr(v6))))
		}
	}
	return all
}

func TestLiveStreamsSurvive(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newFixture(t, kind)
		var streams []*stream
		step := func(name string, change func(*testing.T), wantCaptured bool) {
			t.Helper()
			change(t)
			for i, s := range streams {
				if err := s.echo(); err != nil {
					t.Fatalf("%s: stream %d of %d: %v", name, i, len(streams), err)
				}
			}
			before := f.proxy.count()
			fresh := f.openStreams(t)
			want := 0
			if wantCaptured {
				want = len(fresh)
			}
			if got := f.proxy.count() - before; got != want {
				t.Errorf("%s: %d of %d new connections captured, want %d", name, got, len(fresh), want)
			}
			streams = append(streams, fresh...)
		}
		step("start", func(*testing.T) {}, false)
		step("enrolled", f.enroll, true)
		step("un-enrolled", f.unenroll, false)
		step("enrolled again", f.enroll, true)
		step("enrolled twice", f.enroll, true)
		step("un-enrolled again", f.unenroll, false)
		// The agent lets go of the listeners; what ztunnel holds goes on.
		step("listeners closed", func(*testing.T) { f.ls.Close(); f.proxy.stopListening() }, false)
		for i, s := range streams {
			if err := errors.Join(s.echo(), s.finish()); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		}
	})
}

// churn makes short connections in both directions and families until stopped,
// or until it made enough.
type churn struct {
	wg     sync.WaitGroup
	cancel context.CancelFunc
	done   atomic.Int64

	mu   sync.Mutex
	errs []error
}

// workers is how many connections there are at a time.
const workers = 16

func (f *fixture) churn(ctx context.Context, total int64) *churn {
	ctx, cancel := context.WithCancel(ctx)
	c := &churn{cancel: cancel}
	ways := []struct {
		from *linux.NetNS
		to   netip.AddrPort
	}{
		{f.pod.ns, f.outside.at(f.peer.v4)},
		{f.peer.ns, f.app.at(f.pod.v4)},
		{f.pod.ns, f.outside.at(f.peer.v6)},
		{f.peer.ns, f.app.at(f.pod.v6)},
	}
	var started atomic.Int64
	for range workers {
		c.wg.Go(func() {
			for ctx.Err() == nil {
				n := started.Add(1)
				if total > 0 && n > total {
					return
				}
				w := ways[n%int64(len(ways))]
				if err := once(w.from, w.to); err != nil {
					c.mu.Lock()
					c.errs = append(c.errs, err)
					c.mu.Unlock()
				}
				c.done.Add(1)
			}
		})
	}
	return c
}

// awaitMore waits until n more connections were made.
func (c *churn) awaitMore(t *testing.T, n int64) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	want := c.done.Load() + n
	for deadline := time.Now().Add(patience); c.done.Load() < want; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections made, %d wanted", c.done.Load(), want)
		}
	}
}

func (c *churn) finish(t *testing.T) {
	t.Helper()
	c.cancel()
	c.wg.Wait()
	if len(c.errs) > 0 {
		t.Errorf("%d of %d connections failed, the first: %v", len(c.errs), c.done.Load(), c.errs[0])
	}
}

func TestTenThousandConnections(t *testing.T) {
	const total = 10_000
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		start := time.Now()
		c := f.churn(t.Context(), total)
		c.wg.Wait()
		c.finish(t)
		t.Logf("%d connections in %v", c.done.Load(), time.Since(start))
		if got := f.proxy.count(); got != total {
			t.Errorf("%d connections captured, want %d", got, total)
		}
	})
}

func TestChurnThroughChanges(t *testing.T) {
	const between, rounds = 200, 5 // connections made before each change; changes
	eachKind(t, func(t *testing.T, kind string) {
		f := newFixture(t, kind)
		c := f.churn(t.Context(), 0)
		c.awaitMore(t, between)
		for range rounds {
			f.enroll(t)
			c.awaitMore(t, between)
			f.unenroll(t)
			c.awaitMore(t, between)
		}
		c.finish(t)
		if f.proxy.count() == 0 || int64(f.proxy.count()) == c.done.Load() {
			t.Errorf("%d of %d connections captured", f.proxy.count(), c.done.Load())
		}
	})
}

func TestAgentRestart(t *testing.T) {
	const between, restarts = 200, 3
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		streams := f.openStreams(t)
		c := f.churn(t.Context(), 0)
		for range restarts {
			c.awaitMore(t, between)
			// The proxy keeps duplicates meanwhile; all that the agent had goes.
			held := []*os.File{dup(t, f.ls.Outbound), dup(t, f.ls.InboundPlaintext), dup(t, f.ls.InboundHBONE)}
			if err := errors.Join(f.r.Close(), f.ls.Close()); err != nil {
				t.Fatal(err)
			}
			c.awaitMore(t, between)

			f.r = f.probe(t)
			if got, err := f.r.Enrolled(t.Context()); err != nil || !slices.Equal(got, []string{podUID}) {
				t.Fatalf("the new agent finds %v, %v", got, err)
			}
			if err := f.r.Check(t.Context(), f.self); err != nil {
				t.Errorf("before the new agent did anything: %v", err)
			}
			got := pass(t, held)
			f.ls = redirect.Listeners{Outbound: got[0], InboundPlaintext: got[1], InboundHBONE: got[2]}
			f.enroll(t)
		}
		c.awaitMore(t, between)
		c.finish(t)
		if got, want := int64(f.proxy.count()), c.done.Load()+int64(len(streams)); got != want {
			t.Errorf("%d connections captured, want all %d", got, want)
		}
		for i, s := range streams {
			if err := errors.Join(s.echo(), s.finish()); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		}
	})
}

// pass sends files through a socket, as ztunnel gives an agent its sockets
// back, and closes the originals.
func pass(t *testing.T, files []*os.File) []*os.File {
	t.Helper()
	a, b := socketPair(t)
	if err := linux.SendMsg(a, []byte("held"), files); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	_, got, err := linux.RecvMsg(b, 64, len(files))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}
