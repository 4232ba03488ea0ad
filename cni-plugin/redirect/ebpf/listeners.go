package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/internal/linux"
)

// The listeners are bound to an address that nobody can reach, each with a port
// that the kernel chooses: lookup gives them connections regardless of what they
// are bound to. So they take no port of the app's, and the app can't call them
// and make the proxy call itself. It is the dummy address of RFC 7600, as
// v4-mapped v6: a socket bound to any other v6 address would refuse v4.
const (
	listenMapped = "::ffff:192.0.0.8"
	listenV4     = "192.0.0.8" // for kernels without IPv6
)

// OpenListeners implements redirect.Redirector.
func (r *Redirector) OpenListeners(pod redirect.Pod) (redirect.Listeners, error) {
	ls, err := openListeners(pod.NetNS)
	if err != nil {
		return ls, fmt.Errorf("open listeners of pod %q: %w", pod.UID, err)
	}
	return ls, nil
}

func openListeners(ns *linux.NetNS) (ls redirect.Listeners, err error) {
	for _, f := range []**os.File{&ls.Outbound, &ls.InboundPlaintext, &ls.InboundHBONE} {
		// No mark: what a listener accepts gets the mark of the connection's first packet.
		o := linux.ListenOptions{Addr: netip.AddrPortFrom(netip.MustParseAddr(listenMapped), 0), Transparent: true, DualStack: true}
		*f, err = ns.Listen(o)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			o.Addr = netip.AddrPortFrom(netip.MustParseAddr(listenV4), 0)
			*f, err = ns.Listen(o)
		}
		if err != nil {
			ls.Close()
			return redirect.Listeners{}, err
		}
	}
	return ls, nil
}

func putListeners(m *ebpf.Map, ls redirect.Listeners) error {
	for role, f := range map[bpf.SteerRole]*os.File{
		bpf.SteerRoleOUTBOUND:          ls.Outbound,
		bpf.SteerRoleINBOUND_PLAINTEXT: ls.InboundPlaintext,
		bpf.SteerRoleINBOUND_HBONE:     ls.InboundHBONE,
	} {
		if err := linux.WithFD(f, func(fd int) error { return m.Put(uint32(role), uint64(fd)) }); err != nil {
			return fmt.Errorf("put %s listener into the map: %w", roleName(role), err)
		}
	}
	return nil
}

// listening returns the roles that have a socket.
func listening(m *ebpf.Map) (roles []bpf.SteerRole) {
	for role := range bpf.SteerRoleROLES {
		var cookie uint64
		if m.Lookup(uint32(role), &cookie) == nil {
			roles = append(roles, role)
		}
	}
	return roles
}

func roleName(r bpf.SteerRole) string {
	switch r {
	case bpf.SteerRoleOUTBOUND:
		return "outbound"
	case bpf.SteerRoleINBOUND_PLAINTEXT:
		return "inbound plaintext"
	default:
		return "inbound HBONE"
	}
}
