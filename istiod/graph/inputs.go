package graph

import (
	"maps"
	"reflect"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// dirty is what must be computed again.
type dirty struct {
	pods, services, policies, peerAuths, entries set
	static                                       bool
}

func newDirty() dirty {
	return dirty{pods: set{}, services: set{}, policies: set{}, peerAuths: set{}, entries: set{}}
}

// Each setter stores one input (nil removes it), keeps the indexes and marks what
// depends on the difference.

func (g *Graph) setPod(k model.Key, p *model.Pod) {
	old := g.pods[k]
	seen := !sameForLayer7(old, p)
	if old != nil {
		if seen {
			g.touchPod(old)
		}
		g.podLabels.remove(k, old.Labels)
		g.podsByNode.remove(old.Node, k)
		g.podsByIdentity.remove(identityOf(old), k)
	}
	g.dirty.pods[k] = struct{}{}
	delete(g.pods, k)
	if p != nil {
		g.pods[k] = p
		g.podLabels.add(k, p.Labels)
		g.podsByNode.add(p.Node, k)
		g.podsByIdentity.add(identityOf(p), k)
		if seen {
			g.touchPod(p)
		}
	}
	g.notify()
}

func identityOf(p *model.Pod) identityOnNode {
	return identityOnNode{p.Node, p.Namespace, p.ServiceAccount}
}

func (g *Graph) setService(k model.Key, s *model.Service) {
	old := g.services[k]
	g.dirty.services[k] = struct{}{}
	g.touchService(k)
	// What pods know of a service: that it chooses them, its name and its ports.
	if old == nil || s == nil || old.Hostname != s.Hostname || !reflect.DeepEqual(old.Ports, s.Ports) || !maps.Equal(old.Selector, s.Selector) {
		g.markEndpoints(old)
		g.markEndpoints(s)
	}
	if old != nil {
		g.serviceSelectors.remove(k, old.Selector)
	}
	delete(g.services, k)
	if s != nil {
		g.services[k] = s
		g.serviceSelectors.add(k, s.Selector)
	}
	// So do policies of ports.
	if old != nil && s != nil && (old.Bypass != s.Bypass || old.Waypoint != s.Waypoint || len(old.VIPs) != len(s.VIPs)) {
		g.markRequired(k)
	}
}

// markEndpoints marks the pods of a service.
func (g *Graph) markEndpoints(s *model.Service) {
	if s == nil {
		return
	}
	if len(s.Selector) > 0 {
		g.markSelected(s.Namespace, s.Selector)
		return
	}
	for sk := range g.slicesByService[s.Key] {
		for _, ep := range g.slices[sk].Endpoints {
			g.dirty.pods[ep.Pod] = struct{}{}
		}
	}
}

func (g *Graph) markSelected(namespace string, selector map[string]string) {
	for k := range g.podLabels.candidates(namespace, selector) {
		if matches(selector, g.pods[k].Labels) {
			g.dirty.pods[k] = struct{}{}
		}
	}
}

func (g *Graph) setSlice(k model.Key, s *model.EndpointSlice) {
	if old := g.slices[k]; old != nil {
		g.touchSlice(old)
		g.slicesByService.remove(sliceService(old), k)
		g.markSlice(old)
		for _, ep := range old.Endpoints {
			g.slicesByPod.remove(ep.Pod, k)
		}
	}
	delete(g.slices, k)
	if s != nil {
		g.slices[k] = s
		g.touchSlice(s)
		g.slicesByService.add(sliceService(s), k)
		g.markSlice(s)
		for _, ep := range s.Endpoints {
			g.slicesByPod.add(ep.Pod, k)
		}
	}
}

func sliceService(s *model.EndpointSlice) model.Key {
	return model.Key{Namespace: s.Namespace, Name: s.Service}
}

// touchSlice notes a change of a service whose endpoints are those of its slices.
func (g *Graph) touchSlice(s *model.EndpointSlice) {
	if svc := g.services[sliceService(s)]; g.listener != nil && svc != nil && len(svc.Selector) == 0 {
		g.touched.Endpoints[svc.Key] = struct{}{}
	}
}

// markSlice marks a slice's pods, unless the service's selector already says all: then slices, which
// change with every readiness, touch nothing.
func (g *Graph) markSlice(s *model.EndpointSlice) {
	if svc := g.services[sliceService(s)]; svc == nil || len(svc.Selector) > 0 {
		return
	}
	for _, ep := range s.Endpoints {
		g.dirty.pods[ep.Pod] = struct{}{}
	}
}

func (g *Graph) setNamespace(k model.Key, ns *model.Namespace) {
	old := g.namespaces[k.Name]
	delete(g.namespaces, k.Name)
	if ns != nil {
		g.namespaces[k.Name] = ns
	}
	var a, b model.Namespace
	if old != nil {
		a = *old
	}
	if ns != nil {
		b = *ns
	}
	if !reflect.DeepEqual(a, b) && g.listener != nil {
		g.touched.Namespaces[k.Name] = struct{}{}
	}
	if a.Waypoint != b.Waypoint {
		for p := range g.podLabels.byNamespace[k.Name] {
			g.dirty.pods[p] = struct{}{}
		}
	}
	if a.Bypass != b.Bypass || a.Waypoint != b.Waypoint {
		for s := range g.services {
			if s.Namespace == k.Name {
				g.markRequired(s)
			}
		}
	}
	if a.Waypoint != b.Waypoint || a.Distribution != b.Distribution || a.IngressWaypoint != b.IngressWaypoint {
		for s := range g.services {
			if s.Namespace == k.Name {
				g.dirty.services[s] = struct{}{}
				g.touchService(s)
			}
		}
		g.markEntries()
	}
	g.notify()
}

func (g *Graph) setNode(k model.Key, n *model.Node) {
	var a, b model.Locality
	if old := g.nodes[k.Name]; old != nil {
		a = old.Locality
	}
	delete(g.nodes, k.Name)
	if n != nil {
		b = n.Locality
		g.nodes[k.Name] = n
	}
	// Nodes report every few seconds and move never.
	if a != b {
		for p := range g.podsByNode[k.Name] {
			g.dirty.pods[p] = struct{}{}
			g.touchPod(g.pods[p])
		}
	}
}

func (g *Graph) setPolicy(k model.Key, p *translate.Policy) {
	old := g.policies[k]
	g.dirty.policies[k] = struct{}{}
	if old != nil {
		g.policySelectors.remove(k, old.Selector)
	}
	delete(g.policies, k)
	if p != nil {
		g.policies[k] = p
		g.policySelectors.add(k, p.Selector)
	}
	// Workloads list the policy by name, so only who is chosen matters to them.
	if a, b := attached(old), attached(p); !maps.Equal(a, b) {
		g.markAttached(k.Namespace, a)
		g.markAttached(k.Namespace, b)
	}
}

// attached is the selector by which a policy is listed in workloads; empty when it is in none.
func attached(p *translate.Policy) map[string]string {
	if p == nil || p.Wire == nil {
		return nil
	}
	return p.Selector
}

// markAttached marks the pods that a policy of this namespace chooses; the root namespace's choose everywhere.
func (g *Graph) markAttached(namespace string, selector map[string]string) {
	if len(selector) == 0 {
		return
	}
	if namespace != g.cfg.RootNamespace {
		g.markSelected(namespace, selector)
		return
	}
	for ns := range g.podLabels.byNamespace {
		g.markSelected(ns, selector)
	}
}

func (g *Graph) setPeerAuth(k model.Key, pa *model.PeerAuthentication) {
	old := g.peerAuths[k.Namespace][k.Name]
	if old == nil && pa == nil {
		return
	}
	if g.peerAuths[k.Namespace] == nil {
		g.peerAuths[k.Namespace] = map[string]*model.PeerAuthentication{}
	}
	delete(g.peerAuths[k.Namespace], k.Name)
	if pa != nil {
		g.peerAuths[k.Namespace][k.Name] = pa
	}
	if len(g.peerAuths[k.Namespace]) == 0 {
		delete(g.peerAuths, k.Namespace)
	}
	g.dirty.static = true
	g.dirty.peerAuths[k] = struct{}{}
	for _, x := range []*model.PeerAuthentication{old, pa} {
		if x != nil {
			g.markPeerAuth(x)
		}
	}
}

// markPeerAuth marks what inherits from a PeerAuthentication.
func (g *Graph) markPeerAuth(pa *model.PeerAuthentication) {
	switch {
	case len(pa.Selector) > 0:
		g.markSelected(pa.Namespace, pa.Selector)
	case pa.Namespace == g.cfg.RootNamespace:
		for k := range g.pods {
			g.dirty.pods[k] = struct{}{}
		}
		for ns := range g.peerAuths {
			g.markConverted(ns)
		}
	default:
		for k := range g.podLabels.byNamespace[pa.Namespace] {
			g.dirty.pods[k] = struct{}{}
		}
		g.markConverted(pa.Namespace)
	}
}

// markConverted marks the converted policies of a namespace.
func (g *Graph) markConverted(namespace string) {
	for _, pa := range g.peerAuths[namespace] {
		g.dirty.peerAuths[pa.Key] = struct{}{}
	}
}

// SetWaypoint stores a waypoint (nil removes it) and recomputes what refers to it.
func (g *Graph) SetWaypoint(k model.Key, w *model.Waypoint) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.waypoints, k)
	if w != nil {
		g.waypoints[k] = w
	} else {
		delete(g.served, k)
	}
	g.markEntries()
	refers := func(own model.WaypointRef, namespace string) bool {
		if own.IsSet() || own.Canary == k {
			return own.Key == k || own.Canary == k
		}
		ns := g.namespaces[namespace]
		return ns != nil && (ns.Waypoint.Key == k || ns.Waypoint.Canary == k)
	}
	for pk, p := range g.pods {
		if refers(p.Waypoint, pk.Namespace) {
			g.dirty.pods[pk] = struct{}{}
		}
	}
	for sk, s := range g.services {
		if refers(s.Waypoint, sk.Namespace) {
			g.dirty.services[sk] = struct{}{}
			g.touchService(sk)
		}
	}
	if g.synced {
		g.flush()
	}
	g.tell()
}
