package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/choose"
	"github.com/ambit-mesh/ambit/internal/linux"
)

const podUID = "0b5e7c1e-6b9e-4a58-9d1c-capture00001"

// fixture is a node with a captured pod and a peer that isn't.
type fixture struct {
	kind      string
	cfg       redirect.Config
	node      *node
	pod, peer pod
	self      redirect.Pod
	r         redirect.Redirector
	ls        redirect.Listeners
	proxy     *proxy
	app       *app // in the pod
	outside   *app // in the peer
}

// eachKind runs a test with both kinds of capture.
func eachKind(t *testing.T, fn func(t *testing.T, kind string)) {
	for _, kind := range []string{redirect.ModeEBPF, redirect.ModeNFT} {
		t.Run(kind, func(t *testing.T) { fn(t, kind) })
	}
}

func eachFamily(t *testing.T, fn func(t *testing.T, v6 bool)) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "v4", true: "v6"}[v6], func(t *testing.T) { fn(t, v6) })
	}
}

// newFixture has everything ready but the pod isn't enrolled.
func newFixture(t *testing.T, kind string) *fixture {
	t.Helper()
	f := &fixture{kind: kind, node: newNode(t)}
	f.pod, f.peer = f.node.newPod(t), f.node.newPod(t)
	dir := filepath.Join(box.bpffs, strings.NewReplacer("/", "_", ".", "_").Replace(t.Name()))
	t.Cleanup(func() { os.RemoveAll(dir) })
	f.cfg = redirect.Config{
		BPFDir: dir, StateDir: t.TempDir(), CgroupRoot: box.cgroup, KubeletCgroups: []string{box.kubelet},
		HostNetNS: f.node.ns, Mode: kind,
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	f.self = redirect.Pod{UID: podUID, NetNS: f.pod.ns, IPs: []netip.Addr{f.pod.v4, f.pod.v6}}
	f.r = f.probe(t)
	ls, err := f.r.OpenListeners(f.self)
	if err != nil {
		t.Fatal(err)
	}
	f.ls = ls
	t.Cleanup(func() { f.ls.Close() })
	f.proxy = startProxy(t, f.pod.ns, f.r, f.ls)
	f.app, f.outside = startApp(t, f.pod.ns, 8080), startApp(t, f.peer.ns, 9090)
	f.node.ready(t, f.pod)
	f.node.ready(t, f.peer)
	return f
}

func newEnrolled(t *testing.T, kind string) *fixture {
	t.Helper()
	f := newFixture(t, kind)
	f.enroll(t)
	return f
}

func (f *fixture) probe(t *testing.T) redirect.Redirector {
	t.Helper()
	r, err := choose.Probe(t.Context(), f.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r.Name() != f.kind {
		t.Fatalf("got %q, want %q", r.Name(), f.kind)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func (f *fixture) enroll(t *testing.T) {
	t.Helper()
	if err := f.r.Enroll(t.Context(), f.self, f.ls); err != nil {
		t.Fatal(err)
	}
	if err := f.r.Check(t.Context(), f.self); err != nil {
		t.Fatalf("right after enrolling: %v", err)
	}
}

func (f *fixture) unenroll(t *testing.T) {
	t.Helper()
	if err := f.r.Unenroll(t.Context(), f.self); err != nil {
		t.Fatal(err)
	}
}

// want fails unless the proxy got (or, with an empty role, did not get) the
// connection from src.
func (f *fixture) want(t *testing.T, role string, src, dst netip.AddrPort) {
	t.Helper()
	got, ok := f.proxy.find(src)
	if role == "" {
		if ok {
			t.Errorf("connection from %s was captured: %+v", src, got)
		}
		return
	}
	if want := (captured{role, src, dst}); got != want {
		t.Errorf("captured %+v, want %+v", got, want)
	}
}

func TestOutbound(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		eachFamily(t, func(t *testing.T, v6 bool) {
			to := f.outside.at(f.peer.addr(v6))
			s := mustConnect(t, f.pod.ns, to)
			f.want(t, "outbound", unmap(s.conn.LocalAddr()), to)
			if got := unmap(s.conn.LocalAddr()).Addr(); got != f.pod.addr(v6) {
				t.Errorf("the app's own address is %s", got)
			}
			if got := unmap(s.conn.RemoteAddr()); got != to {
				t.Errorf("the app's peer is %s", got)
			}
			if got := s.seenAs.Addr(); got != f.pod.addr(v6) {
				t.Errorf("the peer sees %s", got)
			}
			if err := s.finish(); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestInbound(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		eachFamily(t, func(t *testing.T, v6 bool) {
			to := f.app.at(f.pod.addr(v6))
			s := mustConnect(t, f.peer.ns, to)
			f.want(t, "inbound", unmap(s.conn.LocalAddr()), to)
			if got := s.seenAs.Addr(); got != f.peer.addr(v6) {
				t.Errorf("the app sees %s, want the client", got)
			}
			if s.seenAs == unmap(s.conn.LocalAddr()) {
				t.Error("the app sees the client's own port: not through the proxy")
			}
			if err := s.finish(); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestHBONE(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		var own *app
		if kind == redirect.ModeEBPF {
			own = startApp(t, f.pod.ns, 15008) // the app may use the port too
		}
		eachFamily(t, func(t *testing.T, v6 bool) {
			to := netip.AddrPortFrom(f.pod.addr(v6), 15008)
			s := mustConnect(t, f.peer.ns, to)
			f.want(t, "hbone", unmap(s.conn.LocalAddr()), to)
			if own != nil && own.accepted.Load() > 0 {
				t.Error("the app got it")
			}
		})
	})
}

func TestOwnAndLoopbackAreNotCaptured(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		eachFamily(t, func(t *testing.T, v6 bool) {
			loopback := netip.MustParseAddr("127.0.0.1")
			if v6 {
				loopback = netip.IPv6Loopback()
			}
			for _, ip := range []netip.Addr{f.pod.addr(v6), loopback} {
				s := mustConnect(t, f.pod.ns, f.app.at(ip))
				if s.seenAs != unmap(s.conn.LocalAddr()) {
					t.Errorf("to %s: the app sees %s, the client is %s", ip, s.seenAs, s.conn.LocalAddr())
				}
			}
		})
		// A socket bound to loopback that calls the pod's own address.
		c, err := f.pod.ns.Dial(t.Context(), f.app.at(f.pod.v4), linux.DialOptions{Local: netip.MustParseAddr("127.0.0.1")})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if s, err := greet(c); err != nil || s.seenAs != unmap(c.LocalAddr()) {
			t.Errorf("from loopback to own: %v, %v", s, err)
		}
		if n := f.proxy.count(); n != 0 {
			t.Errorf("%d connections were captured", n)
		}
	})
}

func TestMappedSocket(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		// linux.Dial unmaps, so this goes by hand.
		mapped := func(to netip.AddrPort) net.Conn {
			var fd int
			err := f.pod.ns.Do(func() (err error) {
				fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			file := os.NewFile(uintptr(fd), "mapped")
			defer file.Close()
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5})
			if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}); err != nil {
				t.Fatal(err)
			}
			c, err := net.FileConn(file)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c
		}
		to := f.outside.at(f.peer.v4)
		s, err := greet(mapped(to))
		if err != nil {
			t.Fatal(err)
		}
		f.want(t, "outbound", unmap(s.conn.LocalAddr()), to)
		for _, ip := range []netip.Addr{f.pod.v4, netip.MustParseAddr("127.0.0.1")} {
			s, err := greet(mapped(f.app.at(ip)))
			if err != nil {
				t.Fatal(err)
			}
			f.want(t, "", unmap(s.conn.LocalAddr()), netip.AddrPort{})
		}
	})
}

func TestUDPIsNotCaptured(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		eachFamily(t, func(t *testing.T, v6 bool) {
			for _, dir := range []struct{ from, to pod }{{f.pod, f.peer}, {f.peer, f.pod}} {
				var server, client *net.UDPConn
				err := errors.Join(
					dir.to.ns.Do(func() (err error) {
						server, err = net.ListenUDP("udp", &net.UDPAddr{IP: dir.to.addr(v6).AsSlice()})
						return err
					}),
					dir.from.ns.Do(func() (err error) {
						client, err = net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
						return err
					}))
				if err != nil {
					t.Fatal(err)
				}
				defer server.Close()
				defer client.Close()
				client.SetDeadline(time.Now().Add(patience))
				server.SetDeadline(time.Now().Add(patience))
				if _, err := client.Write([]byte("ping")); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 64)
				n, src, err := server.ReadFromUDPAddrPort(buf)
				if err != nil || string(buf[:n]) != "ping" || src.Addr() != dir.from.addr(v6) {
					t.Fatalf("server got %q from %s: %v", buf[:n], src, err)
				}
				if _, err := server.WriteToUDPAddrPort([]byte("pong"), src); err != nil {
					t.Fatal(err)
				}
				if n, err := client.Read(buf); err != nil || string(buf[:n]) != "pong" {
					t.Fatalf("client got %q: %v", buf[:n], err)
				}
			}
		})
	})
}

