package push

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/api/ports"
)

const (
	// maxChunk is how much one response carries, in bytes. Clients may refuse messages over 4 MiB; smaller
	// than that also bounds what a thousand proxies that connect at once make istiod hold.
	maxChunk = 256 << 10
	// maxInFlight is how many responses of a type may be unacknowledged. A proxy that applies slowly then
	// gets the newest state when it is ready, instead of a queue of old ones.
	maxInFlight = 4
	// maxNames bounds what one on-demand proxy may subscribe to; more than any node can talk to.
	maxNames = 200_000
	// ackTimeout is how long a proxy may owe an acknowledgement. Then it is taken for stuck and must reconnect.
	ackTimeout = 5 * time.Minute
)

// stream serves one proxy. One goroutine receives and records, one sends, so that
// a proxy which does not read cannot keep its acknowledgements from being heard.
type stream struct {
	srv       *Server
	grpc      discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	node      *core.Node
	peer      string
	connected time.Time
	log       *slog.Logger
	nonces    uint64
	// kick wakes the sender after a request.
	kick chan struct{}

	mu      sync.Mutex
	watches map[string]*watch
	unknown map[string]bool
	// failed ends the stream; a request set it.
	failed error
}

func newStream(s *Server, g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, n *core.Node, addr string) *stream {
	return &stream{
		srv: s, grpc: g, node: n, peer: addr, connected: time.Now(),
		log:     s.cfg.Log.With("proxy", n.GetId(), "peer", addr),
		kick:    make(chan struct{}, 1),
		watches: map[string]*watch{},
		unknown: map[string]bool{},
	}
}

func (st *stream) close() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, w := range st.watches {
		st.srv.cache.close(w.reader)
	}
}

func (st *stream) status(head uint64, now time.Time) ProxyStatus {
	st.mu.Lock()
	defer st.mu.Unlock()
	out := ProxyStatus{Proxy: st.node.GetId(), Peer: st.peer, Connected: st.connected}
	for _, t := range order {
		if w := st.watches[t]; w != nil {
			out.Types = append(out.Types, w.status(head, now))
		}
	}
	return out
}

// run serves until the stream ends. gRPC ends Recv when run returns, and with it the receiver.
func (st *stream) run(ctx context.Context, first *discovery.DeltaDiscoveryRequest) error {
	select {
	case <-st.srv.cache.Ready():
	case <-st.srv.stopped:
		return errStopping()
	case <-ctx.Done():
		return ctx.Err()
	}
	st.receive(first)
	ended := make(chan error, 1)
	go func() {
		for {
			req, err := st.grpc.Recv()
			if err != nil {
				ended <- err
				return
			}
			st.receive(req)
		}
	}()
	tick := time.NewTicker(ackTimeout / 4)
	defer tick.Stop()
	for {
		head, wake := st.srv.cache.head()
		if err := st.push(head); err != nil {
			return err
		}
		select {
		case <-wake:
		case <-st.kick:
		case <-tick.C:
			if err := st.checkStuck(); err != nil {
				return err
			}
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-st.srv.stopped:
			return errStopping()
		}
	}
}

func errStopping() error { return status.Error(codes.Unavailable, "istiod is stopping") }

func (st *stream) checkStuck() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, w := range st.watches {
		if len(w.inflight) > 0 && time.Since(w.inflight[0].at) > ackTimeout {
			st.srv.metrics.refused.WithLabelValues("stuck").Inc()
			return status.Errorf(codes.DeadlineExceeded, "no acknowledgement of %s for %s", shortType(w.typeURL), ackTimeout)
		}
	}
	return nil
}

// receive records a request. It never sends.
func (st *stream) receive(req *discovery.DeltaDiscoveryRequest) {
	t := req.GetTypeUrl()
	st.mu.Lock()
	defer st.mu.Unlock()
	w := st.watches[t]
	switch {
	case t == typeHealth:
		return
	case w != nil:
		st.acknowledge(w, req)
		if err := w.update(req); err != nil {
			st.failed = err
		}
	case slices.Contains(order, t):
		head, _ := st.srv.cache.head()
		r := st.srv.cache.open(stored(t))
		if w, st.failed = newWatch(t, r, req, st.node, head); st.failed != nil {
			st.srv.cache.close(r)
			break
		}
		if w.all {
			w.removed = st.srv.cache.missing(stored(t), w.versions)
		}
		st.watches[t] = w
	default:
		if !st.unknown[t] && len(st.unknown) < len(order) {
			st.unknown[t] = true
			st.log.Warn("proxy asked for a type that is not served", "type", t)
		}
		return
	}
	select {
	case st.kick <- struct{}{}:
	default:
	}
}

// acknowledge records the proxy's verdict on a response.
func (st *stream) acknowledge(w *watch, req *discovery.DeltaDiscoveryRequest) {
	nonce := req.GetResponseNonce()
	if nonce == "" {
		return
	}
	m, short := st.srv.metrics, shortType(w.typeURL)
	f, ok := w.ack(nonce)
	if !ok {
		m.stale.WithLabelValues(short).Inc()
		return
	}
	now := time.Now()
	w.lastNonce, w.lastAck = nonce, now
	m.observe(m.ackSeconds, w.typeURL, f.at, now)
	if e := req.GetErrorDetail(); e != nil {
		// The proxy keeps the good part and its former state of the rest; sending the same again would change nothing.
		w.rejects++
		w.reject = e.GetMessage()
		m.rejected.WithLabelValues(short).Inc()
		st.log.Error("proxy rejected resources", "type", short, "nonce", nonce, "reason", e.GetMessage())
		return
	}
	w.acked = f.seq
	m.acked.WithLabelValues(short).Inc()
	if !f.changed.IsZero() {
		m.observe(m.convergence, w.typeURL, f.changed, now)
	}
}

