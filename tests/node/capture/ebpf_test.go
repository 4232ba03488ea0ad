package capture

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/choose"
	"github.com/ambit-mesh/ambit/internal/linux"
)

// TestHBONEServesUntilListenersClose: peers learn some time after that a pod
// left the mesh.
func TestHBONEServesUntilListenersClose(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		f.unenroll(t)
		eachFamily(t, func(t *testing.T, v6 bool) {
			to := netip.AddrPortFrom(f.pod.addr(v6), ports.HBONE)
			s := mustConnect(t, f.peer.ns, to)
			f.want(t, "hbone", unmap(s.conn.LocalAddr()), to)
		})
		if got, err := f.r.Enrolled(t.Context()); err != nil || len(got) != 0 {
			t.Errorf("enrolled: %v, %v", got, err)
		}
		f.ls.Close()
		f.proxy.stopListening()
		eachFamily(t, func(t *testing.T, v6 bool) {
			if err := once(f.peer.ns, netip.AddrPortFrom(f.pod.addr(v6), ports.HBONE)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%v, want refused", err)
			}
		})
		own := startApp(t, f.pod.ns, ports.HBONE)
		if err := once(f.peer.ns, own.at(f.pod.v4)); err != nil {
			t.Errorf("the port isn't the app's: %v", err)
		}
		// Nothing is left of the pod after the next change.
		f.unenroll(t)
		if _, err := os.Stat(filepath.Dir(f.podFile("steer"))); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the pod's directory is still there: %v", err)
		}
	})
}

// TestSandboxMadeAnew: a pod keeps its UID when its netns is replaced.
func TestSandboxMadeAnew(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		next := f.node.newPod(t)
		f.node.ready(t, next)
		f.self.NetNS, f.self.IPs = next.ns, []netip.Addr{next.v4, next.v6}
		if err := f.r.Check(t.Context(), f.self); err == nil {
			t.Error("Check takes the old netns for the new one")
		}
		ls, err := f.r.OpenListeners(f.self)
		if err != nil {
			t.Fatal(err)
		}
		defer ls.Close()
		p := startProxy(t, next.ns, f.r, ls)
		if err := f.r.Enroll(t.Context(), f.self, ls); err != nil {
			t.Fatal(err)
		}
		if err := f.r.Check(t.Context(), f.self); err != nil {
			t.Fatal(err)
		}
		if err := once(next.ns, f.outside.at(f.peer.v4)); err != nil {
			t.Fatal(err)
		}
		if p.count() != 1 {
			t.Errorf("%d connections captured, want 1", p.count())
		}
	})
}

// TestNetNSGoneIsCollected: nobody un-enrols a pod that goes away while no agent
// runs.
func TestNetNSGoneIsCollected(t *testing.T) {
	f := newFixture(t, redirect.ModeEBPF)
	ns, err := linux.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	gone := redirect.Pod{UID: "gone", NetNS: ns}
	ls, err := f.r.OpenListeners(gone)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.r.Enroll(t.Context(), gone, ls); err != nil {
		t.Fatal(err)
	}
	if got, err := f.r.Enrolled(t.Context()); err != nil || !slices.Equal(got, []string{"gone"}) {
		t.Fatalf("enrolled: %v, %v", got, err)
	}
	ls.Close()
	ns.Close()
	// The kernel takes a namespace down some time after its last user.
	for range pollTries {
		got, err := f.r.Enrolled(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			return
		}
		poll(t)
	}
	t.Error("a pod without netns is still enrolled")
}

// TestGuardInTheWay: a link that is unpinned but held by somebody.
func TestGuardInTheWay(t *testing.T) {
	f := newEnrolled(t, redirect.ModeEBPF)
	guards, err := filepath.Glob(f.podFile("guard-*"))
	if err != nil || len(guards) != 1 {
		t.Fatalf("guards %v: %v", guards, err)
	}
	held, err := link.LoadPinnedLink(guards[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	remove(t, guards[0])
	f.enroll(t)
	f.enroll(t)
}

// TestOtherSockets: ways to connect that are not a plain connect of a TCP socket.
func TestOtherSockets(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		to := f.outside.at(f.peer.v4)
		dial := func(d net.Dialer) (*stream, error) {
			var s *stream
			err := f.pod.ns.Do(func() error {
				c, err := d.DialContext(t.Context(), "tcp", to.String())
				if err == nil {
					t.Cleanup(func() { c.Close() })
					s, err = greet(c)
				}
				return err
			})
			return s, err
		}
		option := func(level, name, value int) net.Dialer {
			return net.Dialer{Control: func(_, _ string, c syscallRawConn) (err error) {
				return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, name, value) }), err)
			}}
		}
		var mptcp net.Dialer
		mptcp.SetMultipathTCP(true)
		for name, d := range map[string]net.Dialer{
			"multipath TCP":      mptcp,
			"TCP fast open":      option(unix.SOL_TCP, unix.TCP_FASTOPEN_CONNECT, 1),
			"bound source":       {LocalAddr: &net.TCPAddr{IP: f.pod.v4.AsSlice()}},
			"a mark of its own":  option(unix.SOL_SOCKET, unix.SO_MARK, 0x7000),
			"the capture's mark": option(unix.SOL_SOCKET, unix.SO_MARK, ports.MarkCapture),
		} {
			if kind == redirect.ModeNFT && name == "the capture's mark" {
				continue // is routed to loopback and lost there: doesn't escape, doesn't connect
			}
			t.Run(name, func(t *testing.T) {
				s, err := dial(d)
				if err != nil {
					t.Fatal(err)
				}
				f.want(t, "outbound", unmap(s.conn.LocalAddr()), to)
			})
		}
	})
}

