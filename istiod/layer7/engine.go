package layer7

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/graph"
	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/layer7/resolve"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/translate"
	"github.com/ambit-mesh/ambit/istiod/watch"
)

const (
	// recheck is how often what depends on time is looked at: certificates that expire, services that linger.
	recheck = time.Minute
	// linger is how long a waypoint goes on serving a service that has left it: longer than clients keep idle
	// connections, and than a slow rollout takes.
	linger = 10 * time.Minute
	// maxJoined bounds the proxies that join by their pods' labels: a pod may name its gateway as it likes.
	maxJoined = 1000
)

// Mesh is what the engine asks of package graph.
type Mesh interface {
	index.Mesh
	Listen(func(graph.Changes))
}

// Resource is one resource as a proxy gets it. Type is the full type URL.
type Resource struct {
	Type, Name string
	Message    proto.Message
	// Problems are parts that could not be written; the message says what is answered in their place.
	Problems []error
}

// Renderer writes the model as a proxy's configuration. Functions are pure.
type Renderer interface {
	Proxy(*model.Proxy) ([]Resource, error)
	Scope(*model.Proxy, *model.Scope) []Resource
	RouteTable(*model.Proxy, *model.RouteTable) ([]Resource, error)
	Cluster(*model.Proxy, *model.Cluster) ([]Resource, error)
	Endpoints(*model.Proxy, *model.Endpoints) (Resource, error)
}

// Caches are where proxies' configurations go; push.Directory is one.
type Caches interface {
	Cache(model.Key) *push.Cache
	Register(proxy model.Key, serviceAccount string)
	Remove(model.Key)
}

// Statuses takes verdicts on objects; status.Writer is one.
type Statuses interface {
	Set(*model.Status)
	Delete(model.Kind, model.Key)
}

// Deployments takes the Gateways to deploy; deploy.Deployer is one.
type Deployments interface {
	Set(*model.Gateway)
	Delete(model.Key)
}

// Keys has the key sets of token issuers; jwks.Fetcher is one.
type Keys interface {
	Get(uri, issuer string) (string, error)
	Condition(uri, issuer string) model.Condition
	Forget(uri, issuer string)
}

// Config is what an Engine needs. Statuses, Deployments and Keys may be nil: then nobody is told, nothing is deployed,
// and only key sets that policies hold themselves are known.
type Config struct {
	translate.Config
	Statuses    Statuses
	Deployments Deployments
	Keys        Keys
	Log         *slog.Logger
	Metrics     prometheus.Registerer
	// Settled tells whether a proxy's replicas are connected here, and whether all of them have taken what they were
	// sent. Nil is a world in which they always have.
	Settled func(proxy model.Key) (connected, settled bool)
	// Now is time.Now unless a test wants another.
	Now func() time.Time
}

// Engine keeps the configurations of all proxies.
type Engine struct {
	cfg    Config
	mesh   Mesh
	render Renderer
	caches Caches
	errors *prometheus.GaugeVec

	// wake says that there is something to do, ready that everything was computed once.
	wake, ready chan struct{}

	mu     sync.Mutex
	synced bool
	// first is set while everything is computed for the first time.
	first      bool
	store      *index.Store
	meshConfig *model.MeshConfig
	// gateways are the Gateways as they were read, to be read again when their class is known.
	gateways map[model.Key]*gwv1.Gateway
	units    map[unit]*state
	subs     map[index.Dep]map[unit]struct{}
	dirty    [unitKinds]map[unit]struct{}
	proxies  map[model.Key]*proxy
	ended    []model.Key
	// attached are the routes of each gateway.
	attached map[index.ID]map[unit]struct{}
	// joined are proxies that Istio's Gateways choose, by their pods.
	joined map[model.Key]*model.Pod
	// waypoints are those that the graph knows.
	waypoints map[model.Key]*model.Waypoint
	// parting are parts of services that have left a waypoint, with when they end; serving are those that the graph is
	// not told of yet.
	parting map[unit]time.Time
	serving map[model.Key]*announcement
	// calling are proxies whose destinations the graph is to be told.
	calling  map[model.Key]struct{}
	deployed map[model.Key]*model.Condition
	rejected map[model.Key]map[string]string
	statuses map[index.ID]*model.Status
	failed   map[index.ID]failure
	// keys are the key sets that policies ask for.
	keys map[index.ID]map[keySource]struct{}

	// notes are what the graph and the fetcher of keys said since they were last read. They take no other lock.
	notesMu sync.Mutex
	notes   []index.Dep
	changed graph.Changes
}

var _ watch.Handler = (*Engine)(nil)