// push sends what each subscription lacks up to the cut head. Removed policies
// come last: until the workloads that referred to them have gone, taking an ALLOW
// policy away would let everybody in.
func (st *stream) push(head uint64) error {
	st.mu.Lock()
	if err := st.failed; err != nil {
		st.mu.Unlock()
		return err
	}
	watches := make([]*watch, 0, len(order))
	for _, t := range order {
		if w := st.watches[t]; w != nil {
			watches = append(watches, w)
		}
	}
	st.mu.Unlock()
	cut := head
	for _, w := range watches {
		if err := st.pushType(w, cut); err != nil {
			return err
		}
		if w.typeURL == ports.TypeAuthorization {
			cut = min(cut, w.reader.cursor.Load())
		}
	}
	for _, w := range watches {
		if w.typeURL == ports.TypeAuthorization && arrived(watches, w.reader.cursor.Load()) {
			if err := st.pushRemoved(w); err != nil {
				return err
			}
		}
	}
	return nil
}

// arrived tells whether all address subscriptions have been sent everything up to cut.
func arrived(watches []*watch, cut uint64) bool {
	for _, w := range watches {
		if stored(w.typeURL) == ports.TypeAddress && w.reader.cursor.Load() < cut {
			return false
		}
	}
	return true
}

// pushType sends pages until the subscription is at the cut or too many are in flight.
func (st *stream) pushType(w *watch, cut uint64) error {
	for {
		st.mu.Lock()
		if len(w.inflight) >= maxInFlight {
			st.mu.Unlock()
			return nil
		}
		resp, more := st.next(w, cut)
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
	removed   []string
	bytes     int
	seq       uint64
	changed   time.Time
}

// next takes the next page off the subscription; nil when there is nothing to say.
func (st *stream) next(w *watch, cut uint64) (*response, bool) {
	out := &response{}
	if len(w.pending) > 0 {
		st.answerPending(w, out)
		out.seq = w.reader.cursor.Load()
		w.owed = false
		return out, true
	}
	from := w.reader.cursor.Load()
	more := false
	if from < cut {
		p := st.srv.cache.read(stored(w.typeURL), from, cut, maxChunk, w.wants)
		for _, r := range p.resources {
			out.add(w, r)
		}
		for _, name := range p.removed {
			delete(w.sent, name)
			w.removed = append(w.removed, name)
		}
		w.reader.cursor.Store(p.next)
		more = p.more
		if w.caughtUp {
			out.changed = p.oldest
		}
	}
	if !more && w.all {
		w.versions, w.caughtUp = nil, true
	}
	if w.typeURL != ports.TypeAuthorization {
		out.removed, w.removed = w.removed, nil
	}
	out.seq = w.reader.cursor.Load()
	if len(out.resources) == 0 && len(out.removed) == 0 && (more || !w.owed) {
		if more {
			return st.next(w, cut)
		}
		return nil, false
	}
	w.owed = false
	return out, more
}

// answerPending resolves names that the proxy subscribed to, as many as fit.
func (st *stream) answerPending(w *watch, out *response) {
	seen := map[string]bool{}
	for len(w.pending) > 0 && out.bytes < maxChunk {
		name := w.pending[0]
		w.pending = w.pending[1:]
		found := st.srv.cache.Expand(stored(w.typeURL), name)
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
	out.resources = append(out.resources, wire)
	out.bytes += r.size
}

// pushRemoved sends the removals that were held back, except of names that exist again.
func (st *stream) pushRemoved(w *watch) error {
	st.mu.Lock()
	out := &response{seq: w.reader.cursor.Load()}
	if len(w.inflight) < maxInFlight {
		for _, name := range w.removed {
			if st.srv.cache.Get(stored(w.typeURL), name) == nil {
				out.removed = append(out.removed, name)
			}
		}
		w.removed = nil
	}
	st.mu.Unlock()
	if len(out.removed) == 0 {
		return nil
	}
	return st.send(w, out)
}

// send transmits one response; it blocks while the proxy does not read.
func (st *stream) send(w *watch, r *response) error {
	st.nonces++
	nonce := strconv.FormatUint(st.nonces, 10)
	st.mu.Lock()
	w.inflight = append(w.inflight, inflight{nonce: nonce, seq: r.seq, at: time.Now(), changed: r.changed})
	w.resources += uint64(len(r.resources))
	st.mu.Unlock()
	err := st.grpc.Send(&discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: strconv.FormatUint(r.seq, 10),
		Resources:         r.resources,
		RemovedResources:  r.removed,
		TypeUrl:           w.typeURL,
		Nonce:             nonce,
		ControlPlane:      &core.ControlPlane{Identifier: st.srv.cfg.Identifier},
	})
	if err != nil {
		return fmt.Errorf("send %s: %w", shortType(w.typeURL), err)
	}
	m, short := st.srv.metrics, shortType(w.typeURL)
	m.sent.WithLabelValues(short).Inc()
	m.bytes.WithLabelValues(short).Add(float64(r.bytes))
	return nil
}
