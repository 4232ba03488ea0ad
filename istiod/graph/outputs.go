package graph

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// flush computes what is dirty and hands on what came out different.
func (g *Graph) flush() {
	d := g.dirty
	g.dirty = newDirty()
	auth := &collector{g: g, change: push.Change{Type: ports.TypeAuthorization}}
	addr := &collector{g: g, change: push.Change{Type: ports.TypeAddress}}
	for k := range d.policies {
		if p := g.policies[k]; p != nil && p.Wire != nil {
			auth.put(translate.PolicyName(k), p.Wire, nil, nil)
		} else {
			auth.remove(translate.PolicyName(k))
		}
	}
	for k := range d.peerAuths {
		g.flushPeerAuth(auth, k)
	}
	if d.static {
		static := translate.StaticStrict(g.cfg.Config)
		name := translate.PolicyName(model.Key{Namespace: static.GetNamespace(), Name: static.GetName()})
		if len(g.peerAuths) > 0 {
			auth.put(name, static, nil, nil)
		} else {
			auth.remove(name)
		}
	}
	for k := range d.services {
		g.flushService(addr, k)
	}
	for k := range d.entries {
		g.flushEntry(addr, k)
	}
	for k := range g.dirty.pods { // those of services whose waypoint becomes the only way, or no longer is
		d.pods[k] = struct{}{}
	}
	g.dirty.pods = set{}
	for k := range d.pods {
		g.flushPod(addr, k)
	}
	g.flushGroups(auth)
	var changes []push.Change
	for _, c := range []*collector{auth, addr} {
		if len(c.change.Upsert)+len(c.change.Removed) > 0 {
			changes = append(changes, c.change)
		}
	}
	if len(changes) > 0 {
		g.sink.Apply(changes)
	}
}

// collector gathers the differences of one type.
type collector struct {
	g      *Graph
	change push.Change
}

func (c *collector) put(name string, msg proto.Message, aliases, keys []string) {
	r, err := push.NewResource(c.change.Type, name, msg, aliases, keys)
	if err != nil {
		// Only a string that is not UTF-8 cannot be encoded, and no source can deliver one.
		c.g.cfg.Log.Error("output cannot be encoded; the last one stays", "name", name, "error", err)
		return
	}
	out := c.g.outputs[c.change.Type]
	if old := out[name]; old != nil && old.Version == r.Version {
		return
	}
	out[name] = r
	c.change.Upsert = append(c.change.Upsert, r)
}

func (c *collector) remove(name string) {
	out := c.g.outputs[c.change.Type]
	if out[name] == nil {
		return
	}
	delete(out, name)
	c.change.Removed = append(c.change.Removed, name)
}

func (g *Graph) flushPod(c *collector, k model.Key) {
	uid := translate.WorkloadUID(g.cfg.Config, k)
	p := g.pods[k]
	if p == nil {
		g.setRequired(k, nil)
		c.remove(uid)
		return
	}
	in := translate.WorkloadInputs{
		Services: g.servicesOf(p),
		Policies: g.policiesOf(p),
		Waypoint: ready(g.waypointOf(p.Waypoint, p.Namespace, model.TrafficWorkload)),
	}
	in.Policies = append(in.Policies, g.flushRequired(p, in.Services)...)
	if n := g.nodes[p.Node]; n != nil {
		in.Locality = n.Locality
	}
	w := translate.Workload(g.cfg.Config, p, in)
	if w == nil {
		c.remove(uid)
		return
	}
	aliases := make([]string, 0, len(p.IPs))
	for _, ip := range p.IPs {
		aliases = append(aliases, translate.NetworkIP(g.cfg.Network, ip))
	}
	keys := make([]string, 0, len(in.Services)+1)
	for _, s := range in.Services {
		keys = append(keys, s.ResourceName())
	}
	if p.Node != "" {
		keys = append(keys, push.NodeKey(p.Node))
	}
	c.put(uid, &workload.Address{Type: &workload.Address_Workload{Workload: w}}, aliases, keys)
}

// ready leaves a waypoint only if it can take traffic.
func ready(w *model.Waypoint) *model.Waypoint {
	if w == nil || !w.Ready {
		return nil
	}
	return w
}