// atOnce bounds what a refusal may take; a retransmission would take a second.
const atOnce = 500 * time.Millisecond

func TestClosedPortIsRefusedAtOnce(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		eachFamily(t, func(t *testing.T, v6 bool) {
			for _, c := range []struct {
				name string
				from *linux.NetNS
				to   netip.AddrPort
			}{
				{"inbound", f.peer.ns, netip.AddrPortFrom(f.pod.addr(v6), 81)},
				{"outbound", f.pod.ns, netip.AddrPortFrom(f.peer.addr(v6), 81)},
				{"own", f.pod.ns, netip.AddrPortFrom(f.pod.addr(v6), 81)},
			} {
				start := time.Now()
				_, err := connect(c.from, c.to)
				took := time.Since(start)
				if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("%s: %v, want refused or reset", c.name, err)
				}
				if took > atOnce {
					t.Errorf("%s: took %v", c.name, took)
				}
			}
		})
	})
}

func TestFailsClosedWithoutListeners(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		eachFamily(t, func(t *testing.T, v6 bool) {
			if err := once(f.pod.ns, f.outside.at(f.peer.addr(v6))); err != nil {
				t.Fatal(err)
			}
		})
		f.ls.Close()
		f.proxy.stopListening()
		before := f.app.accepted.Load() + f.outside.accepted.Load()
		eachFamily(t, func(t *testing.T, v6 bool) {
			for name, dir := range map[string]struct {
				from *linux.NetNS
				to   netip.AddrPort
			}{
				"outbound": {f.pod.ns, f.outside.at(f.peer.addr(v6))},
				"inbound":  {f.peer.ns, f.app.at(f.pod.addr(v6))},
				"hbone":    {f.peer.ns, netip.AddrPortFrom(f.pod.addr(v6), 15008)},
			} {
				start := time.Now()
				// Of v4 connections from the pod the kernel can't send a refusal: it would come from the
				// stranger's address. They wait, and go on if a listener comes back.
				if kind == redirect.ModeEBPF && name == "outbound" && !v6 {
					wantNoAnswer(t, dir.from, dir.to)
					continue
				}
				if _, err := connect(dir.from, dir.to); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("%s: %v, want refused", name, err)
				}
				if took := time.Since(start); took > atOnce {
					t.Errorf("%s: took %v", name, took)
				}
			}
			if err := once(f.pod.ns, f.app.at(f.pod.addr(v6))); err != nil {
				t.Errorf("the pod's call to itself: %v", err)
			}
		})
		const ownCalls = 2
		if got := f.app.accepted.Load() + f.outside.accepted.Load() - before; got != ownCalls {
			t.Errorf("apps got %d connections, want the %d own calls", got, ownCalls)
		}
		if err := f.r.Check(t.Context(), f.self); err == nil {
			t.Error("Check found nothing")
		}
	})
}

