package graph

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/translate"
	"github.com/ambit-mesh/ambit/istiod/watch"
)

// Sink takes what changed.
type Sink interface {
	Apply([]push.Change)
	Synced()
}

// Config is what a Graph needs.
type Config struct {
	translate.Config
	// Bypass says who may pass by a service's waypoint, where neither service nor namespace do.
	Bypass  model.Bypass
	Log     *slog.Logger
	Metrics prometheus.Registerer
	// Now is time.Now unless a test wants another.
	Now func() time.Time
}

// Graph holds all inputs, their indexes and the outputs.
type Graph struct {
	cfg    Config
	sink   Sink
	errors *prometheus.GaugeVec

	mu     sync.RWMutex
	synced bool

	pods       map[model.Key]*model.Pod
	services   map[model.Key]*model.Service
	slices     map[model.Key]*model.EndpointSlice
	namespaces map[string]*model.Namespace
	nodes      map[string]*model.Node
	policies   map[model.Key]*translate.Policy
	peerAuths  map[string]map[string]*model.PeerAuthentication
	waypoints  map[model.Key]*model.Waypoint
	// served are the services, "namespace/hostname", that a waypoint is configured for: only then are ztunnels told.
	served map[model.Key]map[string]struct{}
	// entries are ServiceEntries, and entryOutputs the names of what each gave.
	entries      map[model.Key]*model.ServiceEntry
	entryOutputs map[model.Key]map[string]struct{}

	podLabels        labelIndex
	podsByNode       multimap[string]
	podsByIdentity   multimap[identityOnNode]
	serviceSelectors selectorIndex
	policySelectors  selectorIndex
	slicesByPod      multimap[model.Key]
	slicesByService  multimap[model.Key]

	required required
	dirty    dirty
	outputs  map[string]map[string]*push.Resource
	problems map[input]Problem
	changed  chan struct{}

	// listener hears of touched, what changed for layer 7.
	listener func(Changes)
	touched  Changes
}

var _ watch.Handler = (*Graph)(nil)

// identityOnNode is who runs where, the CA's question.
type identityOnNode struct{ node, namespace, serviceAccount string }

// input names an object over all kinds.
type input struct {
	kind model.Kind
	key  model.Key
}

// Problem is an object that cannot be translated.
type Problem struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Origin    string `json:"origin,omitempty"`
	Reason    string `json:"reason"`
	// LastGood tells whether an earlier good form of the object is in force.
	LastGood bool `json:"lastGoodInForce"`
}

// New makes an empty graph that hands its outputs to sink.
func New(cfg Config, sink Sink) (*Graph, error) {
	g := &Graph{
		cfg: cfg, sink: sink,
		errors: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "istiod_translate_errors",
			Help: "1 for each object that cannot be translated; its last good state stays in force.",
		}, []string{"kind", "namespace", "name"}),
		pods:             map[model.Key]*model.Pod{},
		services:         map[model.Key]*model.Service{},
		slices:           map[model.Key]*model.EndpointSlice{},
		namespaces:       map[string]*model.Namespace{},
		nodes:            map[string]*model.Node{},
		policies:         map[model.Key]*translate.Policy{},
		peerAuths:        map[string]map[string]*model.PeerAuthentication{},
		waypoints:        map[model.Key]*model.Waypoint{},
		served:           map[model.Key]map[string]struct{}{},
		entries:          map[model.Key]*model.ServiceEntry{},
		entryOutputs:     map[model.Key]map[string]struct{}{},
		podLabels:        newLabelIndex(),
		podsByNode:       multimap[string]{},
		podsByIdentity:   multimap[identityOnNode]{},
		serviceSelectors: newSelectorIndex(),
		policySelectors:  newSelectorIndex(),
		slicesByPod:      multimap[model.Key]{},
		slicesByService:  multimap[model.Key]{},
		required:         newRequired(cfg.Now),
		dirty:            newDirty(),
		outputs:          map[string]map[string]*push.Resource{},
		problems:         map[input]Problem{},
		changed:          make(chan struct{}),
		touched:          newChanges(),
	}
	for _, t := range push.Types() {
		g.outputs[t] = map[string]*push.Resource{}
	}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(g.errors); err != nil {
			return nil, fmt.Errorf("register metrics of %q: %w", "graph", err)
		}
	}
	return g, nil
}

// Handle implements watch.Handler.
func (g *Graph) Handle(e watch.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	lastGood, err := g.translate(e)
	g.record(e, lastGood, err)
	if g.synced {
		g.flush()
	}
	g.tell()
}

