package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/linux"
)

// node is a namespace that routes between its pods.
type node struct {
	ns   *linux.NetNS
	pods int
}

// pod is a namespace behind a veth pair: 10.66.<n>.2 and fd66:<n>::2, the node
// at .1 and ::1.
type pod struct {
	ns       *linux.NetNS
	v4, v6   netip.Addr
	gateway4 netip.Addr
	gateway6 netip.Addr
}

func (p pod) addr(v6 bool) netip.Addr {
	if v6 {
		return p.v6
	}
	return p.v4
}

func (p pod) gateway(v6 bool) netip.Addr {
	if v6 {
		return p.gateway6
	}
	return p.gateway4
}

func newNetNS(t *testing.T) *linux.NetNS {
	t.Helper()
	ns, err := linux.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	// Link-local addresses are usable at once, as they are in a pod some seconds after it started.
	sysctls(t, ns, map[string]string{"ipv6/conf/default/accept_dad": "0"})
	withNetlink(t, ns, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.LinkSetUp(lo)
	})
	return ns
}

func sysctls(t *testing.T, ns *linux.NetNS, values map[string]string) {
	t.Helper()
	for name, v := range values {
		if err := ns.SetSysctl(name, v); err != nil {
			t.Fatal(err)
		}
	}
}

func withNetlink(t *testing.T, ns *linux.NetNS, fn func(*netlink.Handle) error) {
	t.Helper()
	var h *netlink.Handle
	err := ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err == nil {
		defer h.Close()
		err = fn(h)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{ns: newNetNS(t)}
	sysctls(t, n.ns, map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"})
	return n
}

func (n *node) newPod(t *testing.T) pod {
	t.Helper()
	n.pods++
	i := n.pods
	p := pod{
		ns:       newNetNS(t),
		v4:       netip.AddrFrom4([4]byte{10, 66, byte(i), 2}),
		v6:       netip.MustParseAddr(fmt.Sprintf("fd66:%d::2", i)),
		gateway4: netip.AddrFrom4([4]byte{10, 66, byte(i), 1}),
		gateway6: netip.MustParseAddr(fmt.Sprintf("fd66:%d::1", i)),
	}
	// As strict as a distribution may make it.
	sysctls(t, p.ns, map[string]string{"ipv4/conf/all/rp_filter": "1"})
	host := fmt.Sprintf("veth%d", i)
	withNetlink(t, n.ns, func(h *netlink.Handle) error {
		return h.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: host},
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(p.ns.Fd()),
		})
	})
	withNetlink(t, n.ns, func(h *netlink.Handle) error { return configure(h, host, p.gateway4, p.gateway6) })
	withNetlink(t, p.ns, func(h *netlink.Handle) error {
		if err := configure(h, "eth0", p.v4, p.v6); err != nil {
			return err
		}
		for _, gw := range []netip.Addr{p.gateway4, p.gateway6} {
			if err := h.RouteAdd(&netlink.Route{Gw: gw.AsSlice()}); err != nil {
				return fmt.Errorf("add route by %s: %w", gw, err)
			}
		}
		return nil
	})
	return p
}

// ready waits until a new pod can be reached and can reach.
func (n *node) ready(t *testing.T, p pod) {
	t.Helper()
	awaitRefusal(t, n.ns, netip.AddrPortFrom(p.v6, 9))
	awaitRefusal(t, p.ns, netip.AddrPortFrom(p.gateway6, 9))
}

// awaitRefusal waits until a port that nobody listens on says so: the kernel
// takes its time to make a new link's v6 addresses usable.
func awaitRefusal(t *testing.T, ns *linux.NetNS, to netip.AddrPort) {
	t.Helper()
	const try = 20 * time.Millisecond
	for deadline := time.Now().Add(patience); ; {
		ctx, cancel := context.WithTimeout(t.Context(), try)
		_, err := ns.Dial(ctx, to, linux.DialOptions{})
		cancel()
		if errors.Is(err, unix.ECONNREFUSED) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no path to %s: %v", to, err)
		}
	}
}

func configure(h *netlink.Handle, name string, v4, v6 netip.Addr) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if err := h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: v4.AsSlice(), Mask: net.CIDRMask(24, 32)}}); err != nil {
		return err
	}
	if err := h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: v6.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}); err != nil {
		return err
	}
	return h.LinkSetUp(l)
}
