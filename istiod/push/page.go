package push

import (
	"slices"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/api/ports"
)

// pushType sends pages until the subscription is at the cut or too many are in flight.
func (st *stream) pushType(w *watch, cut uint64) error {
	return st.pushPages(w, func() (*response, bool) { return st.next(w, cut) })
}

// pushPages sends what next returns, until that is nil or too many are in flight.
func (st *stream) pushPages(w *watch, next func() (*response, bool)) error {
	for {
		st.mu.Lock()
		if len(w.inflight) >= maxInFlight {
			st.mu.Unlock()
			return nil
		}
		resp, more := next()
		st.mu.Unlock()
		if resp == nil {
			return nil
		}
		if err := st.send(w, resp); err != nil {
			return err
		}
		if !more {
			return nil
		}
	}
}

// response is a page on its way, with what its acknowledgement will tell.
type response struct {
	resources []*discovery.Resource
	// needs are what the clusters among them wait for.
	needs   []clusterNeed
	removed []string
	bytes   int
	// from and seq are the positions in the log before and after it.
	from, seq uint64
	changed   time.Time
}

// clusterNeed is what a cluster waits for.
type clusterNeed struct {
	need
	cluster string
}

// next takes the next page off the subscription; nil when there is nothing to say.
func (st *stream) next(w *watch, cut uint64) (*response, bool) {
	from := w.reader.cursor.Load()
	out := &response{from: from}
	if len(w.pending) > 0 && st.plan.answer(w, cut, out) {
		out.seq = from
		w.owed = false
		return out, true
	}
	more := false
	if from < cut {
		p := st.view.Cache.read(w.stored, from, cut, maxChunk, w.wants)
		for _, r := range p.resources {
			out.add(w, r)
		}
		for _, t := range p.removed {
			delete(w.sent, t.name)
			w.removed = append(w.removed, t)
		}
		w.reader.cursor.Store(p.next)
		more = p.more
		if w.caughtUp {
			out.changed = p.oldest
		}
	}
	out.seq = w.reader.cursor.Load()
	begun := out.seq >= w.since // else the state at the time of the request is not all out yet
	if w.all && begun && !more {
		w.versions, w.caughtUp = nil, true
	}
	if !w.held {
		for _, t := range w.removed {
			out.removed = append(out.removed, t.name)
		}
		w.removed = nil
	}
	if len(out.resources) > 0 || len(out.removed) > 0 {
		w.owed = false
		return out, more
	}
	if more {
		return st.next(w, cut)
	}
	if !w.owed || !begun || w.quiet && !w.all {
		return nil, false
	}
	w.owed = false
	return out, false
}

// add puts a resource into the response in the form of the subscription.
func (out *response) add(w *watch, r *Resource) {
	wire := r.wire
	if w.typeURL == ports.TypeWorkload {
		if wire = r.view; wire == nil {
			return // a service, which this older type cannot express
		}
	}
	if !w.all {
		w.sent[r.Name] = true
		wire = withAliases(wire, r.Aliases)
	}
	for _, n := range r.needs {
		out.needs = append(out.needs, clusterNeed{n, r.Name})
	}
	out.resources = append(out.resources, wire)
	out.bytes += r.size
}

// pushRemoved sends the removals that were held back and are no newer than upTo,
// except of names that exist again.
func (st *stream) pushRemoved(w *watch, upTo uint64) error {
	st.mu.Lock()
	out, accepted := st.takeRemoved(w, upTo)
	var notices []Rejection
	if len(accepted) > 0 {
		notices = append(notices, st.rejection(w, accepted, ""))
	}
	st.mu.Unlock()
	st.report(notices)
	if len(out.removed) == 0 {
		return nil
	}
	return st.send(w, out)
}

// takeRemoved also returns rejected names that are no more.
func (st *stream) takeRemoved(w *watch, upTo uint64) (out *response, accepted []string) {
	out = &response{seq: w.reader.cursor.Load()}
	n := 0
	for n < len(w.removed) && w.removed[n].seq <= upTo {
		n++
	}
	if n == 0 || len(w.inflight) >= maxInFlight {
		return out, nil
	}
	out.from = w.removed[0].from
	kept, sent := []tombstone{}, map[string]bool{}
	for _, t := range w.removed[:n] {
		switch {
		case w.quiet && !w.all && !w.asked[t.name]:
		case st.view.Cache.gone(w.stored, t):
			out.removed, sent[t.name] = append(out.removed, t.name), true
			if _, ok := w.rejected[t.name]; ok {
				delete(w.rejected, t.name)
				accepted = append(accepted, t.name)
			}
		case w.routing:
			kept = append(kept, t)
		}
	}
	kept = slices.DeleteFunc(kept, func(t tombstone) bool { return sent[t.name] })
	w.removed = append(kept, w.removed[n:]...)
	return out, accepted
}
