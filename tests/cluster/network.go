package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Addresses. No route leads out of the cluster's namespaces, so they may equal addresses outside.
const (
	serviceCIDR = "10.96.0.0/16"
	podCIDR     = "10.244.0.0/16"
	dnsIP       = "10.96.0.10"
	netnsDir    = "/run/netns"
	// Bridge is the interface, in the control plane's network namespace, that all bytes between nodes cross.
	Bridge = "br0"
)

func controlPlaneIP() netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, 1}) }
func apiServiceIP() netip.Addr   { return netip.AddrFrom4([4]byte{10, 96, 0, 1}) }

// node is one of the cluster's nodes.
type node struct {
	index int // from 1
	name  string
	ip    netip.Addr
	pods  netip.Prefix
}

func nodes() []node {
	list := make([]node, nodeCount)
	for i := range list {
		n := byte(i + 1)
		list[i] = node{index: i + 1, name: fmt.Sprintf("n%d", n), ip: netip.AddrFrom4([4]byte{10, 77, 0, 10 + n}),
			pods: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24)}
	}
	return list
}

func (n node) kubelet() string { return "kubelet-" + n.name }

// NodeNames are the Kubernetes names of the nodes.
func NodeNames() []string {
	var names []string
	for _, n := range nodes() {
		names = append(names, n.name)
	}
	return names
}

// NetNS is the network namespace of the control plane and the bridge: the API server, and by routes the
// pods and Services, are reachable from here.
func (c *Cluster) NetNS() string { return c.netnsPath(c.controlPlaneNS()) }

// NodeNetNS is the network namespace of a node.
func (c *Cluster) NodeNetNS(node string) string { return c.netnsPath(c.nodeNS(node)) }

func (c *Cluster) controlPlaneNS() string        { return c.name + "-cp" }
func (c *Cluster) nodeNS(node string) string     { return c.name + "-" + node }
func (c *Cluster) netnsPath(netns string) string { return filepath.Join(netnsDir, netns) }
func (c *Cluster) netnsNames() (names []string) {
	names = append(names, c.controlPlaneNS())
	for _, n := range nodes() {
		names = append(names, c.nodeNS(n.name))
	}
	return names
}

// createNetwork makes the namespaces, the bridge, the nodes' links to it and the routes between pods.
func (c *Cluster) createNetwork() error {
	if err := shareNetNSDir(); err != nil {
		return err
	}
	if err := c.createControlPlaneNetwork(); err != nil {
		return err
	}
	for _, n := range nodes() {
		if err := c.createNodeNetwork(n); err != nil {
			return fmt.Errorf("make the network of node %q: %w", n.name, err)
		}
	}
	return inNetNS(c.controlPlaneNS(), func(h *netlink.Handle) error {
		for _, n := range nodes() {
			if err := addRoute(h, n.pods, n.ip, Bridge); err != nil {
				return err
			}
		}
		// Services are reachable from here through the first node's kube-proxy, for the API server's webhooks and for people.
		return addRoute(h, netip.MustParsePrefix(serviceCIDR), nodes()[0].ip, Bridge)
	})
}

func (c *Cluster) createControlPlaneNetwork() error {
	if err := newNetNS(c.controlPlaneNS()); err != nil {
		return err
	}
	return inNetNS(c.controlPlaneNS(), func(h *netlink.Handle) error {
		if err := errors.Join(writeSysctl("net/ipv4/ip_forward", "1"), writeSysctl("net/bridge/bridge-nf-call-iptables", "0")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: Bridge}}); err != nil {
			return fmt.Errorf("make the bridge: %w", err)
		}
		if err := linkUp(h, "lo"); err != nil {
			return err
		}
		return addAddress(h, Bridge, netip.PrefixFrom(controlPlaneIP(), 24))
	})
}