func wantNoAnswer(t *testing.T, from *linux.NetNS, to netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), atOnce)
	defer cancel()
	if c, err := from.Dial(ctx, to, linux.DialOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connected to %s without a listener: %v, %v", to, c, err)
	}
}

func TestSocketBoundToInterfaceDoesNotEscape(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		eachFamily(t, func(t *testing.T, v6 bool) {
			before := f.outside.accepted.Load()
			captured := f.proxy.count()
			var d net.Dialer
			d.Control = func(_, _ string, c syscallRawConn) (err error) {
				return errors.Join(c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "eth0") }), err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), atOnce)
			defer cancel()
			err := f.pod.ns.Do(func() error {
				c, err := d.DialContext(ctx, "tcp", f.outside.at(f.peer.addr(v6)).String())
				if err == nil {
					c.Close()
				}
				return err
			})
			if got := f.outside.accepted.Load() - before; got > int64(f.proxy.count()-captured) {
				t.Errorf("it reached the peer past the proxy (%v)", err)
			}
			if kind == redirect.ModeEBPF && err == nil {
				t.Error("it connected; the guard should have dropped it")
			}
		})
	})
}

func TestKubeletPastOthersCaptured(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newEnrolled(t, kind)
		if err := f.r.Degraded(); err != nil {
			t.Fatal(err)
		}
		eachFamily(t, func(t *testing.T, v6 bool) {
			to := f.app.at(f.pod.addr(v6))
			s := mustConnect(t, f.node.ns, to)
			f.want(t, "inbound", unmap(s.conn.LocalAddr()), to)

			captured := f.proxy.count()
			got := probeAsKubelet(t, f.node.ns, to)
			want := map[bool]string{false: "169.254.7.127", true: "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"}[v6]
			if got.Addr() != netip.MustParseAddr(want) {
				t.Errorf("the app sees the kubelet as %s", got)
			}
			if f.proxy.count() != captured {
				t.Error("the kubelet was captured")
			}
			// What isn't a pod's keeps its source.
			if got := probeAsKubelet(t, f.node.ns, f.outside.at(f.peer.addr(v6))); got.Addr() != f.peer.gateway(v6) {
				t.Errorf("a stranger sees the kubelet as %s", got)
			}
		})
	})
}

