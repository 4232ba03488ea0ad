package push

import (
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// View is what one stream is served: a cache, and the order of its types.
type View struct {
	// Proxy is the waypoint or gateway; zero for a ztunnel.
	Proxy model.Key
	Cache *Cache
	// Types in serving order.
	Types []string
	// Gone ends the stream when it is closed; nil never does.
	Gone <-chan struct{}
	// plan makes what knows how the types hang together.
	plan func() plan
}

// plan is how the types of one kind of proxy hang together. All methods but push
// are called with the stream's mutex held.
type plan interface {
	// stored is the type under which the cache holds what is served as t.
	stored(t string) string
	// opened prepares a new subscription, made at the cut head.
	opened(st *stream, w *watch, head uint64)
	// answer resolves pending names into out, as many as fit; false leaves out as it is and goes on with the log.
	answer(w *watch, cut uint64, out *response) bool
	// sending is told of each response, answered of each verdict with the names that the proxy refused.
	sending(st *stream, w *watch, r *response, f *inflight)
	answered(w *watch, done []inflight, refused []string)
	// push sends what each subscription lacks up to the cut head, and returns when it wants to be called again
	// even if nothing happens; 0 is never.
	push(st *stream, head uint64) (time.Duration, error)
}

// metadata returns a string of the node's metadata.
func metadata(n *core.Node, key string) string {
	return n.GetMetadata().GetFields()[key].GetStringValue()
}

// inOrder returns the subscriptions that exist, in serving order.
func (st *stream) inOrder() []*watch {
	st.mu.Lock()
	defer st.mu.Unlock()
	out := make([]*watch, 0, len(st.view.Types))
	for _, t := range st.view.Types {
		if w := st.watches[t]; w != nil {
			out = append(out, w)
		}
	}
	return out
}

// subscription returns the one of a type, or nil.
func (st *stream) subscription(t string) *watch {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.watches[t]
}
