package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
)

// shortly bounds an attempt that may hang because nobody answers.
func shortly() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), atOnce)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// stream is a long-lived connection that talks now and then.
type stream struct {
	c    *net.TCPConn
	name string
}

func (s stream) talk() error {
	if err := s.c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(s.c, s.name); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	b := make([]byte, len(s.name))
	if _, err := io.ReadFull(s.c, b); err != nil || string(b) != s.name {
		return fmt.Errorf("%s: got %q, %w", s.name, b, err)
	}
	return nil
}

// churn opens connections one after another on several goroutines until stopped, and counts failures.
type churn struct {
	stop  context.CancelFunc
	wg    sync.WaitGroup
	total atomic.Int64

	mu     sync.Mutex
	failed []error
}

func startChurn(workers int, from []*pod, to netip.AddrPort) *churn {
	ctx, cancel := context.WithCancel(context.Background())
	k := &churn{stop: cancel}
	for i := range workers {
		k.wg.Go(func() {
			for ctx.Err() == nil {
				if err := once(from[i%len(from)], to); err != nil {
					k.mu.Lock()
					k.failed = append(k.failed, err)
					k.mu.Unlock()
				}
				k.total.Add(1)
			}
		})
	}
	return k
}

func once(p *pod, to netip.AddrPort) error {
	c, err := p.dial(to)
	if err != nil {
		return err
	}
	defer c.Close()
	return stream{c, "ping"}.talk()
}

// end stops the load and reports what failed.
func (k *churn) end(t *testing.T) {
	t.Helper()
	k.stop()
	k.wg.Wait()
	if len(k.failed) > 0 {
		t.Errorf("%d of %d connections failed, first: %v", len(k.failed), k.total.Load(), k.failed[0])
	}
	if k.total.Load() < 20 {
		t.Errorf("only %d connections", k.total.Load())
	}
	t.Logf("%d connections", k.total.Load())
}

func TestReplacingTheProxyRefusesNobody(t *testing.T) {
	eachKind(t, func(t *testing.T, m *mesh) {
		m.start()
		a, a2, b, c := m.pods["a"], m.pods["a2"], m.pods["b"], m.pods["c"]
		b.serveEcho(appPort)
		for i, n := range []*node{m.nodes[0], m.nodes[1]} {
			load := startChurn(4, []*pod{a, a2, c}, addr(b, appPort))
			live := []stream{{a.mustDial(addr(b, appPort)), "tunnel"}, {c.mustDial(addr(b, appPort)), "plaintext"}}
			for _, s := range live {
				if err := s.talk(); err != nil {
					t.Fatal(err)
				}
			}
			old := n.proxy
			n.proxy = n.startProxy()
			n.proxy.waitReady()
			old.terminate()
			began := load.total.Load()
			eventually(t, "connections are served while the old proxy drains", func() bool { return load.total.Load() > began+100 })
			select {
			case <-old.done:
				t.Error("the old proxy ended although it holds live connections")
			default:
			}
			for _, s := range live {
				if err := s.talk(); err != nil {
					t.Errorf("replace %d: a live stream broke: %v", i, err)
				}
				s.c.Close()
			}
			select {
			case <-old.done:
			case <-time.After(atOnce * 2):
				t.Error("the old proxy goes on although all its connections have ended")
			}
			load.end(t)
		}
	})
}

