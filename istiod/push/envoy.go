package push

import (
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Types that Envoys are served.
const (
	TypeCluster   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	TypeEndpoints = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	TypeListener  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	TypeScope     = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"
	TypeRoute     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	TypeSecret    = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

const (
	// warmTimeout is how long routes wait for clusters of which nothing is heard. Envoy itself gives up on endpoints
	// after 15 s; a proxy that does not ask for them at all must not hold back its routes for long.
	warmTimeout = 5 * time.Second
	// removalGrace is how long after its connection a proxy keeps clusters that are no more. A proxy that reconnects
	// subscribes type by type, and until all have been heard nobody knows what it still routes to.
	removalGrace = 2 * time.Second
	// maxHeld bounds how many removals wait for routes that a proxy rejects; the oldest are then sent.
	maxHeld = 50_000
)

// EnvoyTypes are the types that a Cache for Envoys must have, in serving order.
func EnvoyTypes() []string {
	return []string{TypeCluster, TypeEndpoints, TypeListener, TypeScope, TypeRoute, TypeSecret}
}

// rounded are the types that are sent in rounds.
func rounded() []string { return []string{TypeCluster, TypeListener, TypeScope, TypeRoute} }

// routing are the types that decide which cluster a request goes to, in the order
// in which removals of them are sent.
func routing() []string { return []string{TypeListener, TypeScope, TypeRoute} }

// EnvoyView serves what is in c to replicas of proxy.
func EnvoyView(proxy model.Key, c *Cache, gone <-chan struct{}) *View {
	return &View{Proxy: proxy, Cache: c, Types: EnvoyTypes(), Gone: gone, plan: func() plan {
		return &envoyPlan{cache: c, warming: map[need][]string{}, spare: map[need]*Resource{}}
	}}
}

// envoyPlan makes before it breaks. It goes in rounds. A round takes all changes of
// clusters and routing at one moment. It sends the clusters first, and their
// endpoints and secrets when the proxy asks; then, once the proxy can use those,
// the routing; then, once it has accepted that, the removals of clusters. Changes
// of endpoints and secrets that it has are sent as they come.
type envoyPlan struct {
	cache *Cache
	// begin and end are the positions between which the current round is.
	begin, end uint64
	// usable says that the proxy can use every cluster of the round.
	usable bool
	// warming are resources that clusters of the round wait for, with those clusters.
	warming map[need][]string
	// spare is what they were when the round began: if one has gone since, its cluster must warm nevertheless.
	spare map[need]*Resource
	// progress is when the proxy last got or accepted something of the round.
	progress time.Time
}

func (p *envoyPlan) stored(t string) string { return t }

func (p *envoyPlan) opened(_ *stream, w *watch, _ uint64) {
	w.held, w.quiet, w.routing = true, true, slices.Contains(routing(), w.typeURL)
}

// answer resolves names of endpoints and secrets to what exists. What does not
// exist yet, or is still to be read from the log, comes from there.
func (p *envoyPlan) answer(w *watch, _ uint64, out *response) bool {
	for len(w.pending) > 0 && out.bytes < maxChunk {
		name := w.pending[0]
		w.pending = w.pending[1:]
		r, seq := p.cache.find(w.stored, name)
		n := need{w.typeURL, name}
		waited := p.warming[n] != nil
		if waited {
			// A cluster that was sent again warms until its endpoints are, even if the proxy holds the same ones.
			delete(w.versions, name)
			if r == nil {
				r = p.spare[n]
			}
		}
		if p.lacks(w, name, r) && (waited || seq <= w.reader.cursor.Load()) {
			out.add(w, r)
		}
	}
	return len(out.resources) > 0
}

// lacks tells whether a name that was subscribed to must be sent.
func (p *envoyPlan) lacks(w *watch, name string, r *Resource) bool {
	if !w.asked[name] && !w.all {
		return false // unsubscribed since
	}
	held, holds := w.versions[name]
	if r == nil {
		if holds {
			delete(w.versions, name)
			w.removed = append(w.removed, tombstone{name: name, seq: w.reader.cursor.Load()})
		}
		return false
	}
	if holds && held == r.Version {
		delete(w.versions, name)
		w.sent[name] = true
		return false
	}
	return true
}

func (p *envoyPlan) sending(st *stream, w *watch, r *response, f *inflight) {
	p.progress = f.at
	for _, n := range r.needs {
		p.await(st, n)
	}
	if len(p.warming) == 0 || w.typeURL != TypeEndpoints && w.typeURL != TypeSecret {
		return
	}
	for _, res := range r.resources {
		if p.warming[need{w.typeURL, res.GetName()}] != nil {
			f.completes = append(f.completes, res.GetName())
		}
	}
}

// await notes what a cluster that is being sent needs before it carries traffic.
func (p *envoyPlan) await(st *stream, n clusterNeed) {
	if p.spare[n.need] == nil {
		return // it comes when it exists; nothing else may depend on that
	}
	w := st.watches[n.typeURL]
	asked := w != nil && (w.all || w.asked[n.name])
	if n.typeURL == TypeSecret && asked && w.sent[n.name] {
		return // clusters share secrets
	}
	p.warming[n.need] = append(p.warming[n.need], n.cluster)
	if asked {
		w.pending = append(w.pending, n.name) // a name that it has, the proxy does not ask for again
	}
}

func (p *envoyPlan) answered(w *watch, done []inflight, refused []string) {
	for _, f := range done {
		p.progress = time.Now()
		for _, name := range f.completes {
			delete(p.warming, need{w.typeURL, name})
		}
	}
	if w.routing && len(refused) == 0 {
		w.replaced(done)
	}
	if w.typeURL != TypeCluster || len(refused) == 0 {
		return
	}
	for n, clusters := range p.warming {
		good := slices.DeleteFunc(clusters, func(c string) bool { return slices.Contains(refused, c) })
		if p.warming[n] = good; len(good) == 0 {
			delete(p.warming, n)
		}
	}
}

// push runs rounds until the proxy must answer or everything is sent.
func (p *envoyPlan) push(st *stream, head uint64) (time.Duration, error) {
	p.start(st, head)
	for {
		if err := p.round(st, head); err != nil {
			return 0, err
		}
		if !p.start(st, head) {
			return p.remove(st)
		}
	}
}

// start begins a round if the last one has been sent and there is something to send.
func (p *envoyPlan) start(st *stream, head uint64) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	work := head > p.end
	var watches []*watch
	var readers []*reader
	for _, t := range rounded() {
		if w := st.watches[t]; w != nil {
			if len(w.queue) > 0 || w.collected && !p.usable {
				return false
			}
			work = work || !w.collected || len(w.pending) > 0
			watches, readers = append(watches, w), append(readers, w.reader)
		}
	}
	if !work || len(watches) == 0 {
		return false
	}
	p.begin, p.usable = p.end, false
	clear(p.spare)
	for _, w := range watches {
		if w.collected {
			w.begin = p.begin
		}
	}
	p.end = p.cache.collect(readers,
		func(i int, e *entry) { watches[i].enqueue(e) },
		func(i int, get func(typeURL, name string) *Resource) { p.enqueuePending(watches[i], get) })
	return true
}

// enqueue takes a change that the proxy wants into the round.
func (w *watch) enqueue(e *entry) {
	if !w.wants(e) {
		return
	}
	if e.res == nil {
		delete(w.sent, e.name)
		w.removed = append(w.removed, tombstone{name: e.name, seq: e.seq, from: w.begin})
		return
	}
	w.queue = append(w.queue, e.res)
	if w.caughtUp && w.oldest.IsZero() {
		w.oldest = e.at
	}
}

// enqueuePending takes the names into the round that the proxy subscribed to since
// the last one, and notes what its clusters need.
func (p *envoyPlan) enqueuePending(w *watch, get func(typeURL, name string) *Resource) {
	queued := map[string]bool{}
	if len(w.pending) > 0 {
		for _, r := range w.queue {
			queued[r.Name] = true
		}
	}
	for _, name := range w.pending {
		if r := get(w.stored, name); !queued[name] && p.lacks(w, name, r) {
			queued[name] = true
			w.queue = append(w.queue, r)
		}
	}
	for _, r := range w.queue {
		for _, n := range r.needs {
			p.spare[n] = get(n.typeURL, n.name)
		}
	}
	w.pending, w.collected = nil, true
	if w.all {
		w.versions, w.caughtUp = nil, true
	}
}

// dequeue takes a page off what is to be sent of the round; nil when there is nothing to say.
func (p *envoyPlan) dequeue(w *watch) (*response, bool) {
	out := &response{from: w.begin, seq: p.end, changed: w.oldest}
	for len(w.queue) > 0 {
		r := w.queue[0]
		if len(out.resources) > 0 && out.bytes+r.size > maxChunk {
			return out, true
		}
		w.queue = w.queue[1:]
		if w.all || w.asked[r.Name] {
			out.add(w, r)
		}
	}
	w.queue, w.oldest = nil, time.Time{}
	if len(out.resources) == 0 && !(w.owed && w.all && w.collected) {
		return nil, false
	}
	w.owed = false
	return out, false
}

// round sends what may be sent now. Types come in serving order.
func (p *envoyPlan) round(st *stream, head uint64) error {
	for _, w := range st.inOrder() {
		var err error
		switch {
		case w.typeURL == TypeEndpoints || w.typeURL == TypeSecret:
			err = st.pushType(w, head)
		case w.typeURL == TypeCluster || p.settle(st):
			err = st.pushPages(w, func() (*response, bool) { return p.dequeue(w) })
		}
		if err != nil {
			return err
		}
	}
	p.settle(st)
	return nil
}

// settle tells whether the proxy can use every cluster of the round, and with that
// the first half of it is over.
func (p *envoyPlan) settle(st *stream) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if p.usable {
		return true
	}
	if c := st.watches[TypeCluster]; c != nil && (len(c.queue) > 0 || len(c.inflight) > 0) {
		return false
	}
	if len(p.warming) > 0 {
		if time.Since(p.progress) < warmTimeout {
			return false
		}
		st.srv.metrics.unwarmed.Inc()
		st.log.Warn("proxy did not take endpoints or secrets of clusters in time; its routes go on", "missing", len(p.warming))
		clear(p.warming)
	}
	p.usable = true
	return true
}