// servicesOf lists the services that a pod is an endpoint of, in order.
func (g *Graph) servicesOf(p *model.Pod) []*model.Service {
	var out []*model.Service
	g.serviceSelectors.candidates(p.Namespace, p.Labels, func(k model.Key) {
		if s := g.services[k]; matches(s.Selector, p.Labels) {
			out = append(out, s)
		}
	})
	for sk := range g.slicesByPod[p.Key] {
		sl := g.slices[sk]
		s := g.services[sliceService(sl)]
		if s == nil || len(s.Selector) > 0 || slices.Contains(out, s) || !refersTo(sl, p) {
			continue
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *model.Service) int { return strings.Compare(a.ResourceName(), b.ResourceName()) })
	return out
}

// refersTo tells whether a slice means this pod and not an earlier one of the same name.
func refersTo(s *model.EndpointSlice, p *model.Pod) bool {
	return slices.ContainsFunc(s.Endpoints, func(e model.Endpoint) bool {
		return e.Pod == p.Key && (e.PodUID == "" || e.PodUID == p.UID)
	})
}

// policiesOf lists the policies attached to a pod by selector: the user's in
// order, then what PeerAuthentication comes to.
func (g *Graph) policiesOf(p *model.Pod) []string {
	var out []string
	add := func(k model.Key) {
		if pol := g.policies[k]; pol.Wire != nil && matches(pol.Selector, p.Labels) {
			out = append(out, translate.PolicyName(k))
		}
	}
	g.policySelectors.candidates(p.Namespace, p.Labels, add)
	if p.Namespace != g.cfg.RootNamespace {
		g.policySelectors.candidates(g.cfg.RootNamespace, p.Labels, add)
	}
	slices.Sort(out)
	return append(out, g.mtlsOf(p.Namespace, p.Labels).PolicyNames(g.cfg.Config)...)
}

// mtlsOf is the PeerAuthentication in force for labels in a namespace. In the root namespace only the mesh's is.
func (g *Graph) mtlsOf(namespace string, labels map[string]string) translate.MTLS {
	out := translate.MTLS{Mesh: g.widePeerAuth(g.cfg.RootNamespace)}
	if namespace == g.cfg.RootNamespace {
		return out
	}
	out.Namespace = g.widePeerAuth(namespace)
	var own []*model.PeerAuthentication
	for _, pa := range g.peerAuths[namespace] {
		if len(pa.Selector) > 0 && matches(pa.Selector, labels) {
			own = append(own, pa)
		}
	}
	out.Workload = translate.Oldest(own)
	return out
}

// widePeerAuth is the one of a whole namespace.
func (g *Graph) widePeerAuth(namespace string) *model.PeerAuthentication {
	var wide []*model.PeerAuthentication
	for _, pa := range g.peerAuths[namespace] {
		if len(pa.Selector) == 0 {
			wide = append(wide, pa)
		}
	}
	return translate.Oldest(wide)
}

func (g *Graph) flushPeerAuth(c *collector, k model.Key) {
	name := translate.ConvertedName(k)
	pa := g.peerAuths[k.Namespace][k.Name]
	if pa != nil && len(pa.Selector) > 0 && k.Namespace != g.cfg.RootNamespace {
		m := translate.MTLS{Mesh: g.widePeerAuth(g.cfg.RootNamespace), Namespace: g.widePeerAuth(k.Namespace), Workload: pa}
		if wire := m.Converted(); wire != nil {
			c.put(name, wire, nil, nil)
			return
		}
	}
	c.remove(name)
}

func (g *Graph) flushService(c *collector, k model.Key) {
	name := k.Namespace + "/" + translate.ServiceHostname(g.cfg.Config, k)
	s := g.services[k]
	if s == nil {
		g.unhold(k)
		c.remove(name)
		return
	}
	in := translate.ServiceInputs{}
	if ns := g.namespaces[k.Namespace]; ns != nil {
		in.Distribution = ns.Distribution
	}
	if s.NoWaypoint {
		g.unhold(k)
	} else {
		b := g.bind(s.Waypoint, s.IngressWaypoint, s.Namespace)
		in.Waypoint, in.Canary = g.hold(s, g.usable(b.Waypoint, name), g.usable(b.Canary, name))
		in.CanaryWeight, in.IngressWaypoint = b.CanaryWeight, b.Ingress
	}
	aliases := make([]string, 0, len(s.VIPs))
	for _, ip := range s.VIPs {
		aliases = append(aliases, translate.NetworkIP(g.cfg.Network, ip))
	}
	wire := translate.ServiceWire(g.cfg.Config, s, in)
	c.put(name, &workload.Address{Type: &workload.Address_Service{Service: wire}}, aliases, nil)
}
