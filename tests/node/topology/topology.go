// Package topology builds nodes and pods out of anonymous network namespaces for
// tests and the benchmark: a fabric (one bridge), nodes on it, pods behind each
// node, all routed, IPv4 and IPv6, without an uplink. Namespaces have no name, so
// nothing is left when the process that made them dies. It makes no capture and
// runs no process.
package topology

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/linux"
)

// Limits of the address plan.
const (
	// MaxNodes on a fabric: the node's number is the third byte of its pods' addresses.
	MaxNodes = 200
	// MaxPods on a node: the pod's number is the last byte of its address.
	MaxPods = 200
)

// Fabric joins nodes. Not safe for concurrent changes.
type Fabric struct {
	ns    *linux.NetNS
	Nodes []*Node
}

// Node is a network namespace that routes between its pods and the fabric.
type Node struct {
	Name   string
	Number int
	NetNS  *linux.NetNS
	IP     netip.Addr
	IP6    netip.Addr
	Pods   []*Pod
}

// Pod is a network namespace with one interface, eth0.
type Pod struct {
	Name  string
	Node  *Node
	NetNS *linux.NetNS
	IP    netip.Addr
	IP6   netip.Addr
}

// IPs are the pod's addresses, IPv4 first.
func (p *Pod) IPs() []netip.Addr { return []netip.Addr{p.IP, p.IP6} }

// New makes a fabric with n nodes. The caller closes it.
func New(n int) (*Fabric, error) {
	if n < 1 || n > MaxNodes {
		return nil, fmt.Errorf("make fabric with %d nodes: must be 1 to %d", n, MaxNodes)
	}
	ns, err := newNetNS()
	if err != nil {
		return nil, err
	}
	f := &Fabric{ns: ns}
	if err := f.build(n); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Fabric) build(n int) error {
	h, err := handle(f.ns)
	if err != nil {
		return err
	}
	defer h.Close()
	br, err := addBridge(h)
	if err != nil {
		return err
	}
	for i := 1; i <= n; i++ {
		if err := f.addNode(h, br, i); err != nil {
			return fmt.Errorf("add node %d: %w", i, err)
		}
	}
	for _, a := range f.Nodes {
		for _, b := range f.Nodes {
			if err := a.routeTo(b); err != nil {
				return fmt.Errorf("route from node %q to %q: %w", a.Name, b.Name, err)
			}
		}
	}
	return nil
}

func (f *Fabric) addNode(h *netlink.Handle, br netlink.Link, i int) error {
	ns, err := newNetNS()
	if err != nil {
		return err
	}
	n := &Node{
		Name: fmt.Sprintf("node%d", i), Number: i, NetNS: ns,
		IP:  netip.AddrFrom4([4]byte{10, 250, 0, byte(i)}),
		IP6: netip.MustParseAddr(fmt.Sprintf("fd00:250::%d", i)),
	}
	f.Nodes = append(f.Nodes, n)
	if err := addVeth(h, br, fmt.Sprintf("to-%s", n.Name), ns); err != nil {
		return err
	}
	nh, err := handle(ns)
	if err != nil {
		return err
	}
	defer nh.Close()
	if err := addresses(nh, "eth0", netip.PrefixFrom(n.IP, 24), netip.PrefixFrom(n.IP6, 64)); err != nil {
		return err
	}
	podBridge, err := addBridge(nh)
	if err != nil {
		return err
	}
	if err := addresses(nh, podBridge.Attrs().Name, netip.PrefixFrom(n.pod4(1), 24), netip.PrefixFrom(n.pod6(1), 64)); err != nil {
		return err
	}
	return ns.Do(func() error {
		return sysctls(map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"})
	})
}

func (n *Node) pod4(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 250, byte(n.Number), byte(i)})
}

func (n *Node) pod6(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:250:%x::%x", n.Number, i))
}

