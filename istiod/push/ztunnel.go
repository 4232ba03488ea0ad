package push

import (
	"math"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
)

// ZtunnelView serves workloads and policies.
func ZtunnelView(c *Cache) *View {
	return &View{Cache: c, Types: ztunnelOrder(), plan: func() plan { return &ztunnelPlan{cache: c} }}
}

// Types are the types that a Cache for ztunnels must have. The type Workload is
// a view of Address and has none of its own.
func Types() []string { return []string{ports.TypeAddress, ports.TypeAuthorization} }

// ztunnelOrder has policies before the workloads that refer to them.
func ztunnelOrder() []string {
	return []string{ports.TypeAuthorization, ports.TypeAddress, ports.TypeWorkload}
}

// ztunnelPlan keeps a workload from being without the policies that it refers to.
type ztunnelPlan struct{ cache *Cache }

func (p *ztunnelPlan) stored(t string) string {
	if t == ports.TypeWorkload {
		return ports.TypeAddress
	}
	return t
}

func (p *ztunnelPlan) opened(st *stream, w *watch, _ uint64) {
	w.held = w.typeURL == ports.TypeAuthorization
	if name := metadata(st.node, "NODE_NAME"); name != "" && !w.all && w.stored == ports.TypeAddress {
		w.implied[NodeKey(name)] = true
		w.pending = append(w.pending, NodeKey(name))
	}
}

// answer tells of names that do not exist too, so that nobody waits.
func (p *ztunnelPlan) answer(w *watch, _ uint64, out *response) bool {
	seen := map[string]bool{}
	for len(w.pending) > 0 && out.bytes < maxChunk {
		name := w.pending[0]
		w.pending = w.pending[1:]
		found := p.cache.Expand(w.stored, name)
		if len(found) == 0 && !w.implied[name] {
			out.removed = append(out.removed, name)
		}
		for _, r := range found {
			if seen[r.Name] || w.versions != nil && w.versions[r.Name] == r.Version {
				w.sent[r.Name] = true
				continue
			}
			seen[r.Name] = true
			out.add(w, r)
		}
	}
	if len(w.pending) == 0 {
		w.pending = nil
		if !w.all {
			w.versions = nil
		}
	}
	return true
}

func (p *ztunnelPlan) sending(*stream, *watch, *response, *inflight) {}

func (p *ztunnelPlan) answered(*watch, []inflight, []string) {}

// push sends removed policies last: until the workloads that referred to them have
// gone, taking an ALLOW policy away would let everybody in.
func (p *ztunnelPlan) push(st *stream, head uint64) (time.Duration, error) {
	watches := st.inOrder()
	cut := head
	for _, w := range watches {
		if err := st.pushType(w, cut); err != nil {
			return 0, err
		}
		if w.typeURL == ports.TypeAuthorization {
			cut = min(cut, w.reader.cursor.Load())
		}
	}
	for _, w := range watches {
		if w.typeURL == ports.TypeAuthorization && arrived(watches, w.reader.cursor.Load()) {
			if err := st.pushRemoved(w, math.MaxUint64); err != nil {
				return 0, err
			}
		}
	}
	return 0, nil
}

// arrived tells whether all address subscriptions have been sent everything up to cut.
func arrived(watches []*watch, cut uint64) bool {
	for _, w := range watches {
		if w.stored == ports.TypeAddress && w.reader.cursor.Load() < cut {
			return false
		}
	}
	return true
}
