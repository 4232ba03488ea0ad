package resolve

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/graph"
	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// endpoints lists where a service port's traffic goes, with the labels of a subset.
func (b *builder) endpoints(c *model.Cluster, s *index.Service, port model.ServicePort, labels map[string]string) *model.Endpoints {
	out := &model.Endpoints{Cluster: c.Name}
	if via := b.waypointOf(s); via != nil {
		out.Endpoints = b.through(via, s, port)
		return out
	}
	if s.Entry != nil {
		out.Endpoints = b.entryEndpoints(s, port, labels)
	} else {
		for _, e := range b.r.EndpointsOf(s.Key) {
			if p, ok := b.endpoint(&e, port, labels); ok && e.Ready {
				out.Endpoints = append(out.Endpoints, p)
			}
		}
	}
	if t := c.Policy.TLS; t != nil && t.Mode == model.TLSDisable {
		for i := range out.Endpoints {
			out.Endpoints[i].Tunnel = false
		}
	}
	b.place(out, c, s)
	slices.SortFunc(out.Endpoints, func(x, y model.ProxyEndpoint) int { return x.Address.Compare(y.Address) })
	return out
}

// endpoint is one of a service's own; false if it lacks the port or a label.
func (b *builder) endpoint(e *graph.Endpoint, port model.ServicePort, labels map[string]string) (model.ProxyEndpoint, bool) {
	target, ok := e.Target(port)
	if !ok {
		return model.ProxyEndpoint{}, false
	}
	out := model.ProxyEndpoint{Address: netip.AddrPortFrom(e.Address, target), Locality: e.Locality, Cluster: b.r.ClusterID}
	if e.Pod == nil {
		return out, len(labels) == 0
	}
	if !labelled(labels, e.Pod.Labels) {
		return out, false
	}
	describe(&out, e.Pod, b.r.TrustDomain)
	return out, true
}

// describe fills in what a pod says of an endpoint.
func describe(out *model.ProxyEndpoint, p *model.Pod, trustDomain string) {
	out.Tunnel = p.Tunnel || p.NativeTunnel
	if out.Tunnel {
		out.Identity = Identity(trustDomain, p.Namespace, p.ServiceAccount)
	}
	out.Workload, out.Namespace, out.Labels = p.Owner, p.Namespace, p.Labels
	out.App, out.Version = p.Labels["app"], p.Labels["version"]
	out.CanonicalName = firstOf(p.Labels, p.Owner, ports.LabelCanonicalName, "app.kubernetes.io/name", "app")
	out.CanonicalRevision = firstOf(p.Labels, "latest", ports.LabelCanonicalRevision, "app.kubernetes.io/version", "version")
}

func firstOf(labels map[string]string, fallback string, names ...string) string {
	for _, n := range names {
		if v := labels[n]; v != "" {
			return v
		}
	}
	return fallback
}

// Identity is a workload's SPIFFE id.
func Identity(trustDomain, namespace, account string) string {
	return "spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + account
}

// waypointOf is the waypoint that a gateway must go through to reach a service, if its label says so.
func (b *builder) waypointOf(s *index.Service) *model.Waypoint {
	if b.t.Waypoint {
		return nil
	}
	if bound := b.r.BindingOf(s); bound.Ingress && bound.Waypoint != nil && bound.Waypoint.Ready {
		return bound.Waypoint
	}
	return nil
}

// through asks each replica of a waypoint for the service port: the waypoint chooses the endpoint.
func (b *builder) through(w *model.Waypoint, s *index.Service, port model.ServicePort) []model.ProxyEndpoint {
	if len(s.VIPs) == 0 {
		return nil
	}
	key, ok := b.r.HostKey(w.Hostname)
	if !ok {
		return nil
	}
	var out []model.ProxyEndpoint
	for _, e := range b.r.EndpointsOf(key) {
		if !e.Ready || e.Pod == nil {
			continue
		}
		p := model.ProxyEndpoint{
			Address:  netip.AddrPortFrom(s.VIPs[0], port.Port),
			Waypoint: netip.AddrPortFrom(e.Address, w.HBONEPort), Locality: e.Locality, Cluster: b.r.ClusterID,
		}
		describe(&p, e.Pod, b.r.TrustDomain)
		p.Tunnel, p.Identity = true, Identity(b.r.TrustDomain, e.Pod.Namespace, e.Pod.ServiceAccount)
		out = append(out, p)
	}
	return out
}

// entryEndpoints are those of a ServiceEntry: the ones it lists, and the pods that its selector chooses.
func (b *builder) entryEndpoints(s *index.Service, port model.ServicePort, labels map[string]string) []model.ProxyEndpoint {
	var out []model.ProxyEndpoint
	for _, e := range s.Entry.Endpoints {
		if !e.Address.IsValid() || !labelled(labels, e.Labels) {
			continue
		}
		out = append(out, model.ProxyEndpoint{
			Address: netip.AddrPortFrom(e.Address, entryPort(&e, port)), Locality: e.Locality, Weight: e.Weight, Labels: e.Labels,
			Namespace: s.Namespace, Cluster: b.r.ClusterID,
		})
	}
	if len(s.Entry.Selector) > 0 {
		for _, p := range b.r.PodsIn(s.Namespace, s.Entry.Selector) {
			if !p.Ready || len(p.IPs) == 0 {
				continue
			}
			e := graph.Endpoint{Pod: p, Address: p.IPs[0], Ready: true, Locality: b.r.Mesh.Locality(p.Node)}
			if pe, ok := b.endpoint(&e, port, labels); ok {
				out = append(out, pe)
			}
		}
	}
	if len(s.Entry.Endpoints) == 0 && len(s.Entry.Selector) == 0 {
		// Without endpoints the addresses themselves are.
		for _, a := range s.VIPs {
			out = append(out, model.ProxyEndpoint{Address: netip.AddrPortFrom(a, target(port)), Namespace: s.Namespace, Cluster: b.r.ClusterID})
		}
	}
	return out
}

func target(p model.ServicePort) uint16 {
	if p.Target != 0 {
		return p.Target
	}
	return p.Port
}

// entryPort is where an endpoint of a ServiceEntry has a port of the entry.
func entryPort(e *model.EntryEndpoint, p model.ServicePort) uint16 {
	if n := e.Ports[p.Name]; n != 0 {
		return n
	}
	return target(p)
}

// dnsEndpoints are the names to resolve for a host: those that the entry lists, else the host.
func dnsEndpoints(s *index.Service, host string, port model.ServicePort, labels map[string]string) []model.DNSEndpoint {
	var out []model.DNSEndpoint
	for _, e := range s.Entry.Endpoints {
		if !labelled(labels, e.Labels) {
			continue
		}
		name := e.Host
		if name == "" {
			name = e.Address.String()
		}
		out = append(out, model.DNSEndpoint{Host: name, Port: entryPort(&e, port), Weight: e.Weight, Locality: e.Locality})
	}
	if len(s.Entry.Endpoints) == 0 {
		out = append(out, model.DNSEndpoint{Host: host, Port: target(port)})
	}
	slices.SortFunc(out, func(a, b model.DNSEndpoint) int { return strings.Compare(a.Host, b.Host) })
	return out
}
