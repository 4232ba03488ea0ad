package state

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/ambit-mesh/ambit/api/ports"
)

// Resolve says where a connection of src to dst goes. It returns an error only if
// src is nil; a destination of the mesh that cannot be reached as it must be is an
// Upstream of kind Refused with the reason.
func (v *Snapshot) Resolve(src *Workload, dst netip.AddrPort) (Upstream, error) {
	if src == nil {
		return Upstream{}, errors.New("resolve destination: the source workload is not known")
	}
	dst = netip.AddrPortFrom(plain(dst.Addr()), dst.Port())
	if svc := v.ServiceByVIP(src.Network, dst.Addr(), src.Namespace); svc != nil {
		return v.toService(src, svc, dst), nil
	}
	if w := v.WorkloadByIP(src.Network, dst.Addr()); w != nil {
		if w.Waypoint != nil && !v.isWaypoint(src, w.Waypoint, w.Namespace) {
			return v.toWaypoint(src, w.Waypoint, nil, dst), nil
		}
		return toWorkload(src, w, nil, dst, dst.Port()), nil
	}
	return Upstream{Kind: Passthrough, Addr: dst}, nil
}

func refused(svc *Service, format string, args ...any) Upstream {
	return Upstream{Kind: Refused, Service: svc, Reason: fmt.Sprintf(format, args...)}
}

func (v *Snapshot) toService(src *Workload, svc *Service, dst netip.AddrPort) Upstream {
	if gw := svc.waypoint(); gw != nil && !v.isWaypoint(src, gw, svc.Namespace) {
		return v.toWaypoint(src, gw, svc, dst)
	}
	if svc.LoadBalancing != nil && svc.LoadBalancing.Mode == ModePassthrough {
		return Upstream{Kind: Passthrough, Service: svc, Addr: dst}
	}
	w, port, reason := v.choose(src, svc, dst.Port(), false)
	if w == nil {
		return refused(svc, "service %s %s", svc.Key(), reason)
	}
	return toWorkload(src, w, svc, dst, port)
}

// waypoint picks one of the weighted waypoints, else the one.
func (s *Service) waypoint() *GatewayAddress {
	var total uint64
	for i := range s.WeightedWaypoints {
		total += uint64(s.WeightedWaypoints[i].Weight)
	}
	if total == 0 {
		return s.Waypoint
	}
	n := rand.Uint64N(total)
	for i := range s.WeightedWaypoints {
		w := uint64(s.WeightedWaypoints[i].Weight)
		if n < w {
			return &s.WeightedWaypoints[i].Destination
		}
		n -= w
	}
	return s.Waypoint
}

// toWorkload goes straight to w, which was found by address or chosen for svc.
func toWorkload(src, w *Workload, svc *Service, dst netip.AddrPort, port uint16) Upstream {
	if w.Network != src.Network {
		return refused(svc, "workload %s is on network %q: other networks cannot be reached yet", w.UID, w.Network)
	}
	ip, ok := pickAddress(w, svc, dst.Addr())
	if !ok {
		if w.Hostname != "" && len(w.Addresses) == 0 {
			return refused(svc, "workload %s has only a host name, %q: host names of endpoints cannot be resolved yet", w.UID, w.Hostname)
		}
		return refused(svc, "workload %s has no address of a family that the service allows", w.UID)
	}
	app := netip.AddrPortFrom(ip, port)
	u := Upstream{Kind: Plaintext, Workload: w, Service: svc, Addr: app}
	if w.Protocol == ProtocolHBONE {
		u.Kind = HBONE
		u.Tunnel = netip.AddrPortFrom(ip, ports.HBONE)
		u.Authority = app.String()
		u.SANs = sans(w, svc)
	}
	return u
}

// pickAddress takes the address that was asked for, else one that the service's
// families allow, of the family that was asked for if there is one.
func pickAddress(w *Workload, svc *Service, asked netip.Addr) (netip.Addr, bool) {
	var found netip.Addr
	for _, a := range w.Addresses {
		if a == asked {
			return a, true
		}
		if svc != nil && (svc.IPFamilies == IPv4Only && !a.Is4() || svc.IPFamilies == IPv6Only && !a.Is6()) {
			continue
		}
		if !found.IsValid() || found.Is4() != asked.Is4() && a.Is4() == asked.Is4() {
			found = a
		}
	}
	return found, found.IsValid()
}

// sans is the identities that the server at w may have.
func sans(w *Workload, svc *Service) []string {
	own := w.Identity().String()
	if svc == nil || len(svc.SubjectAltNames) == 0 {
		return []string{own}
	}
	return append([]string{own}, svc.SubjectAltNames...)
}

// toWaypoint tunnels to a waypoint, with what was asked for as authority. svc is the
// service that was asked for, if any.
func (v *Snapshot) toWaypoint(src *Workload, gw *GatewayAddress, svc *Service, dst netip.AddrPort) Upstream {
	host, w := v.gateway(gw, src.Network, src.Namespace)
	port := gw.HBONEPort
	switch {
	case host != nil:
		var reason string
		if w, port, reason = v.choose(src, host, gw.HBONEPort, true); w == nil {
			return refused(svc, "waypoint %s %s", gw, reason)
		}
	case w == nil:
		return refused(svc, "waypoint %s is not known", gw)
	}
	if w.Network != src.Network {
		return refused(svc, "waypoint %s is on network %q: other networks cannot be reached yet", gw, w.Network)
	}
	asked := dst.Addr()
	if gw.Address.IsValid() {
		asked = gw.Address
	}
	ip, ok := pickAddress(w, host, asked)
	if !ok {
		return refused(svc, "waypoint %s: workload %s has no usable address", gw, w.UID)
	}
	return Upstream{
		Kind: HBONE, Workload: w, Service: svc, Addr: dst, Tunnel: netip.AddrPortFrom(ip, port),
		Authority: dst.String(), SANs: sans(w, host), Waypoint: true,
	}
}

// gateway finds the service or the workload that gw names.
func (v *Snapshot) gateway(gw *GatewayAddress, network, ns string) (*Service, *Workload) {
	if gw.Hostname != "" {
		key := gw.Namespace + "/" + gw.Hostname
		if s := v.ServiceByKey(key); s != nil {
			return s, nil
		}
		w, _ := v.byHost.Get(key)
		return nil, w
	}
	if gw.Network != "" {
		network = gw.Network
	}
	if s := v.ServiceByVIP(network, gw.Address, ns); s != nil {
		return s, nil
	}
	return nil, v.WorkloadByIP(network, gw.Address)
}

// isWaypoint says whether src is one of the workloads behind gw: its own traffic has
// passed the waypoint already.
func (v *Snapshot) isWaypoint(src *Workload, gw *GatewayAddress, ns string) bool {
	s, w := v.gateway(gw, src.Network, ns)
	if s == nil {
		return w != nil && w.UID == src.UID
	}
	for _, m := range src.Services {
		if m.Key == s.Key() {
			return true
		}
	}
	return false
}

// String names the gateway in messages.
func (g *GatewayAddress) String() string {
	if g.Hostname != "" {
		return g.Namespace + "/" + g.Hostname
	}
	return g.Network + "/" + g.Address.String()
}
