package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

var errNoIdentity = errors.New("tunnel without an identity to expect")

// Endpoints writes an EDS resource.
//
// An endpoint with a tunnel is the internal listener connect_originate, with metadata for where that connects and who
// must answer; its id makes it one host among others, or all would be counted as one. Of an endpoint that is reached
// through its own waypoint (Waypoint), Identity is the waypoint's.
func Endpoints(_ *model.Proxy, e *model.Endpoints) (Resource, error) {
	g := newGroups()
	seen := map[string]bool{}
	for i := range e.Endpoints {
		p := &e.Endpoints[i]
		id := endpointID(p)
		if seen[id] {
			continue
		}
		seen[id] = true
		ep, err := lbEndpoint(p, id)
		if err != nil {
			return Resource{}, fmt.Errorf("write endpoints %q: %w", e.Cluster, err)
		}
		near, ok := nearness(e, p)
		if !ok {
			continue
		}
		g.add(p.Locality, p.Priority*levels+near, ep.LoadBalancingWeight.Value, ep)
	}
	var shares *model.LocalityShare
	if prefers(e.Locality) {
		shares = sharesFrom(e.Locality, e.From)
	}
	return Resource{Type: names.TypeEndpoints, Name: e.Cluster, Message: &endpointv3.ClusterLoadAssignment{
		ClusterName: e.Cluster, Endpoints: g.localities(shares),
	}}, nil
}

// endpointID tells endpoints apart: one service address behind two waypoints is two.
func endpointID(p *model.ProxyEndpoint) string {
	id := p.Address.String()
	if p.Waypoint.IsValid() {
		id += "@" + p.Waypoint.String()
	}
	return id
}

func lbEndpoint(p *model.ProxyEndpoint, id string) (*endpointv3.LbEndpoint, error) {
	ep := &endpointv3.Endpoint{Address: socketAddress(p.Address)}
	fields := map[string]*structpb.Struct{}
	if p.Tunnel {
		if p.Identity == "" {
			return nil, fmt.Errorf("endpoint %s: %w", id, errNoIdentity)
		}
		ep.Address = internalAddress(names.ConnectOriginate, id)
		where := map[string]string{names.KeyLocal: p.Address.String()}
		if p.Waypoint.IsValid() {
			where[names.KeyWaypoint] = p.Waypoint.String()
		}
		fields[names.OriginalDst] = textMetadata(where)
	}
	mesh := map[string]string{names.KeyPrincipal: p.Identity, names.KeyWorkload: p.Workload, names.KeyNamespace: p.Namespace}
	if peer := (names.Peer{
		Workload: p.Workload, Namespace: p.Namespace, CanonicalName: p.CanonicalName, CanonicalRevision: p.CanonicalRevision,
		App: p.App, Version: p.Version, Cluster: p.Cluster,
	}); peer != (names.Peer{}) {
		mesh[names.KeyPeer] = peer.Pack()
	}
	if s := textMetadata(mesh); s != nil {
		fields[names.MetadataMesh] = s
	}
	out := &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: ep},
		LoadBalancingWeight: u32(cmp.Or(p.Weight, 1)),
		HealthStatus:        health(p),
	}
	if len(fields) > 0 {
		out.Metadata = &corev3.Metadata{FilterMetadata: fields}
	}
	return out, nil
}

// health: a draining endpoint gets no new requests, except of sessions that are bound to it.
func health(p *model.ProxyEndpoint) corev3.HealthStatus {
	switch {
	case p.Draining:
		return corev3.HealthStatus_DRAINING
	case p.Unready:
		return corev3.HealthStatus_UNHEALTHY
	}
	return corev3.HealthStatus_UNKNOWN
}

// groups collects endpoints by priority and place.
type groups struct {
	index map[groupKey]*group
}

type groupKey struct {
	priority uint32
	locality model.Locality
}

type group struct {
	weight    uint64
	endpoints []*endpointv3.LbEndpoint
}

func newGroups() *groups { return &groups{index: map[groupKey]*group{}} }

func (g *groups) add(l model.Locality, priority, weight uint32, e *endpointv3.LbEndpoint) {
	key := groupKey{priority, l}
	if g.index[key] == nil {
		g.index[key] = &group{}
	}
	g.index[key].weight += uint64(weight)
	g.index[key].endpoints = append(g.index[key].endpoints, e)
}

// localities writes the groups in order, with priorities that count from 0 without gaps, as Envoy wants them. With
// shares, places get what these say, and others nothing.
func (g *groups) localities(shares *model.LocalityShare) []*endpointv3.LocalityLbEndpoints {
	keys := make([]groupKey, 0, len(g.index))
	for k := range g.index {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b groupKey) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.locality.Region, b.locality.Region),
			cmp.Compare(a.locality.Zone, b.locality.Zone), cmp.Compare(a.locality.Subzone, b.locality.Subzone))
	})
	weights := g.weights(keys, shares)
	var out []*endpointv3.LocalityLbEndpoints
	var level, last uint32
	for _, k := range keys {
		if weights[k] == 0 {
			continue
		}
		if len(out) > 0 && k.priority != last {
			level++
		}
		last = k.priority
		l := &endpointv3.LocalityLbEndpoints{
			LbEndpoints: g.index[k].endpoints, LoadBalancingWeight: u32(weights[k]), Priority: level,
		}
		if k.locality != (model.Locality{}) {
			l.Locality = &corev3.Locality{Region: k.locality.Region, Zone: k.locality.Zone, SubZone: k.locality.Subzone}
		}
		out = append(out, l)
	}
	return out
}
