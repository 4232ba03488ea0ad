// Package translate turns API objects into istiod's model and the model into
// what goes on the wire: one file per kind, pure functions of their arguments,
// no state, no clock, no lookups. Package graph calls it: it collects what a
// function needs and decides when to call it again.
//
// What always holds: the same input gives the same output; an input is never
// changed; an object that cannot be translated gives an error that names the
// field, never a panic, and never allows more than the user wrote.
//
// It does not choose which objects belong together (graph does) and does not
// encode bytes (push does).
package translate

import (
	"fmt"
	"net/netip"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Config is what every translation shares: constants of one control plane.
type Config struct {
	// ClusterID is part of every workload's uid.
	ClusterID string
	// Network names the network that all addresses of this cluster are in; empty is a valid name.
	Network string
	// TrustDomain of all identities.
	TrustDomain string
	// Domain is the cluster's DNS domain, "cluster.local" by default.
	Domain string
	// RootNamespace is where a policy without selector applies to the whole mesh.
	RootNamespace string
}

// NetworkIP is the alias by which a proxy asks for whatever owns an address.
func NetworkIP(network string, ip netip.Addr) string { return network + "/" + ip.String() }

// waypointAddress is where a proxy finds the waypoint; nil without one.
func waypointAddress(cfg Config, w *model.Waypoint) *workload.GatewayAddress {
	if w == nil {
		return nil
	}
	out := &workload.GatewayAddress{HboneMtlsPort: uint32(w.HBONEPort)}
	if w.Hostname != "" {
		out.Destination = &workload.GatewayAddress_Hostname{
			Hostname: &workload.NamespacedHostname{Namespace: w.Namespace, Hostname: w.Hostname},
		}
		return out
	}
	out.Destination = &workload.GatewayAddress_Address{
		Address: &workload.NetworkAddress{Network: cfg.Network, Address: w.Address.AsSlice()},
	}
	return out
}

// parseAddr reads an address and refuses what cannot be an endpoint or virtual address.
func parseAddr(field, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read %s %q: %w", field, s, err)
	}
	if a.Zone() != "" || a.IsUnspecified() {
		return netip.Addr{}, fmt.Errorf("read %s %q: not an address of one host", field, s)
	}
	return a.Unmap(), nil
}

// parsePort reads a port number.
func parsePort(field string, n int64) (uint16, error) {
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("read %s %d: not a port", field, n)
	}
	return uint16(n), nil
}
