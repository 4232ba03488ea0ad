package push

import (
	"maps"
	"slices"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// wildcard subscribes to everything of a type.
const wildcard = "*"

// NodeKey is the key that graph gives the workloads of a node, so that an
// on-demand proxy gets those of its own node without asking: it must know them to
// serve them. No resource name has this form.
func NodeKey(node string) string { return "\x00node/" + node }

// watch is a stream's subscription to one type. The stream's mutex guards it.
type watch struct {
	typeURL string
	// stored is the type under which the cache holds what is served.
	stored string
	reader *reader
	// all is a wildcard subscription; else asked holds the names subscribed to.
	all   bool
	asked map[string]bool
	// implied are keys subscribed to on the proxy's behalf, whose absence is not news.
	implied map[string]bool
	// sent are resources that a proxy which asks by name got, so that it hears of their removal.
	sent map[string]bool
	// pending are names to answer, all of them even if nothing changed.
	pending []string
	// versions is what the proxy held when it connected, until it is up to date.
	versions map[string]string
	// since is the cut at which the subscription to everything began. What was removed before is not news.
	since uint64
	// caughtUp says that the first state has been sent, so that what follows are changes.
	caughtUp bool
	// owed says that a request has had no answer yet.
	owed bool
	// removed are names whose removal is still to be sent, in order of time. Held says that they wait for other types.
	removed []tombstone
	held    bool
	// routing keeps a removed name that exists again among them until the proxy has accepted its new form: up to
	// then it goes on with the old one, and what that refers to must stay.
	routing bool
	// queue is what of the current round is still to be sent, oldest the time of its first change. What it replaces
	// may be as old as begin. Collected says that the subscription has been part of a round.
	queue     []*Resource
	oldest    time.Time
	begin     uint64
	collected bool
	// quiet says that names which do not exist get no answer before they do.
	quiet bool

	inflight  []inflight
	acked     uint64
	lastNonce string
	lastAck   time.Time
	resources uint64
	rejects   uint64
	reject    string
	// rejected are resources whose newest form the proxy refused: it goes on with the one before.
	rejected map[string]rejected
}

// rejected is a refused resource: since which position in the log, and why.
type rejected struct {
	from   uint64
	reason string
}

// inflight is a response that is not acknowledged yet.
type inflight struct {
	nonce string
	// from and seq are the positions in the log before and after it.
	from, seq uint64
	at        time.Time
	// changed is when the oldest change in it happened; zero for the first state.
	changed time.Time
	// sent is what is in it; completes are names that others wait for.
	sent      []*discovery.Resource
	completes []string
}

// newWatch reads the first request of a type at the cut head. An empty list of
// names means everything; "*" both subscribed and unsubscribed means nothing yet.
func newWatch(typeURL string, r *reader, req *discovery.DeltaDiscoveryRequest, head uint64) (*watch, error) {
	w := &watch{
		typeURL: typeURL, stored: r.typeURL, reader: r, since: head, owed: true,
		asked: map[string]bool{}, implied: map[string]bool{}, sent: map[string]bool{},
		versions: req.GetInitialResourceVersions(), rejected: map[string]rejected{},
	}
	w.all = len(req.GetResourceNamesSubscribe()) == 0 && len(req.GetResourceNamesUnsubscribe()) == 0
	if err := w.update(req); err != nil {
		return nil, err
	}
	if w.all {
		return w, nil
	}
	r.cursor.Store(head)
	w.caughtUp = true
	// What a proxy that asks by name still holds is what it had asked for.
	for name := range w.versions {
		if !w.asked[name] {
			w.asked[name] = true
			w.pending = append(w.pending, name)
		}
	}
	return w, nil
}

// update applies the subscriptions of any request.
func (w *watch) update(req *discovery.DeltaDiscoveryRequest) error {
	for _, name := range req.GetResourceNamesSubscribe() {
		w.owed = true
		if name == wildcard {
			if !w.all {
				w.all = true
				if cursor := w.reader.cursor.Swap(0); cursor > 0 {
					w.since, w.caughtUp = cursor, false
				}
			}
			continue
		}
		// A name subscribed to again is sent again: the proxy may have dropped it.
		w.asked[name] = true
		w.pending = append(w.pending, name)
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		if name == wildcard {
			w.all = false
			continue
		}
		delete(w.asked, name)
		delete(w.sent, name)
		delete(w.rejected, name)
	}
	if len(w.asked) > maxNames {
		return status.Errorf(codes.ResourceExhausted, "subscribed to more than %d names of %s", maxNames, shortType(w.typeURL))
	}
	return nil
}

// wants tells whether an entry of the log is for this proxy.
func (w *watch) wants(e *entry) bool {
	if w.all {
		if e.res == nil {
			return e.seq > w.since
		}
		return w.versions[e.name] != e.res.Version
	}
	if e.res == nil {
		return w.sent[e.name] || w.asked[e.name]
	}
	if held, ok := w.versions[e.name]; ok {
		delete(w.versions, e.name)
		if held == e.res.Version {
			w.sent[e.name] = true
			return false
		}
	}
	// Sent names count too: who got a service by its address gets its new endpoints.
	return e.res.anyName(func(n string) bool { return w.asked[n] || w.sent[n] || w.implied[n] })
}

// replaced forgets removals of names of which the proxy has accepted a newer form.
func (w *watch) replaced(done []inflight) {
	if len(w.removed) == 0 {
		return
	}
	seen := map[string]uint64{}
	for _, f := range done {
		for _, r := range f.sent {
			seen[r.GetName()] = f.seq
		}
	}
	w.removed = slices.DeleteFunc(w.removed, func(t tombstone) bool { return t.seq <= seen[t.name] })
}

// ack takes a response, and all before it, out of those in flight. The last one
// returned is the one that was acknowledged.
func (w *watch) ack(nonce string) []inflight {
	for i, f := range w.inflight {
		if f.nonce == nonce {
			done := slices.Clone(w.inflight[:i+1])
			w.inflight = append(w.inflight[:0], w.inflight[i+1:]...)
			return done
		}
	}
	return nil
}

func (w *watch) status(head uint64, now time.Time) TypeStatus {
	cursor := w.reader.cursor.Load()
	out := TypeStatus{
		Type: shortType(w.typeURL), OnDemand: !w.all, Sent: cursor, Acked: w.acked, Behind: head - min(head, cursor),
		InFlight: len(w.inflight), LastNonce: w.lastNonce, LastAck: w.lastAck,
		Resources: w.resources, Rejects: w.rejects, LastReject: w.reject, Rejected: slices.Sorted(maps.Keys(w.rejected)),
	}
	if len(w.inflight) > 0 {
		out.LagSeconds = now.Sub(w.inflight[0].at).Seconds()
	}
	return out
}
