package graph

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Changes is what touched layer 7 since its listener was last told.
type Changes struct {
	// Services changed in definition or in which waypoint they use, Endpoints in who stands behind them.
	Services, Endpoints map[model.Key]struct{}
	// Namespaces changed in labels, PodsIn holds namespaces in which a pod came, went or changed.
	Namespaces, PodsIn map[string]struct{}
}

func newChanges() Changes {
	return Changes{
		Services: map[model.Key]struct{}{}, Endpoints: map[model.Key]struct{}{},
		Namespaces: map[string]struct{}{}, PodsIn: map[string]struct{}{},
	}
}

func (c Changes) empty() bool {
	return len(c.Services)+len(c.Endpoints)+len(c.Namespaces)+len(c.PodsIn) == 0
}

// Listen makes f hear of every change from now on. It is called while the graph is locked, so it must only take
// notes. Call it before the first event.
func (g *Graph) Listen(f func(Changes)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listener = f
}

// tell hands the collected changes to the listener.
func (g *Graph) tell() {
	if g.listener == nil || g.touched.empty() {
		return
	}
	c := g.touched
	g.touched = newChanges()
	g.listener(c)
}

// touchPod notes what a pod's change means to layer 7. It is called before and after the pod is stored, so that
// the services of its old and of its new form are both found.
func (g *Graph) touchPod(p *model.Pod) {
	if g.listener == nil || p == nil {
		return
	}
	g.touched.PodsIn[p.Namespace] = struct{}{}
	for _, s := range g.servicesOf(p) {
		g.touched.Endpoints[s.Key] = struct{}{}
	}
}

func (g *Graph) touchService(k model.Key) {
	if g.listener == nil {
		return
	}
	g.touched.Services[k] = struct{}{}
	g.touched.Endpoints[k] = struct{}{}
}

// Endpoint is one place behind a service.
type Endpoint struct {
	// Pod is nil for an address that only a slice knows. Ports, if set, are a slice's: they map names of the service's
	// ports to the endpoint's.
	Pod      *model.Pod
	Address  netip.Addr
	Ports    map[string]uint16
	Ready    bool
	Locality model.Locality
}

// Target is the port that a service's port means at this endpoint; false if it has none.
func (e *Endpoint) Target(p model.ServicePort) (uint16, bool) {
	switch {
	case e.Pod == nil || e.Ports != nil:
		n, ok := e.Ports[p.Name]
		return n, ok
	case p.TargetName != "":
		n, ok := e.Pod.TCPPorts[p.TargetName]
		return n, ok
	}
	return p.Target, p.Target != 0
}

// Service returns a service, or nil.
func (g *Graph) Service(k model.Key) *model.Service {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.services[k]
}

// Services lists all services in order of key.
func (g *Graph) Services() []*model.Service {
	g.mu.RLock()
	defer g.mu.RUnlock()
	out := make([]*model.Service, 0, len(g.services))
	for _, s := range g.services {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *model.Service) int { return compareKeys(a.Key, b.Key) })
	return out
}

func compareKeys(a, b model.Key) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// Namespace returns a namespace, or nil.
func (g *Graph) Namespace(name string) *model.Namespace {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.namespaces[name]
}