// probeAsKubelet connects from a process in the kubelet's cgroup and returns
// what the app sees.
func probeAsKubelet(t *testing.T, ns *linux.NetNS, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	out, err := runIn(ns, box.kubelet, "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d && head -n1 <&3", to.Addr(), to.Port()))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got, err := netip.ParseAddrPort(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestEnrolled(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newFixture(t, kind)
		want := func(want ...string) {
			t.Helper()
			got, err := f.r.Enrolled(t.Context())
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("enrolled: %v, %v; want %v", got, err, want)
			}
		}
		want()
		f.enroll(t)
		f.enroll(t)
		want(podUID)
		if err := f.r.Unenroll(t.Context(), redirect.Pod{UID: "never-seen"}); err != nil {
			t.Error(err)
		}
		want(podUID)
		f.unenroll(t)
		f.unenroll(t)
		want()
		if err := f.r.Check(t.Context(), f.self); err == nil {
			t.Error("Check is content with a pod that isn't enrolled")
		}
		f.enroll(t)
		// The netns is gone.
		if err := f.r.Unenroll(t.Context(), redirect.Pod{UID: podUID}); err != nil {
			t.Error(err)
		}
		want()
	})
}

func TestRefusesNodeNetNS(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		f := newFixture(t, kind)
		if err := f.r.Enroll(t.Context(), redirect.Pod{UID: "hostnetwork", NetNS: f.node.ns}, f.ls); err == nil {
			t.Error("the node's own netns was captured")
		}
	})
}