// failure is an object that cannot be translated.
type failure struct {
	origin, reason string
	lastGood       bool
	meta           model.Meta
}

// New makes an engine. It hears of the mesh from now on, and computes nothing before Synced.
func New(cfg Config, mesh Mesh, r Renderer, caches Caches) (*Engine, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	e := &Engine{
		cfg: cfg, mesh: mesh, render: r, caches: caches,
		errors: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "istiod_layer7_errors",
			Help: "1 for each object of layer 7 that cannot be used; its last good state stays in force.",
		}, []string{"kind", "namespace", "name"}),
		wake:       make(chan struct{}, 1),
		ready:      make(chan struct{}),
		store:      index.NewStore(),
		meshConfig: &model.MeshConfig{},
		gateways:   map[model.Key]*gwv1.Gateway{},
		units:      map[unit]*state{},
		subs:       map[index.Dep]map[unit]struct{}{},
		proxies:    map[model.Key]*proxy{},
		attached:   map[index.ID]map[unit]struct{}{},
		joined:     map[model.Key]*model.Pod{},
		waypoints:  map[model.Key]*model.Waypoint{},
		parting:    map[unit]time.Time{},
		serving:    map[model.Key]*announcement{},
		calling:    map[model.Key]struct{}{},
		deployed:   map[model.Key]*model.Condition{},
		rejected:   map[model.Key]map[string]string{},
		statuses:   map[index.ID]*model.Status{},
		failed:     map[index.ID]failure{},
		keys:       map[index.ID]map[keySource]struct{}{},
	}
	for i := range e.dirty {
		e.dirty[i] = map[unit]struct{}{}
	}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(e.errors); err != nil {
			return nil, fmt.Errorf("register metrics of %q: %w", "layer7", err)
		}
	}
	e.forgetNotes()
	mesh.Listen(e.note)
	return e, nil
}

// Run computes what changed until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	t := time.NewTicker(recheck)
	defer t.Stop()
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
		case <-t.C:
			e.expire()
		case <-look.C:
		}
		e.Flush()
		if e.Announce() {
			look.Reset(settlePoll)
		}
	}
}

func (e *Engine) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Handle implements watch.Handler for the kinds of layer 7; others are the graph's, which tells of them.
func (e *Engine) Handle(ev watch.Event) {
	e.mu.Lock()
	e.take(ev)
	e.mu.Unlock()
	e.poke()
}

// Ready is closed once every proxy's configuration is complete.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// Synced implements watch.Handler. It comes before the graph's own, so that what the graph first tells ztunnels
// names their waypoints; otherwise they would pass the waypoints by until it does.
func (e *Engine) Synced() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.synced {
		return
	}
	e.synced, e.first = true, true
	e.flush()
	e.first = false
	close(e.ready)
}

// Flush computes what changed at once.
func (e *Engine) Flush() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.synced {
		e.flush()
	}
}

// note takes down what the graph says. It is called with the graph's lock held.
func (e *Engine) note(c graph.Changes) {
	e.notesMu.Lock()
	for k := range c.Services {
		e.changed.Services[k] = struct{}{}
	}
	for k := range c.Endpoints {
		e.changed.Endpoints[k] = struct{}{}
	}
	for k := range c.Namespaces {
		e.changed.Namespaces[k] = struct{}{}
	}
	for k := range c.PodsIn {
		e.changed.PodsIn[k] = struct{}{}
	}
	e.notesMu.Unlock()
	e.poke()
}

func (e *Engine) forgetNotes() {
	e.notes = nil
	e.changed = graph.Changes{
		Services: map[model.Key]struct{}{}, Endpoints: map[model.Key]struct{}{},
		Namespaces: map[string]struct{}{}, PodsIn: map[string]struct{}{},
	}
}

// KeysChanged says that a key set was fetched, or could not be.
func (e *Engine) KeysChanged(uri, issuer string) {
	e.notesMu.Lock()
	e.notes = append(e.notes, index.Dep{Kind: index.Keys, Name: issuer + " " + uri})
	e.notesMu.Unlock()
	e.poke()
}

// Deployed says what keeps a Gateway from being deployed; nil if nothing does.
func (e *Engine) Deployed(gateway model.Key, problem *model.Condition) {
	e.mu.Lock()
	if reflect.DeepEqual(e.deployed[gateway], problem) {
		e.mu.Unlock()
		return
	}
	e.deployed[gateway] = problem
	if problem == nil {
		delete(e.deployed, gateway)
	}
	e.mark(unit{kind: unitGateway, id: index.NewID(model.KindGateway, gateway)})
	e.mu.Unlock()
	e.poke()
}