// NamespaceList lists all namespaces in order of name.
func (g *Graph) NamespaceList() []*model.Namespace {
	g.mu.RLock()
	defer g.mu.RUnlock()
	out := make([]*model.Namespace, 0, len(g.namespaces))
	for _, n := range g.namespaces {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b *model.Namespace) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Endpoints lists what stands behind a service, in order of address: pods that have one and have not finished, and
// addresses of slices that no pod stands for.
func (g *Graph) Endpoints(k model.Key) []Endpoint {
	g.mu.RLock()
	defer g.mu.RUnlock()
	s := g.services[k]
	if s == nil {
		return nil
	}
	var out []Endpoint
	if len(s.Selector) > 0 {
		for pk := range g.podLabels.candidates(s.Namespace, s.Selector) {
			if p := g.pods[pk]; matches(s.Selector, p.Labels) {
				out = g.appendPod(out, s, p)
			}
		}
	} else {
		out = g.sliceEndpoints(s)
	}
	slices.SortFunc(out, func(a, b Endpoint) int { return a.Address.Compare(b.Address) })
	return slices.CompactFunc(out, func(a, b Endpoint) bool { return a.Address == b.Address })
}

// sliceEndpoints are those of a service without selector.
func (g *Graph) sliceEndpoints(s *model.Service) []Endpoint {
	var out []Endpoint
	for sk := range g.slicesByService[s.Key] {
		sl := g.slices[sk]
		for _, e := range sl.Endpoints {
			if p := g.pods[e.Pod]; p != nil && (e.PodUID == "" || e.PodUID == p.UID) {
				out = g.appendPod(out, s, p)
				if n := len(out); n > 0 && out[n-1].Pod == p {
					out[n-1].Ports = sl.Ports
				}
			}
		}
		for _, e := range sl.Addresses {
			for _, a := range e.Addresses {
				// A slice that was written by hand names a pod by its address only.
				if p := g.podAt(s.Namespace, a); p != nil {
					pe := Endpoint{Pod: p, Address: a, Ports: sl.Ports, Ready: e.Ready && (p.Ready || s.PublishNotReady)}
					if n := g.nodes[p.Node]; n != nil {
						pe.Locality = n.Locality
					}
					out = append(out, pe)
					continue
				}
				out = append(out, Endpoint{
					Address: a, Ports: sl.Ports, Ready: e.Ready || s.PublishNotReady, Locality: model.Locality{Zone: e.Zone},
				})
			}
		}
	}
	return out
}

// podAt finds the pod of a namespace that has an address.
func (g *Graph) podAt(namespace string, a netip.Addr) *model.Pod {
	for k := range g.podLabels.byNamespace[namespace] {
		if p := g.pods[k]; !p.Finished && !p.HostNetwork && slices.Contains(p.IPs, a) {
			return p
		}
	}
	return nil
}

func (g *Graph) appendPod(out []Endpoint, s *model.Service, p *model.Pod) []Endpoint {
	ip, ok := podAddress(s, p)
	if !ok || p.Finished {
		return out
	}
	e := Endpoint{Pod: p, Address: ip, Ready: p.Ready || s.PublishNotReady}
	if n := g.nodes[p.Node]; n != nil {
		e.Locality = n.Locality
	}
	return append(out, e)
}

// podAddress is the pod's address of the family that the service has.
func podAddress(s *model.Service, p *model.Pod) (netip.Addr, bool) {
	for _, ip := range p.IPs {
		if s.Families != model.FamiliesV4 && s.Families != model.FamiliesV6 || ip.Is4() == (s.Families == model.FamiliesV4) {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// PodsByLabels lists the pods that a selector chooses, in order of key; an empty namespace means all.
func (g *Graph) PodsByLabels(namespace string, selector map[string]string) []*model.Pod {
	g.mu.RLock()
	defer g.mu.RUnlock()
	var out []*model.Pod
	add := func(ns string) {
		for k := range g.podLabels.candidates(ns, selector) {
			if p := g.pods[k]; matches(selector, p.Labels) && !p.Finished {
				out = append(out, p)
			}
		}
	}
	if namespace != "" {
		add(namespace)
	} else {
		for ns := range g.podLabels.byNamespace {
			add(ns)
		}
	}
	slices.SortFunc(out, func(a, b *model.Pod) int { return compareKeys(a.Key, b.Key) })
	return out
}

// PodsUsing lists the pods that are reached through a waypoint by their own address, in order of key.
func (g *Graph) PodsUsing(waypoint model.Key) []*model.Pod {
	g.mu.RLock()
	defer g.mu.RUnlock()
	var out []*model.Pod
	for _, p := range g.pods {
		if w := g.waypointOf(p.Waypoint, p.Namespace, model.TrafficWorkload); w != nil && w.Key == waypoint && !p.Finished {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *model.Pod) int { return compareKeys(a.Key, b.Key) })
	return out
}

// Locality is where a node is.
func (g *Graph) Locality(node string) model.Locality {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if n := g.nodes[node]; n != nil {
		return n.Locality
	}
	return model.Locality{}
}

// SetServed says whether a waypoint's proxies are configured for services, given as "namespace/hostname". Ztunnels
// are told of the waypoint of a service only then: traffic that came first would find nobody who knows the service.
func (g *Graph) SetServed(waypoint model.Key, names []string, served bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waypoints[waypoint] == nil && served || g.served[waypoint] == nil && !served {
		return
	}
	if g.served[waypoint] == nil {
		g.served[waypoint] = map[string]struct{}{}
	}
	for _, n := range names {
		if _, is := g.served[waypoint][n]; is == served {
			continue
		}
		if served {
			g.served[waypoint][n] = struct{}{}
		} else {
			delete(g.served[waypoint], n)
		}
		if k, ok := g.byResource(n); ok {
			g.dirty.services[k] = struct{}{}
		} else {
			g.markEntries()
		}
	}
	if g.synced {
		g.flush()
	}
	g.tell()
}

// Serves tells what SetServed said.
func (g *Graph) Serves(waypoint model.Key, name string) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	_, ok := g.served[waypoint][name]
	return ok
}

// byResource finds the Service that has a name on the wire.
func (g *Graph) byResource(name string) (model.Key, bool) {
	ns, host, _ := strings.Cut(name, "/")
	short, _, _ := strings.Cut(host, ".")
	k := model.Key{Namespace: ns, Name: short}
	s := g.services[k]
	return k, s != nil && s.Hostname == host
}

// usable leaves a waypoint only if it can take the traffic of a service.
func (g *Graph) usable(w *model.Waypoint, name string) *model.Waypoint {
	if w == nil || !w.Ready {
		return nil
	}
	if _, ok := g.served[w.Key][name]; !ok {
		return nil
	}
	return w
}

// Binding is which waypoint a service uses, and why not if it asks for one in vain.
type Binding struct {
	// Asked is what labels ask for; it is zero if they ask for none.
	Asked model.Key
	// Waypoint and Canary are what it got; they take traffic only once they are Ready.
	Waypoint, Canary *model.Waypoint
	CanaryWeight     uint32
	// Reason and Message say why Waypoint is nil or, if it is not, why Canary is.
	Reason, Message string
	// Ingress says that gateways go through it; IngressLabel that a label said so or the contrary.
	Ingress, IngressLabel bool
}

// Reasons of a service's condition istio.io/WaypointBound, as Istio writes them.
const (
	ReasonNotReady      = "WaypointIsNotReady"
	ReasonDenied        = "AttachmentDenied"
	ReasonTrafficType   = "UnsupportedTrafficType"
	ReasonCanaryWeight  = "CanaryInvalidWeight"
	ReasonCanaryPrimary = "CanarySameAsPrimary"
)

// Binding returns which waypoint a service uses.
func (g *Graph) Binding(k model.Key) Binding {
	g.mu.RLock()
	defer g.mu.RUnlock()
	s := g.services[k]
	if s == nil || s.NoWaypoint {
		return Binding{}
	}
	return g.bind(s.Waypoint, s.IngressWaypoint, s.Namespace)
}

// BindingOf returns which waypoint an object of the namespace with these labels uses, for hosts that are no service.
func (g *Graph) BindingOf(ref model.WaypointRef, namespace string) Binding {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.bind(ref, nil, namespace)
}

func (g *Graph) bind(ref model.WaypointRef, ingress *bool, namespace string) Binding {
	ns := g.namespaces[namespace]
	var b Binding
	switch {
	case ingress != nil:
		b.Ingress, b.IngressLabel = *ingress, true
	case ns != nil && ns.IngressWaypoint:
		b.Ingress, b.IngressLabel = true, true
	}
	own := ref.IsSet()
	if !own && ns != nil {
		canary, weight, invalid := ref.Canary, ref.CanaryWeight, ref.CanaryInvalid
		ref = ns.Waypoint
		if canary != (model.Key{}) {
			ref.Canary, ref.CanaryWeight, ref.CanaryInvalid = canary, weight, invalid
		}
	}
	if ref.None || ref.Name == "" {
		b.Ingress = false
		return b
	}
	b.Asked = ref.Key
	if b.Waypoint, b.Reason, b.Message = g.attach(ref.Key, namespace, model.TrafficService); b.Waypoint == nil {
		b.Ingress = false
		return b
	}
	if ref.Canary == (model.Key{}) {
		return b
	}
	switch {
	case ref.Canary == ref.Key:
		b.Reason, b.Message = ReasonCanaryPrimary, fmt.Sprintf("canary waypoint %q must differ from the primary waypoint", ref.Canary)
	case ref.CanaryInvalid:
		b.Reason, b.Message = ReasonCanaryWeight, fmt.Sprintf("canary waypoint %q: the weight must be an integer in [0,100]", ref.Canary)
	default:
		b.Canary, b.Reason, b.Message = g.attach(ref.Canary, namespace, model.TrafficService)
		b.CanaryWeight = ref.CanaryWeight
	}
	return b
}

// attach finds a waypoint that exists, lets the namespace attach and serves this traffic.
func (g *Graph) attach(k model.Key, namespace string, traffic model.Traffic) (w *model.Waypoint, reason, message string) {
	w = g.waypoints[k]
	switch {
	case w == nil:
		return nil, ReasonNotReady, fmt.Sprintf("waypoint %q is not ready", k)
	case w.Namespace != namespace && !w.AllNamespaces && !w.Namespaces[namespace]:
		return nil, ReasonDenied, fmt.Sprintf("waypoint %q allows no attachment from namespace %q (see its listeners' allowedRoutes)", k, namespace)
	case w.For != traffic && w.For != model.TrafficAll:
		return nil, ReasonTrafficType, fmt.Sprintf("waypoint %q does not serve traffic to services (see its label istio.io/waypoint-for)", k)
	}
	return w, "", ""
}

// waypointOf resolves an object's use-waypoint label, or its namespace's, to a waypoint.
func (g *Graph) waypointOf(ref model.WaypointRef, namespace string, traffic model.Traffic) *model.Waypoint {
	if !ref.IsSet() {
		ns := g.namespaces[namespace]
		if ns == nil {
			return nil
		}
		ref = ns.Waypoint
	}
	if ref.None || ref.Name == "" {
		return nil
	}
	w, _, _ := g.attach(ref.Key, namespace, traffic)
	if w == nil || !w.Ready && traffic == model.TrafficService {
		return nil
	}
	return w
}

// sameForLayer7 tells that a pod's change is none that layer 7 sees.
func sameForLayer7(a, b *model.Pod) bool { return reflect.DeepEqual(a, b) }