// remove sends removals: of routing at once, in the order in which a request meets
// it, of the rest when the proxy has accepted all routing since.
func (p *envoyPlan) remove(st *stream) (time.Duration, error) {
	accepted := p.end
	for _, t := range routing() {
		w := st.subscription(t)
		if w == nil {
			continue
		}
		if p.routed(st) {
			if err := st.pushRemoved(w, p.end); err != nil {
				return 0, err
			}
		}
		accepted = min(accepted, p.through(st, w))
	}
	wait := p.patience(st)
	if wait > 0 {
		accepted = min(accepted, p.begin)
	}
	for _, t := range []string{TypeCluster, TypeEndpoints, TypeSecret} {
		w := st.subscription(t)
		if w == nil {
			continue
		}
		left, err := p.removeLast(st, w, accepted)
		if err != nil {
			return 0, err
		}
		wait = max(wait, left)
		if t == TypeCluster {
			accepted = min(accepted, p.through(st, w))
		}
	}
	return wait, nil
}

// patience is how long the round's routing waits yet if nothing is heard; 0 if it does not wait.
func (p *envoyPlan) patience(st *stream) time.Duration {
	st.mu.Lock()
	defer st.mu.Unlock()
	if p.usable {
		return 0
	}
	return max(warmTimeout-time.Since(p.progress), time.Millisecond)
}

