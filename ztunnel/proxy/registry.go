package proxy

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/policy"
	"github.com/ambit-mesh/ambit/ztunnel/state"
)

const (
	// sampleEvery is how old the byte counters of a live connection may be: well below a scrape interval.
	sampleEvery = 5 * time.Second
	// recheckEvery bounds how often live connections are judged again while state changes all the time. A
	// connection that is no longer allowed ends within this and the time of one pass.
	recheckEvery = 250 * time.Millisecond
)

// ConnectionInfo describes a live connection to people.
type ConnectionInfo struct {
	ID          uint64         `json:"id"`
	Pod         string         `json:"pod"`
	Direction   string         `json:"direction"`
	Protocol    string         `json:"protocol"`
	Source      netip.AddrPort `json:"src"`
	Destination netip.AddrPort `json:"dst"`
	Upstream    string         `json:"upstream,omitempty"`
	SrcIdentity string         `json:"srcIdentity,omitempty"`
	DstIdentity string         `json:"dstIdentity,omitempty"`
	Service     string         `json:"service,omitempty"`
	Since       time.Time      `json:"since"`
	BytesSent   uint64         `json:"bytesSent"`
	BytesRecv   uint64         `json:"bytesRecv"`
}

// registry holds the live connections of all pods.
type registry struct {
	mu    sync.Mutex
	next  uint64
	flows map[*flow]struct{}
}

func newRegistry() *registry { return &registry{flows: map[*flow]struct{}{}} }

func (r *registry) add(f *flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	f.id = r.next
	r.flows[f] = struct{}{}
}

func (r *registry) remove(f *flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flows, f)
}

func (r *registry) all() []*flow {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*flow, 0, len(r.flows))
	for f := range r.flows {
		out = append(out, f)
	}
	return out
}

func (r *registry) sample() {
	for _, f := range r.all() {
		f.sample()
	}
}

func (r *registry) list() []ConnectionInfo {
	flows := r.all()
	out := make([]ConnectionInfo, 0, len(flows))
	for _, f := range flows {
		out = append(out, f.info())
	}
	slices.SortFunc(out, func(a, b ConnectionInfo) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func (r *registry) cutPod(pod *Pod, reason error) {
	for _, f := range r.all() {
		if f.pod == pod {
			f.cutWith(cutReason{err: reason})
		}
	}
}

// errPolicyChanged is why a live connection was cut.
var errPolicyChanged = errors.New("connection closed by a policy change")

// recheck judges every live inbound connection by the state of snap.
func (p *Proxy) recheck(snap *state.Snapshot) {
	type answer struct {
		own *state.Workload
		set policy.Set
	}
	known := map[*Pod]answer{}
	for _, f := range p.registry.all() {
		conn, ok := f.judged()
		if !ok {
			continue
		}
		a, ok := known[f.pod]
		if !ok {
			if a.own = f.pod.find(snap); a.own != nil {
				a.set = snap.Policies(a.own).Standing()
			}
			known[f.pod] = a
		}
		if a.own == nil {
			// The pod is being deleted or leaves the mesh: its policies go with it, its connections end by themselves.
			continue
		}
		if v := policy.Evaluate(a.set, conn); !v.Allowed {
			f.cutWith(cutReason{err: errPolicyChanged, verdict: v})
		}
	}
}