func TestADrainCutsWhatOutlivesTheGracePeriod(t *testing.T) {
	m := newMesh(t).start()
	a, b := m.pods["a"], m.pods["b"]
	b.serveEcho(appPort)
	s := stream{a.mustDial(addr(b, appPort)), "stays"}
	if err := s.talk(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	m.nodes[0].proxy.terminate()
	<-m.nodes[0].proxy.done
	if d := time.Since(began); d < 9*time.Second || d > 13*time.Second {
		t.Errorf("drain took %v, want 10s (15s of grace less 5)", d)
	}
	if err := wasReset(s.c); err != nil {
		t.Error(err)
	}
}

func TestAKilledProxyRefusesNobodyOnceReplaced(t *testing.T) {
	m := newMesh(t).start()
	a, b := m.pods["a"], m.pods["b"]
	b.serveEcho(appPort)
	m.nodes[0].proxy.kill()
	// The agent holds the listener: this connection waits for the next proxy.
	c := a.mustDial(addr(b, appPort))
	m.nodes[0].proxy = m.nodes[0].startProxy()
	if err := (stream{c, "waited"}).talk(); err != nil {
		t.Error(err)
	}
}

func TestARestartedAgentGetsListenersBackAndNothingBreaks(t *testing.T) {
	m := newMesh(t).start()
	a, b := m.pods["a"], m.pods["b"]
	b.serveEcho(appPort)
	load := startChurn(2, []*pod{a}, addr(b, appPort))
	s := stream{a.mustDial(addr(b, appPort)), "lives"}
	for _, n := range m.nodes {
		n.agent.restart()
		n := n
		eventually(t, "the proxy connects to the next agent and gives back", func() bool {
			n.agent.mu.Lock()
			defer n.agent.mu.Unlock()
			for uid, p := range n.agent.pods {
				if n.agent.held[uid] != 1 || p.lent.Outbound == nil {
					return false
				}
			}
			return len(n.agent.conns) == 1
		})
	}
	if err := s.talk(); err != nil {
		t.Error(err)
	}
	load.end(t)
	// What was given back is the very socket: with the proxy dead, it still collects connections.
	m.nodes[0].proxy.kill()
	c := a.mustDial(addr(b, appPort))
	m.nodes[0].proxy = m.nodes[0].startProxy()
	if err := (stream{c, "waited"}).talk(); err != nil {
		t.Error(err)
	}
}

func TestLeavingTheMeshKeepsLiveConnections(t *testing.T) {
	eachKind(t, func(t *testing.T, m *mesh) {
		m.start()
		a, b, c := m.pods["a"], m.pods["b"], m.pods["c"]
		b.serveEcho(appPort)
		c.serveEcho(appPort)
		live := []stream{
			{a.mustDial(addr(b, appPort)), "tunnel"}, {a.mustDial(addr(c, appPort)), "outbound"}, {c.mustDial(addr(b, appPort)), "inbound"},
		}
		for _, s := range live {
			if err := s.talk(); err != nil {
				t.Fatal(err)
			}
		}
		m.nodes[0].agent.unenrol(a)
		m.nodes[1].agent.unenrol(b)
		// The others still believe that b is in the mesh: its tunnel port answers for a while.
		if err := once(m.pods["a2"], addr(b, appPort)); err != nil {
			t.Errorf("a caller with old state: %v", err)
		}
		a.plain, b.plain = true, true
		m.writeState()
		for _, s := range live {
			if err := s.talk(); err != nil {
				t.Errorf("after leaving: %v", err)
			}
		}
		eventually(t, "new connections are direct", func() bool { return once(m.pods["a2"], addr(b, appPort)) == nil })
		// And back again.
		m.nodes[0].agent.enrol(a)
		m.nodes[1].agent.enrol(b)
		a.plain, b.plain = false, false
		m.writeState()
		mark := len(m.nodes[1].proxy.log())
		eventually(t, "new connections are tunnelled again", func() bool {
			if err := once(a, addr(b, appPort)); err != nil {
				t.Errorf("after joining again: %v", err)
				return true
			}
			for _, l := range m.nodes[1].proxy.log()[mark:] {
				if containsAll(l, []string{"direction=inbound", "src.identity=spiffe://cluster.local/ns/default/sa/sa-a"}) {
					return true
				}
			}
			return false
		})
		for _, s := range live {
			if err := s.talk(); err != nil {
				t.Errorf("after joining again: %v", err)
			}
		}
	})
}

func TestNothingIsLeftOfConnectionsAndPods(t *testing.T) {
	m := newMesh(t).start()
	a, b := m.pods["a"], m.pods["b"]
	b.serveEcho(appPort)
	warm := func() {
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for _, from := range []*pod{a, m.pods["c"]} {
					if err := once(from, addr(b, appPort)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	warm()
	p := m.nodes[1].proxy
	idle := func() bool {
		_, conns, err := p.http("GET", p.port, "/connections")
		return err == nil && conns == "[]\n"
	}
	eventually(t, "no connection is left", idle)
	eventually(t, "pipes of spliced connections are collected", func() bool { p.collect(); return p.fds() < 50 })
	fds, routines := p.fds(), p.goroutines()
	for range 5 {
		warm()
		d := m.addPod(fmt.Sprintf("d%d", len(m.nodes[1].top.Pods)), m.nodes[1])
		m.writeState()
		m.nodes[1].agent.enrol(d)
		m.nodes[1].agent.unenrol(d)
	}
	eventually(t, "descriptors and goroutines are as many as before", func() bool {
		p.collect()
		return idle() && p.fds() <= fds && p.goroutines() <= routines
	})
	// A namespace that nobody needs is let go.
	left := 0
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid), e.Name())); err == nil && len(to) > 4 && to[:4] == "net:" {
			left++
		}
	}
	if left != 1 {
		t.Errorf("%d namespaces are held, want that of the one pod", left)
	}
}

func TestIstiosAgentIsServed(t *testing.T) {
	m := newMesh(t)
	m.kind, m.v1 = redirect.ModeNFT, true
	m.writeState()
	for _, n := range m.nodes {
		n.agent = newAgent(n)
		n.proxy = n.startProxy()
	}
	for _, p := range m.pods {
		if !p.unknown {
			p.node.agent.enrol(p)
		}
	}
	for _, n := range m.nodes {
		n.proxy.waitReady()
	}
	a, b, c := m.pods["a"], m.pods["b"], m.pods["c"]
	b.serveHTTP(appPort)
	for _, from := range []*pod{a, c} {
		eventually(t, "traffic flows", func() bool {
			got, err := from.get(addr(b, appPort))
			return err == nil && got == fmt.Sprintf("b saw %s", from.IP)
		})
	}
	m.nodes[1].proxy.access("direction=inbound", "src.identity=spiffe://cluster.local/ns/default/sa/sa-a")
	// The next proxy binds beside the old one.
	old := m.nodes[1].proxy
	m.nodes[1].proxy = m.nodes[1].startProxy()
	m.nodes[1].proxy.waitReady()
	old.terminate()
	<-old.done
	if _, err := a.get(addr(b, appPort)); err != nil {
		t.Error(err)
	}
}
