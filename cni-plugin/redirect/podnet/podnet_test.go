package podnet

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/linux"
)

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestSources(t *testing.T) {
	for _, tc := range []struct {
		name             string
		ips, found, want []netip.Addr
	}{
		{"both families", addrs("10.0.0.2", "fd00::2"), addrs("fd00::2", "fe80::1", "10.0.0.2"), addrs("10.0.0.2", "fd00::2")},
		{"the pod's among several", addrs("10.0.0.2"), addrs("192.168.0.9", "10.0.0.2"), addrs("10.0.0.2")},
		{"the pod's isn't there", addrs("203.0.113.7"), addrs("10.0.0.2"), addrs("10.0.0.2")},
		{"not known yet", nil, addrs("10.0.0.2", "fe80::1"), addrs("10.0.0.2")},
		{"nothing", addrs("10.0.0.2"), nil, nil},
	} {
		if got := Sources(tc.ips, tc.found); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestSetup(t *testing.T) {
	ns, err := linux.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	own := addrs("10.0.0.2", "fd00::2")
	if err := AddLoopbackAddrs(ns, own...); err != nil {
		t.Fatal(err)
	}
	if err := AddLoopbackAddrs(ns, own...); err != nil {
		t.Errorf("again: %v", err)
	}
	s := Setup{Sources: own, Marks: []uint32{ports.MarkCapture, ports.MarkApp}, Sysctls: []string{"ipv4/fwmark_reflect", "ipv6/fwmark_reflect"}}
	err = s.Check(ns)
	for _, want := range []string{"rule for mark 0x111", "rule for mark 0x53a", `route with source "10.0.0.2"`, `route with source "fd00::2"`, `"ipv6/fwmark_reflect"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("an empty namespace: %v, want %q", err, want)
		}
	}
	for range 2 {
		if err := errors.Join(s.Apply(ns), s.Check(ns)); err != nil {
			t.Errorf("applied: %v", err)
		}
	}
	// The kernel routes marked packets, and only those, to loopback.
	for mark, want := range map[uint32]bool{ports.MarkCapture: true, ports.MarkApp: true, 0xf000 | ports.MarkCapture: true, ports.MarkProxy: false, 0: false} {
		for _, dst := range addrs("198.51.100.1", "2001:db8::1") {
			err := ns.Do(func() error {
				_, err := netlink.RouteGetWithOptions(dst.AsSlice(), &netlink.RouteGetOptions{Mark: mark})
				return err
			})
			if (err == nil) != want || err != nil && !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("mark %#x to %s: %v", mark, dst, err)
			}
		}
	}
	found, err := Read(ns)
	if err != nil || !slices.Equal(found.Addrs, own) || len(found.Links) != 0 {
		t.Errorf("read %+v, %v", found, err)
	}
	if err := errors.Join(RemoveLoopbackAddrs(ns, own...), RemoveLoopbackAddrs(ns, own...)); err != nil {
		t.Errorf("removing twice: %v", err)
	}
	if found, err := Read(ns); err != nil || len(found.Addrs) != 0 {
		t.Errorf("after removal: %+v, %v", found, err)
	}
}