// Rejected says which resources a proxy refused; an empty reason that it took them since.
func (e *Engine) Rejected(r push.Rejection) {
	if r.Proxy == (model.Key{}) {
		return
	}
	e.mu.Lock()
	m := e.rejected[r.Proxy]
	if m == nil {
		m = map[string]string{}
		e.rejected[r.Proxy] = m
	}
	for _, n := range r.Names {
		name := r.Type[strings.LastIndexByte(r.Type, '.')+1:] + " " + n
		if r.Reason == "" {
			delete(m, name)
		} else {
			m[name] = r.Reason
		}
	}
	if len(m) == 0 {
		delete(e.rejected, r.Proxy)
	}
	e.mark(unit{kind: unitGateway, id: index.NewID(model.KindGateway, r.Proxy)})
	e.mu.Unlock()
	e.poke()
}

// Join makes a proxy of a pod that no Gateway of the Gateway API stands for, and tells whether it may be one: what it
// serves is for Istio's Gateways to say, by the pod's labels, now or later. The name of a proxy belongs to the service
// account that took it first, as long as pods of it are there.
func (e *Engine) Join(proxy model.Key, pod *model.Pod) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.store.Peek(index.NewID(model.KindGateway, proxy)) != nil || pod.Labels[resolve.LabelGateway] != "" {
		return true // the Gateway is its proxy, once it is known
	}
	old := e.joined[proxy]
	switch {
	case old == nil && len(e.joined) >= maxJoined:
		return false
	case old != nil && old.ServiceAccount != pod.ServiceAccount && len(e.mesh.PodsByLabels(proxy.Namespace, resolve.Stable(old.Labels))) > 0:
		return false
	case old != nil && old.ServiceAccount == pod.ServiceAccount && reflect.DeepEqual(resolve.Stable(old.Labels), resolve.Stable(pod.Labels)):
		return true
	}
	e.joined[proxy] = pod
	u := unit{kind: unitTarget, proxy: proxy}
	e.ensure(u)
	e.mark(u)
	if e.synced {
		e.flush()
	}
	return true
}

// chooses tells whether labels have all that a selector asks for.
func chooses(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// expire has everything looked at again that read a Secret.
func (e *Engine) expire() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leave()
	for d := range e.subs {
		if d.Kind == index.Object && (strings.HasPrefix(d.Name, string(model.KindSecret)+"/") || strings.HasPrefix(d.Name, string(model.KindConfigMap)+"/")) {
			e.touch(d)
		}
	}
}

// Problems lists the objects that cannot be used, in order.
func (e *Engine) Problems() []graph.Problem {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []graph.Problem
	for id, f := range e.failed {
		out = append(out, graph.Problem{
			Kind: string(id.Kind), Namespace: id.Namespace, Name: id.Name, Origin: f.origin, Reason: f.reason, LastGood: f.lastGood,
		})
	}
	for k, p := range e.proxies {
		for name, err := range p.broken {
			out = append(out, graph.Problem{Kind: "Proxy", Namespace: k.Namespace, Name: k.Name, Reason: name + ": " + err, LastGood: true})
		}
		for name, reasons := range p.flawed {
			for _, reason := range reasons {
				out = append(out, graph.Problem{Kind: "Proxy", Namespace: k.Namespace, Name: k.Name, Reason: name + ": " + reason})
			}
		}
	}
	for k, m := range e.rejected {
		for name, reason := range m {
			out = append(out, graph.Problem{Kind: "Proxy", Namespace: k.Namespace, Name: k.Name, Reason: "refused " + name + ": " + reason, LastGood: true})
		}
	}
	slices.SortFunc(out, func(a, b graph.Problem) int {
		return strings.Compare(a.Kind+"/"+a.Namespace+"/"+a.Name+"/"+a.Reason, b.Kind+"/"+b.Namespace+"/"+b.Name+"/"+b.Reason)
	})
	return out
}

// Sizes counts what the engine holds, for the debug page.
func (e *Engine) Sizes() map[string]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[string]int{"proxies": len(e.proxies), "units": len(e.units)}
	for k, n := range e.store.Len() {
		out[string(k)] = n
	}
	return out
}

// Statuses returns the verdicts on all objects, for the debug page, in order.
func (e *Engine) Statuses() []*model.Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]*model.Status, 0, len(e.statuses))
	for _, s := range e.statuses {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *model.Status) int {
		return strings.Compare(string(a.Kind)+"/"+a.Key.String(), string(b.Kind)+"/"+b.Key.String())
	})
	return out
}
