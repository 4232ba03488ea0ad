// Package podnet prepares a pod's network namespace for capture: the policy
// routing that turns marked packets to loopback, and the sysctls that carry
// marks over to answers. Both kinds of capture use it.
//
// What it sets up has no effect on packets without a mark of ours. It is
// therefore left in place when a pod is un-enrolled, where captured connections
// that still live need it.
package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/linux"
)

// rulePriority comes after the table "local" (0) and before any rule that a CNI
// may have made: marks of ours are never meant for those.
const rulePriority = 100

// Link is a network interface.
type Link struct {
	Index int
	Name  string
}

// Interfaces are what a namespace has.
type Interfaces struct {
	Addrs []netip.Addr // all but loopback ones, without zones
	Links []Link       // all but lo
}

// Read lists the namespace's interfaces and addresses.
func Read(ns *linux.NetNS) (Interfaces, error) {
	var i Interfaces
	err := withHandle(ns, func(h *netlink.Handle) error {
		links, err := h.LinkList()
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		for _, l := range links {
			if l.Attrs().Flags&net.FlagLoopback == 0 {
				i.Links = append(i.Links, Link{l.Attrs().Index, l.Attrs().Name})
			}
		}
		addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.Unmap().IsLoopback() {
				i.Addrs = append(i.Addrs, ip.Unmap())
			}
		}
		return nil
	})
	return i, err
}

// Setup is what a namespace needs.
type Setup struct {
	Sources []netip.Addr // at most one of each family: what marked sockets get as source address
	Marks   []uint32     // go to loopback
	Sysctls []string     // set to 1
}

// Sources picks the source address of each family among those that the
// namespace has: one that Kubernetes knows too, if there is one.
func Sources(ips, found []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, is4 := range []bool{true, false} {
		usable := func(a netip.Addr) bool { return a.Is4() == is4 && !a.IsLinkLocalUnicast() }
		known := func(a netip.Addr) bool { return usable(a) && slices.Contains(ips, a) }
		i := slices.IndexFunc(found, known)
		if i < 0 {
			i = slices.IndexFunc(found, usable)
		}
		if i >= 0 {
			out = append(out, found[i])
		}
	}
	return out
}

// Apply sets everything up; what is there already stays.
func (s Setup) Apply(ns *linux.NetNS) error {
	for _, name := range s.Sysctls {
		if err := ns.SetSysctl(name, "1"); err != nil {
			return err
		}
	}
	return withHandle(ns, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		// Sandboxes start with lo down; without it captured packets have nowhere to go.
		if lo.Attrs().Flags&net.FlagUp == 0 {
			if err := h.LinkSetUp(lo); err != nil {
				return fmt.Errorf("set lo up: %w", err)
			}
		}
		for _, src := range s.Sources {
			if err := h.RouteReplace(route(src)); err != nil {
				return fmt.Errorf("set local route with source %q: %w", src, err)
			}
			for _, mark := range s.Marks {
				if err := h.RuleAdd(rule(src, mark)); err != nil && !errors.Is(err, unix.EEXIST) {
					return fmt.Errorf("add rule for mark %#x: %w", mark, err)
				}
			}
		}
		return nil
	})
}

// Check returns what Apply would have to set up again, joined.
func (s Setup) Check(ns *linux.NetNS) error {
	var missing []error
	for _, name := range s.Sysctls {
		if v, err := ns.Sysctl(name); err != nil || v != "1" {
			missing = append(missing, fmt.Errorf("sysctl %q is %q: %w", name, v, errOr(err, errChanged)))
		}
	}
	err := withHandle(ns, func(h *netlink.Handle) error {
		for _, src := range s.Sources {
			r := route(src)
			routes, err := h.RouteListFiltered(family(src), r, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_OIF)
			if err != nil {
				return fmt.Errorf("list routes: %w", err)
			}
			if !slices.ContainsFunc(routes, func(x netlink.Route) bool { return isDefault(x.Dst) && x.Src.Equal(r.Src) }) {
				missing = append(missing, fmt.Errorf("local route with source %q: %w", src, errGone))
			}
			rules, err := h.RuleList(family(src))
			if err != nil {
				return fmt.Errorf("list rules: %w", err)
			}
			for _, mark := range s.Marks {
				if !slices.ContainsFunc(rules, sameRule(rule(src, mark))) {
					missing = append(missing, fmt.Errorf("rule for mark %#x, source %q: %w", mark, src, errGone))
				}
			}
		}
		return nil
	})
	return errors.Join(append(missing, err)...)
}

var (
	errGone    = errors.New("gone")
	errChanged = errors.New("changed")
)

func errOr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// route delivers every destination locally. Its source is what a socket that is
// not bound gets: without it that would be 127.0.0.1.
func route(src netip.Addr) *netlink.Route {
	dst := &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	scope := netlink.SCOPE_UNIVERSE
	if src.Is4() {
		dst = &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		scope = netlink.SCOPE_HOST
	}
	return &netlink.Route{LinkIndex: 1, Dst: dst, Table: ports.CaptureTable, Type: unix.RTN_LOCAL, Scope: scope, Src: src.AsSlice()}
}

func rule(src netip.Addr, mark uint32) *netlink.Rule {
	r := netlink.NewRule()
	mask := uint32(ports.MarkMask)
	r.Family, r.Table, r.Priority, r.Mark, r.Mask = family(src), ports.CaptureTable, rulePriority, mark, &mask
	return r
}

func sameRule(want *netlink.Rule) func(netlink.Rule) bool {
	return func(got netlink.Rule) bool {
		return got.Table == want.Table && got.Priority == want.Priority && got.Mark == want.Mark &&
			got.Mask != nil && *got.Mask == *want.Mask && got.Src == nil && got.Dst == nil
	}
}

func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0
}

// withHandle runs fn with a netlink socket that belongs to ns.
func withHandle(ns *linux.NetNS, fn func(*netlink.Handle) error) error {
	var h *netlink.Handle
	err := ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	return fn(h)
}

// AddLoopbackAddrs gives lo addresses that nothing chooses as its source by
// itself. Those that are there already stay; the error joins those that failed.
func AddLoopbackAddrs(ns *linux.NetNS, addrs ...netip.Addr) error {
	return eachLoopbackAddr(ns, addrs, func(h *netlink.Handle, lo netlink.Link, a *netlink.Addr) error {
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
			a.PreferedLft, a.ValidLft = 0, forever // not preferred: never chosen as a source
		}
		if err := h.AddrReplace(lo, a); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add %q to lo: %w", a.IP, err)
		}
		return nil
	})
}

// RemoveLoopbackAddrs takes addresses off lo, if they are there.
func RemoveLoopbackAddrs(ns *linux.NetNS, addrs ...netip.Addr) error {
	return eachLoopbackAddr(ns, addrs, func(h *netlink.Handle, lo netlink.Link, a *netlink.Addr) error {
		if err := h.AddrDel(lo, a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove %q from lo: %w", a.IP, err)
		}
		return nil
	})
}

func eachLoopbackAddr(ns *linux.NetNS, addrs []netip.Addr, fn func(*netlink.Handle, netlink.Link, *netlink.Addr) error) error {
	return withHandle(ns, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		var errs []error
		for _, a := range addrs {
			na := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Scope: unix.RT_SCOPE_HOST}
			errs = append(errs, fn(h, lo, na))
		}
		return errors.Join(errs...)
	})
}

// forever is the kernel's infinite address lifetime, in seconds.
const forever = 1<<32 - 1