func (c *Cluster) createNodeNetwork(n node) error {
	if err := newNetNS(c.nodeNS(n.name)); err != nil {
		return err
	}
	peer, err := netns.GetFromName(c.nodeNS(n.name))
	if err != nil {
		return fmt.Errorf("open its namespace: %w", err)
	}
	defer func() { _ = peer.Close() }()
	err = inNetNS(c.controlPlaneNS(), func(h *netlink.Handle) error {
		bridge, err := h.LinkByName(Bridge)
		if err != nil {
			return fmt.Errorf("find the bridge: %w", err)
		}
		host := "to-" + n.name
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host, MasterIndex: bridge.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(peer)}
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("make its link: %w", err)
		}
		return linkUp(h, host)
	})
	if err != nil {
		return err
	}
	return inNetNS(c.nodeNS(n.name), func(h *netlink.Handle) error {
		if err := linkUp(h, "lo"); err != nil {
			return err
		}
		if err := addAddress(h, "eth0", netip.PrefixFrom(n.ip, 24)); err != nil {
			return err
		}
		// The default route ends in the control plane's namespace, which has no uplink.
		if err := addRoute(h, netip.PrefixFrom(netip.IPv4Unspecified(), 0), controlPlaneIP(), "eth0"); err != nil {
			return err
		}
		for _, other := range nodes() {
			if other.index == n.index {
				continue
			}
			if err := addRoute(h, other.pods, other.ip, "eth0"); err != nil {
				return err
			}
		}
		return nil
	})
}

// shareNetNSDir makes the directory of named namespaces a shared mount, as ip-netns(8) does. Otherwise the next
// `ip netns add` on this machine would do so, and hide our names under its mount.
func shareNetNSDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("make %q: %w", netnsDir, err)
	}
	share := func() error { return unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err := share()
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("share %q: %w", netnsDir, err)
	}
	return nil
}

// newNetNS makes a named network namespace, on a thread that ends with it.
func newNetNS(name string) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		handle, err := netns.NewNamed(name)
		if err != nil {
			errc <- fmt.Errorf("make network namespace %q: %w", name, err)
			return
		}
		errc <- handle.Close()
	}()
	return <-errc
}

// inNetNS runs f on a thread inside the namespace; the thread ends with it.
func inNetNS(name string, f func(*netlink.Handle) error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		errc <- func() error {
			handle, err := netns.GetFromName(name)
			if err != nil {
				return fmt.Errorf("open network namespace %q: %w", name, err)
			}
			defer func() { _ = handle.Close() }()
			if err := netns.Set(handle); err != nil {
				return fmt.Errorf("enter network namespace %q: %w", name, err)
			}
			h, err := netlink.NewHandle()
			if err != nil {
				return fmt.Errorf("open netlink in %q: %w", name, err)
			}
			defer h.Close()
			return f(h)
		}()
	}()
	return <-errc
}

// deleteNetNS unmounts and removes the name; the kernel frees the namespace with its last user.
func deleteNetNS(name string) error {
	err := netns.DeleteNamed(name)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	// The file of a run that was killed between making and mounting it.
	if err := os.Remove(filepath.Join(netnsDir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace %q: %w", name, err)
	}
	return nil
}

func linkUp(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %q: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set interface %q up: %w", name, err)
	}
	return nil
}

func addAddress(h *netlink.Handle, name string, p netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %q: %w", name, err)
	}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
		return fmt.Errorf("add address %s to %q: %w", p, name, err)
	}
	return linkUp(h, name)
}

func addRoute(h *netlink.Handle, to netip.Prefix, via netip.Addr, dev string) error {
	link, err := h.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("find interface %q: %w", dev, err)
	}
	if err := h.RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice(), LinkIndex: link.Attrs().Index}); err != nil {
		return fmt.Errorf("add route to %s: %w", to, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// writeSysctl sets a value of the calling thread's network namespace.
func writeSysctl(name, value string) error {
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %q: %w", name, err)
	}
	return nil
}
