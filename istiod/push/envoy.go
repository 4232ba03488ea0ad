package push

import (
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

// routing are the types that decide which cluster a request goes to, in the order
// in which removals of them are sent.
func routing() []string { return []string{TypeListener, TypeScope, TypeRoute} }

// EnvoyView serves what is in c to replicas of proxy.
func EnvoyView(proxy model.Key, c *Cache, gone <-chan struct{}) *View {
	return &View{Proxy: proxy, Cache: c, Types: EnvoyTypes(), Gone: gone, plan: func() plan {
		return &envoyPlan{cache: c, warming: map[need][]string{}}
	}}
}

// envoyPlan makes before it breaks. It goes in rounds: clusters up to a cut, and
// their endpoints and secrets when the proxy asks; then, once it has accepted
// those, routing up to the same cut; then, once it has accepted that, removals of
// clusters. Endpoints and secrets of clusters that it has do not wait for rounds.
type envoyPlan struct {
	cache *Cache
	// target is the cut of the current round; up to safe, every cluster can carry traffic.
	target, safe uint64
	// warming are resources that clusters of the current round wait for, with those clusters.
	warming map[need][]string
	// progress is when the proxy last got or accepted something of the round.
	progress time.Time
	timeouts uint64
}

func (p *envoyPlan) stored(t string) string { return t }

func (p *envoyPlan) opened(_ *stream, w *watch, head uint64) {
	w.held, w.quiet = true, true
	if w.all {
		return
	}
	switch w.typeURL {
	case TypeListener, TypeScope, TypeRoute:
		// What is newer than safe must not be skipped, it must wait.
		w.reader.cursor.Store(min(head, p.safe))
	}
}

// answer resolves names to what exists. What does not exist yet, or is newer than
// the cut, is sent by the log when it is its turn.
func (p *envoyPlan) answer(w *watch, cut uint64, out *response) bool {
	for len(w.pending) > 0 && out.bytes < maxChunk {
		name := w.pending[0]
		w.pending = w.pending[1:]
		if !w.asked[name] && !w.all {
			continue // unsubscribed since
		}
		r, seq := p.cache.find(w.stored, name)
		held, holds := w.versions[name]
		switch {
		case r == nil && holds:
			delete(w.versions, name)
			w.removed = append(w.removed, tombstone{name, max(cut, 1)})
		case r == nil || seq > cut:
		default:
			delete(w.versions, name)
			if seq > w.reader.cursor.Load() {
				w.answered[name] = seq
			}
			// A cluster that was sent again warms until its endpoints are, even if the proxy holds the same ones.
			_, waited := p.warming[need{w.typeURL, name}]
			if holds && held == r.Version && !waited {
				w.sent[name] = true
				continue
			}
			out.add(w, r)
		}
	}
	return len(out.resources) > 0
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
		if _, ok := p.warming[need{w.typeURL, res.GetName()}]; ok {
			f.completes = append(f.completes, res.GetName())
		}
	}
}

// await notes what a cluster that is being sent needs before it carries traffic.
func (p *envoyPlan) await(st *stream, n clusterNeed) {
	if p.cache.Get(n.typeURL, n.name) == nil {
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
	if w.typeURL != TypeCluster || len(refused) == 0 {
		return
	}
	bad := map[string]bool{}
	for _, name := range refused {
		bad[name] = true
	}
	for n, clusters := range p.warming {
		var good []string
		for _, c := range clusters {
			if !bad[c] {
				good = append(good, c)
			}
		}
		if p.warming[n] = good; len(good) == 0 {
			delete(p.warming, n)
		}
	}
}

// push runs rounds until the proxy must answer or everything is sent.
func (p *envoyPlan) push(st *stream, head uint64) (time.Duration, error) {
	for {
		if p.caughtUp(st) {
			p.target = head
		}
		if err := p.round(st, head); err != nil {
			return 0, err
		}
		if p.safe == head || !p.caughtUp(st) {
			break
		}
	}
	return p.remove(st)
}

// round sends what may be sent now. Types come in serving order.
func (p *envoyPlan) round(st *stream, head uint64) error {
	for _, w := range st.inOrder() {
		cut := head
		switch w.typeURL {
		case TypeCluster:
			cut = p.target
		case TypeListener, TypeScope, TypeRoute:
			p.settle(st)
			cut = p.safe
		}
		if err := st.pushType(w, cut); err != nil {
			return err
		}
	}
	p.settle(st)
	return nil
}

// settle ends the first half of a round if the proxy can use every cluster of it.
func (p *envoyPlan) settle(st *stream) {
	st.mu.Lock()
	defer st.mu.Unlock()
	c := st.watches[TypeCluster]
	if p.safe == p.target {
		return
	}
	if c != nil && (c.reader.cursor.Load() < p.target || len(c.inflight) > 0) {
		return
	}
	if len(p.warming) > 0 {
		if time.Since(p.progress) < warmTimeout {
			return
		}
		p.timeouts++
		st.srv.metrics.unwarmed.Inc()
		st.log.Warn("proxy did not take the endpoints or secrets of clusters in time; its routes go on", "missing", len(p.warming))
		clear(p.warming)
	}
	p.safe = p.target
}

// caughtUp tells whether all routing up to the end of the round has been sent.
func (p *envoyPlan) caughtUp(st *stream) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if p.safe < p.target {
		return false
	}
	for _, t := range routing() {
		if w := st.watches[t]; w != nil && w.reader.cursor.Load() < p.safe {
			return false
		}
	}
	return true
}

// remove sends removals: of routing at once, in the order in which a request meets
// it, of the rest when the proxy has accepted all routing since.
func (p *envoyPlan) remove(st *stream) (time.Duration, error) {
	sent, accepted := p.safe, p.safe
	for _, t := range routing() {
		if w := st.subscription(t); w != nil {
			sent = min(sent, w.reader.cursor.Load())
		}
	}
	for _, t := range routing() {
		if w := st.subscription(t); w != nil {
			if err := st.pushRemoved(w, sent); err != nil {
				return 0, err
			}
			accepted = min(accepted, st.through(w))
		}
	}
	var wait time.Duration
	if p.safe < p.target {
		wait = warmTimeout
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
			accepted = min(accepted, st.through(w))
		}
	}
	return wait, nil
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

func (st *stream) through(w *watch) uint64 {
	st.mu.Lock()
	defer st.mu.Unlock()
	return w.through()
}
