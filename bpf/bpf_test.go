package bpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/ambit-mesh/ambit/api/ports"
)

const (
	protoTCP = 6
	protoUDP = 17
	skDrop   = 0
	skPass   = 1
)

// lookup is the context of sk_lookup as the kernel lays it out. A test run wants
// the interface to be 0, which is as good as any that isn't lo. What comes by
// lo is tested in a real namespace (tests/node/capture).
type lookup struct {
	Cookie          uint64
	Family          uint32
	Protocol        uint32
	RemoteIP4       [4]byte
	RemoteIP6       [16]byte
	RemotePort      uint32
	LocalIP4        [4]byte
	LocalIP6        [16]byte
	LocalPort       uint32
	IngressIfindex  uint32
	TrailingPadding uint32
}

func newLookup(remote, local netip.AddrPort, protocol uint32) lookup {
	l := lookup{Protocol: protocol, LocalPort: uint32(local.Port()), Family: 10}
	// remote_port is in network order in the lower half of its word.
	l.RemotePort = uint32(remote.Port()>>8 | remote.Port()<<8)
	if local.Addr().Is4() {
		l.Family, l.RemoteIP4, l.LocalIP4 = 2, remote.Addr().As4(), local.Addr().As4()
	} else {
		l.RemoteIP6, l.LocalIP6 = remote.Addr().As16(), local.Addr().As16()
	}
	return l
}