func TestLinkLocalIsRefused(t *testing.T) {
	f := newEnrolled(t, redirect.ModeEBPF)
	to := netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone("2"), 80) // eth0 is the second interface
	if _, err := connect(f.pod.ns, to); !errors.Is(err, unix.EPERM) {
		t.Errorf("%v, want a refusal", err)
	}
}

// TestKubeletRestart: systemd makes a service's cgroup anew.
func TestKubeletRestart(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		if err := errors.Join(os.Remove(box.kubelet), os.Mkdir(box.kubelet, 0o755)); err != nil {
			t.Fatal(err)
		}
		if err := f.r.Check(t.Context(), f.self); err != nil {
			t.Errorf("Check, which finds the new cgroup: %v", err)
		}
		if got := probeAsKubelet(t, f.node.ns, f.app.at(f.pod.v4)); got.Addr() != netip.MustParseAddr(ports.ProbeSourceV4) {
			t.Errorf("the app sees the new kubelet as %s", got)
		}
	})
}

// TestKubeletNotIsolated: the probes must pass, and somebody must be told.
func TestKubeletNotIsolated(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newFixture(t, kind)
		var log bytes.Buffer
		f.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		f.cfg.KubeletCgroups, f.cfg.HostProc = nil, t.TempDir() // a node without a process named kubelet
		f.r.Close()
		f.r = f.probe(t)
		if err := f.r.Degraded(); err == nil || !strings.Contains(err.Error(), "kubelet") {
			t.Errorf("degraded: %v", err)
		}
		if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "ALL of the node's own addresses") {
			t.Errorf("the log says %q", log.String())
		}
		f.enroll(t)
		eachFamily(t, func(t *testing.T, v6 bool) {
			s := mustConnect(t, f.node.ns, f.app.at(f.pod.addr(v6)))
			f.want(t, "", unmap(s.conn.LocalAddr()), netip.AddrPort{})
			s = mustConnect(t, f.peer.ns, f.app.at(f.pod.addr(v6)))
			f.want(t, "inbound", unmap(s.conn.LocalAddr()), f.app.at(f.pod.addr(v6)))
		})
	})
}

func TestRemove(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		streams := f.openStreams(t)
		if kind == redirect.ModeNFT {
			f.unenroll(t)
		}
		if err := f.r.(redirect.Remover).Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		captured := f.proxy.count()
		f.openStreams(t)
		if got := f.proxy.count() - captured; got != 0 {
			t.Errorf("%d connections were captured", got)
		}
		for i, s := range streams {
			if err := s.echo(); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		}
		if got := probeAsKubelet(t, f.node.ns, f.app.at(f.pod.v4)); got.Addr() != f.pod.gateway4 {
			t.Errorf("the kubelet's probe still comes from %s", got)
		}
		f.r.Close()
		left, err := filepath.Glob(filepath.Join(f.cfg.BPFDir, "*/*"))
		if err != nil || len(left) != 0 && kind == redirect.ModeEBPF {
			t.Errorf("left behind: %v, %v", left, err)
		}
		f.r = f.probe(t)
		f.enroll(t)
		if err := once(f.pod.ns, f.outside.at(f.peer.v4)); err != nil {
			t.Error(err)
		}
	})
}

// TestKindIsKept: pods that are captured one way are not captured another.
func TestKindIsKept(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		f.r.Close()
		f.cfg.Mode = redirect.ModeAuto
		f.r = f.probe(t)
		f.r.Close()
		f.cfg.Mode = map[string]string{redirect.ModeEBPF: redirect.ModeNFT, redirect.ModeNFT: redirect.ModeEBPF}[kind]
		if r, err := choose.Probe(t.Context(), f.cfg); err == nil {
			r.Close()
			t.Errorf("switched to %s with a pod captured by %s", r.Name(), kind)
		}
	})
}

func TestProbeFallsBack(t *testing.T) {
	n := newNode(t)
	var log bytes.Buffer
	cfg := redirect.Config{
		BPFDir: filepath.Join(t.TempDir(), "not-bpffs"), StateDir: t.TempDir(), CgroupRoot: box.cgroup,
		KubeletCgroups: []string{box.kubelet}, HostNetNS: n.ns, Log: slog.New(slog.NewTextHandler(&log, nil)),
	}
	r, err := choose.Probe(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Name() != redirect.ModeNFT || !strings.Contains(log.String(), "no BPF filesystem is mounted there") {
		t.Errorf("chose %q and said %q", r.Name(), log.String())
	}
	if err := r.Degraded(); err == nil {
		t.Error("without BPF the kubelet can't be told from others, and Degraded doesn't say so")
	}
	cfg.Mode = redirect.ModeEBPF
	if _, err := choose.Probe(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "no BPF filesystem") {
		t.Errorf("forced: %v", err)
	}
	cfg.Mode = "iptables"
	if _, err := choose.Probe(t.Context(), cfg); err == nil {
		t.Error("an unknown mode is accepted")
	}
}