func (n *Node) routeTo(other *Node) error {
	if n == other {
		return nil
	}
	h, err := handle(n.NetNS)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, r := range []struct {
		dst netip.Prefix
		gw  netip.Addr
	}{
		{netip.PrefixFrom(other.pod4(0), 24), other.IP},
		{netip.PrefixFrom(other.pod6(0), 64), other.IP6},
	} {
		if err := h.RouteAdd(&netlink.Route{Dst: ipNet(r.dst), Gw: r.gw.AsSlice()}); err != nil {
			return fmt.Errorf("add route to %q: %w", r.dst, err)
		}
	}
	return nil
}

// AddPod adds a pod to the node. It is closed with the fabric.
func (n *Node) AddPod(name string) (*Pod, error) {
	i := len(n.Pods) + 10
	if i > MaxPods {
		return nil, fmt.Errorf("add pod %q: node %q is full", name, n.Name)
	}
	ns, err := newNetNS()
	if err != nil {
		return nil, err
	}
	p := &Pod{Name: name, Node: n, NetNS: ns, IP: n.pod4(i), IP6: n.pod6(i)}
	n.Pods = append(n.Pods, p)
	h, err := handle(n.NetNS)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	br, err := h.LinkByName(bridgeName)
	if err != nil {
		return nil, err
	}
	if err := addVeth(h, br, fmt.Sprintf("pod%d", i), ns); err != nil {
		return nil, fmt.Errorf("add pod %q: %w", name, err)
	}
	ph, err := handle(ns)
	if err != nil {
		return nil, err
	}
	defer ph.Close()
	if err := addresses(ph, "eth0", netip.PrefixFrom(p.IP, 24), netip.PrefixFrom(p.IP6, 64)); err != nil {
		return nil, fmt.Errorf("add pod %q: %w", name, err)
	}
	for _, gw := range []netip.Addr{n.pod4(1), n.pod6(1)} {
		if err := ph.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(unspecified(gw), 0)), Gw: gw.AsSlice()}); err != nil {
			return nil, fmt.Errorf("add pod %q: default route: %w", name, err)
		}
	}
	return p, nil
}

// Close lets every namespace go. Processes that run in one keep it alive.
func (f *Fabric) Close() error {
	errs := []error{f.ns.Close()}
	for _, n := range f.Nodes {
		errs = append(errs, n.NetNS.Close())
		for _, p := range n.Pods {
			errs = append(errs, p.NetNS.Close())
		}
	}
	return errors.Join(errs...)
}

const bridgeName = "br0"

// newNetNS makes an anonymous namespace with loopback up. The thread that was
// moved into it ends with its goroutine.
func newNetNS() (*linux.NetNS, error) {
	type result struct {
		ns  *linux.NetNS
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not return to the pool
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("make netns: %w", err)}
			return
		}
		ns, err := linux.CurrentNetNS()
		done <- result{ns, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, r.err
	}
	h, err := handle(r.ns)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	return r.ns, err
}

func handle(ns *linux.NetNS) (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open netlink in netns %d: %w", ns.Inode(), err)
	}
	return h, nil
}

func addBridge(h *netlink.Handle) (netlink.Link, error) {
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := h.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("add bridge %q: %w", bridgeName, err)
	}
	return br, h.LinkSetUp(br)
}

// addVeth joins ns, as its eth0, to the bridge.
func addVeth(h *netlink.Handle, br netlink.Link, name string, ns *linux.NetNS) error {
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: br.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd())}
	if err := h.LinkAdd(v); err != nil {
		return fmt.Errorf("add veth %q: %w", name, err)
	}
	return h.LinkSetUp(v)
}

func addresses(h *netlink.Handle, link string, ps ...netip.Prefix) error {
	l, err := h.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %q: %w", link, err)
	}
	for _, p := range ps {
		// No duplicate address detection: the address works at once.
		if err := h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("add address %q to %q: %w", p, link, err)
		}
	}
	return h.LinkSetUp(l)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// sysctls writes settings of the current thread's netns.
func sysctls(kv map[string]string) error {
	for k, v := range kv {
		if err := os.WriteFile("/proc/sys/"+k, []byte(v), 0); err != nil {
			return fmt.Errorf("set sysctl %q: %w", k, err)
		}
	}
	return nil
}