// listen returns a socket on loopback, its cookie as the kernel's sockmap shows
// it, having put it into the map.
func listen(t *testing.T, m *ebpf.Map, role SteerRole) (*net.TCPListener, uint64) {
	t.Helper()
	// A dual-stack socket, as the agent's: it serves lookups of both families.
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // the sockmap takes plain TCP only
	ln, err := lc.Listen(t.Context(), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	l := ln.(*net.TCPListener)
	t.Cleanup(func() { l.Close() })
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = m.Put(uint32(role), uint64(fd)) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	var cookie uint64
	if err := m.Lookup(uint32(role), &cookie); err != nil {
		t.Fatal(err)
	}
	return l, cookie
}

func loadSteer(t *testing.T) *SteerObjects {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	var o SteerObjects
	if err := LoadSteerObjects(&o, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return &o
}

func setPod(t *testing.T, o *SteerObjects, mode SteerMode, addrs ...string) {
	t.Helper()
	p := SteerPod{NetnsCookie: 1, Mode: mode, AddrsLen: uint32(len(addrs))}
	for i, a := range addrs {
		p.Addrs[i] = SteerAddress(netip.MustParseAddr(a))
	}
	if err := o.PodState.Put(uint32(0), p); err != nil {
		t.Fatal(err)
	}
}

func TestSteer(t *testing.T) {
	const none, plaintext, hbone = 0, 2, 3
	o := loadSteer(t)
	cookies := []uint64{none: 0}
	var listeners []*net.TCPListener
	for _, r := range []SteerRole{SteerRoleOUTBOUND, SteerRoleINBOUND_PLAINTEXT, SteerRoleINBOUND_HBONE} {
		l, c := listen(t, o.Listeners, r)
		listeners, cookies = append(listeners, l), append(cookies, c)
	}
	for _, p := range []string{ports.ProbeSourceV4, ports.ProbeSourceV6} {
		if err := o.ProbeSources.Put(Key(netip.MustParseAddr(p)), uint32(1)); err != nil {
			t.Fatal(err)
		}
	}
	type want struct{ verdict, socket int }
	tests := []struct {
		name               string
		remote, local      string
		protocol           uint32
		capturing          want
		draining, orphaned want
	}{
		{"inbound v4", "10.1.0.9:40000", "10.1.0.2:80", protoTCP, want{skPass, plaintext}, want{skPass, none}, want{skDrop, none}},
		{"inbound v6", "[fd00::9]:40000", "[fd00::2]:80", protoTCP, want{skPass, plaintext}, want{skPass, none}, want{skDrop, none}},
		{"hbone v4", "10.1.0.9:40000", "10.1.0.2:15008", protoTCP, want{skPass, hbone}, want{skPass, hbone}, want{skDrop, none}},
		{"hbone v6", "[fd00::9]:40000", "[fd00::2]:15008", protoTCP, want{skPass, hbone}, want{skPass, hbone}, want{skDrop, none}},
		{"udp", "10.1.0.9:40000", "10.1.0.2:53", protoUDP, want{skPass, none}, want{skPass, none}, want{skPass, none}},
		{"probe v4", "169.254.7.127:40000", "10.1.0.2:80", protoTCP, want{skPass, none}, want{skPass, none}, want{skPass, none}},
		{"probe v6", "[fd16:9254:7127:1337:ffff:ffff:ffff:ffff]:40000", "[fd00::2]:80", protoTCP, want{skPass, none}, want{skPass, none}, want{skPass, none}},
		{"own v4, index of eth0", "10.1.0.2:40000", "10.1.0.2:80", protoTCP, want{skPass, none}, want{skPass, none}, want{skPass, none}},
		{"own, from another own", "10.1.0.5:40000", "10.1.0.2:80", protoTCP, want{skPass, none}, want{skPass, none}, want{skPass, none}},
		{"own 15008", "10.1.0.2:40000", "10.1.0.2:15008", protoTCP, want{skPass, none}, want{skPass, none}, want{skPass, none}},
		{"own, from loopback", "127.0.0.1:40000", "10.1.0.2:80", protoTCP, want{skPass, none}, want{skPass, none}, want{skPass, none}},
	}
	check := func(mode string, pick func(i int) want) {
		for i, tc := range tests {
			t.Run(mode+"/"+tc.name, func(t *testing.T) {
				in := newLookup(netip.MustParseAddrPort(tc.remote), netip.MustParseAddrPort(tc.local), tc.protocol)
				var out lookup
				verdict, err := o.Steer.Run(&ebpf.RunOptions{Context: in, ContextOut: &out})
				if err != nil {
					t.Fatal(err)
				}
				w := pick(i)
				if int(verdict) != w.verdict || out.Cookie != cookies[w.socket] {
					t.Errorf("verdict %d, socket %d; want %d, %d (of %v)", verdict, out.Cookie, w.verdict, cookies[w.socket], cookies)
				}
			})
		}
	}
	own := []string{"10.1.0.2", "fd00::2", "10.1.0.5"}
	setPod(t, o, SteerModeCAPTURING, own...)
	check("capturing", func(i int) want { return tests[i].capturing })
	setPod(t, o, SteerModeDRAINING, own...)
	check("draining", func(i int) want { return tests[i].draining })
	for _, l := range listeners {
		l.Close()
	}
	setPod(t, o, SteerModeCAPTURING, own...)
	check("orphaned", func(i int) want { return tests[i].orphaned })
}

func TestGuard(t *testing.T) {
	var o GuardObjects
	if err := LoadGuardObjects(&o, nil); err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	const next, drop = 0xffffffff, 2
	for mark, want := range map[uint32]uint32{
		0:                                 next,
		ports.MarkCapture:                 drop,
		0xabcde000 | ports.MarkCapture:    drop,
		ports.MarkApp:                     drop,
		ports.MarkProxy:                   next,
		ports.MarkCapture &^ 1:            next,
		ports.MarkCapture << 12:           next,
		0xabcde000:                        next,
		0xabcde000 | ports.MarkProxy:      next,
		ports.MarkMask:                    next,
		ports.MarkCapture | ports.MarkApp: next,
	} {
		// struct __sk_buff; all but the mark is zero, as a test run demands.
		ctx := make([]byte, 192)
		binary.NativeEndian.PutUint32(ctx[8:], mark)
		got, err := o.Guard.Run(&ebpf.RunOptions{Data: make([]byte, 64), Context: ctx})
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("mark %#x: %#x, want %#x", mark, got, want)
		}
	}
}

// TestVerifier loads what can only run in a real namespace (see tests/node/capture).
func TestVerifier(t *testing.T) {
	var c ConnectObjects
	if err := LoadConnectObjects(&c, nil); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var k KubeletObjects
	if err := LoadKubeletObjects(&k, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{KubeletMapPodIps: c.PodIps}}); err != nil {
		t.Fatal(err)
	}
	defer k.Close()
}

func TestAddress(t *testing.T) {
	for _, s := range []string{"10.1.2.3", "fd00::1", "::", "0.0.0.0"} {
		a := netip.MustParseAddr(s)
		if got := SteerAddress(a).Address(); got != a {
			t.Errorf("%q comes back as %q", a, got)
		}
	}
}