// routed tells whether all routing of the round has been sent.
func (p *envoyPlan) routed(st *stream) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, t := range routing() {
		if w := st.watches[t]; w != nil && len(w.queue) > 0 {
			return false
		}
	}
	return p.usable
}

// through is the position up to which the proxy has accepted everything of a type:
// what it was not sent, did not acknowledge or rejected is behind it.
func (p *envoyPlan) through(st *stream, w *watch) uint64 {
	st.mu.Lock()
	defer st.mu.Unlock()
	at := p.end
	switch {
	case !w.collected:
		return 0
	case len(w.queue) > 0:
		at = w.begin
	}
	if len(w.removed) > 0 {
		at = min(at, w.removed[0].from)
	}
	for _, f := range w.inflight {
		at = min(at, f.from)
	}
	for _, r := range w.rejected {
		at = min(at, r.from)
	}
	return at
}

// removeLast sends removals up to accepted, or returns how long they must wait yet.
func (p *envoyPlan) removeLast(st *stream, w *watch, accepted uint64) (time.Duration, error) {
	st.mu.Lock()
	n := len(w.removed)
	if n > maxHeld {
		accepted = max(accepted, w.removed[n-maxHeld-1].seq)
	}
	st.mu.Unlock()
	if n == 0 {
		return 0, nil
	}
	if left := st.srv.cfg.removalGrace() - time.Since(st.connected); left > 0 {
		return left, nil
	}
	return 0, st.pushRemoved(w, accepted)
}