// Synced implements watch.Handler: the first computation is of everything at once.
func (g *Graph) Synced() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.synced {
		return
	}
	g.synced, g.required.first = true, true
	g.flush()
	g.required.first = false
	g.sink.Synced()
}

// translate reads the object and stores it; lastGood tells whether, after an
// error, an earlier form stays in force.
func (g *Graph) translate(e watch.Event) (lastGood bool, err error) {
	switch e.Kind {
	case model.KindPod:
		return put(e, func(o *corev1.Pod) (*model.Pod, error) { return translate.Pod(o) }, g.pods[e.Key], g.setPod)
	case model.KindService:
		return put(e, func(o *corev1.Service) (*model.Service, error) { return translate.Service(g.cfg.Config, o) }, g.services[e.Key], g.setService)
	case model.KindEndpointSlice:
		return put(e, func(o *discoveryv1.EndpointSlice) (*model.EndpointSlice, error) {
			return translate.EndpointSlice(o), nil
		}, g.slices[e.Key], g.setSlice)
	case model.KindNamespace:
		return put(e, func(o *corev1.Namespace) (*model.Namespace, error) { return translate.Namespace(o), nil }, g.namespaces[e.Key.Name], g.setNamespace)
	case model.KindNode:
		return put(e, func(o *corev1.Node) (*model.Node, error) { return translate.Node(o), nil }, g.nodes[e.Key.Name], g.setNode)
	case model.KindAuthorizationPolicy:
		return put(e, func(o *securityv1.AuthorizationPolicy) (*translate.Policy, error) {
			return translate.AuthorizationPolicy(g.cfg.Config, o)
		}, g.policies[e.Key], g.setPolicy)
	case model.KindPeerAuthentication:
		return put(e, translate.PeerAuthentication, g.peerAuths[e.Key.Namespace][e.Key.Name], g.setPeerAuth)
	}
	return false, nil // the kinds of layer 7 are not the graph's
}

// put translates one event and stores the result. A translation that failed is
// used only where it is still safe and nothing better exists.
func put[O, M any](e watch.Event, read func(*O) (*M, error), old *M, store func(model.Key, *M)) (bool, error) {
	if e.Object == nil {
		store(e.Key, nil)
		return false, nil
	}
	o, ok := e.Object.(*O)
	if !ok {
		return old != nil, fmt.Errorf("handle object: got a %T", e.Object)
	}
	m, err := read(o)
	if err == nil || old == nil && m != nil {
		store(e.Key, m)
	}
	return old != nil, err
}

// record keeps the list of objects that cannot be translated.
func (g *Graph) record(e watch.Event, lastGood bool, err error) {
	id := input{e.Kind, e.Key}
	labels := prometheus.Labels{"kind": string(e.Kind), "namespace": e.Key.Namespace, "name": e.Key.Name}
	if err == nil {
		if _, was := g.problems[id]; was {
			delete(g.problems, id)
			g.errors.Delete(labels)
		}
		return
	}
	g.problems[id] = Problem{
		Kind: string(e.Kind), Namespace: e.Key.Namespace, Name: e.Key.Name, Origin: e.Origin, Reason: err.Error(), LastGood: lastGood,
	}
	g.errors.With(labels).Set(1)
	g.cfg.Log.Error("object cannot be translated", "kind", string(e.Kind), "namespace", e.Key.Namespace,
		"name", e.Key.Name, "origin", e.Origin, "lastGoodInForce", lastGood, "error", err)
}

// Problems lists the objects that cannot be translated, in order.
func (g *Graph) Problems() []Problem {
	g.mu.RLock()
	defer g.mu.RUnlock()
	out := make([]Problem, 0, len(g.problems))
	for _, p := range g.problems {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Problem) int {
		if a.Kind+"/"+a.Namespace+"/"+a.Name < b.Kind+"/"+b.Namespace+"/"+b.Name {
			return -1
		}
		return 1
	})
	return out
}

// Sizes counts the inputs and outputs, for the debug page.
func (g *Graph) Sizes() map[string]int {
	g.mu.RLock()
	defer g.mu.RUnlock()
	out := map[string]int{
		"pods": len(g.pods), "services": len(g.services), "endpointSlices": len(g.slices), "namespaces": len(g.namespaces),
		"nodes": len(g.nodes), "authorizationPolicies": len(g.policies), "problems": len(g.problems),
	}
	for _, pas := range g.peerAuths {
		out["peerAuthentications"] += len(pas)
	}
	for t, rs := range g.outputs {
		out[t] = len(rs)
	}
	return out
}
