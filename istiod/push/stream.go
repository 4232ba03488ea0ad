package push

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// maxChunk is how much one response carries, in bytes. Clients may refuse messages over 4 MiB; smaller
	// than that also bounds what a thousand proxies that connect at once make istiod hold.
	maxChunk = 256 << 10
	// maxInFlight is how many responses of a type may be unacknowledged. A proxy that applies slowly then
	// gets the newest state when it is ready, instead of a queue of old ones.
	maxInFlight = 4
	// maxUnknown is how many types that are not served are named in the log, per stream.
	maxUnknown = 4
	// maxNames bounds what one on-demand proxy may subscribe to; more than any node can talk to.
	maxNames = 200_000
	// ackTimeout is how long a proxy may owe an acknowledgement. Then it is taken for stuck and must reconnect.
	ackTimeout = 5 * time.Minute
)

// stream serves one proxy. One goroutine receives and records, one sends, so that
// a proxy which does not read cannot keep its acknowledgements from being heard.
type stream struct {
	srv       *Server
	view      *View
	plan      plan
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

func newStream(s *Server, v *View, g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, n *core.Node, addr string) *stream {
	return &stream{
		srv: s, view: v, plan: v.plan(), grpc: g, node: n, peer: addr, connected: time.Now(),
		log:     s.cfg.Log.With("proxy", n.GetId(), "peer", addr),
		kick:    make(chan struct{}, 1),
		watches: map[string]*watch{},
		unknown: map[string]bool{},
	}
}

func (st *stream) close() {
	st.mu.Lock()
	var notices []Rejection
	for _, w := range st.watches {
		st.view.Cache.close(w.reader)
		if names := slices.Sorted(maps.Keys(w.rejected)); len(names) > 0 {
			notices = append(notices, st.rejection(w, names, ""))
		}
	}
	st.mu.Unlock()
	st.report(notices)
}

func (st *stream) status(now time.Time) ProxyStatus {
	head, _ := st.view.Cache.head()
	st.mu.Lock()
	defer st.mu.Unlock()
	out := ProxyStatus{Proxy: st.node.GetId(), Gateway: st.view.Proxy.String(), Peer: st.peer, Connected: st.connected}
	for _, t := range st.view.Types {
		if w := st.watches[t]; w != nil {
			out.Types = append(out.Types, w.status(head, now))
		}
	}
	return out
}

// run serves until the stream ends. gRPC ends Recv when run returns, and with it the receiver.
func (st *stream) run(ctx context.Context, first *discovery.DeltaDiscoveryRequest) error {
	select {
	case <-st.view.Cache.Ready():
	case <-st.view.Gone:
		return errGone(st.view)
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
	return st.serve(ended)
}

// serve pushes whenever there may be something to send.
func (st *stream) serve(ended <-chan error) error {
	tick := time.NewTicker(ackTimeout / 4)
	defer tick.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	again.Stop()
	for {
		head, wake := st.view.Cache.head()
		if err := st.failure(); err != nil {
			return err
		}
		wait, err := st.plan.push(st, head)
		if err != nil {
			return err
		}
		if again.Stop(); wait > 0 {
			again.Reset(wait)
		}
		select {
		case <-wake:
		case <-st.kick:
		case <-again.C:
		case <-tick.C:
			if err := st.checkStuck(); err != nil {
				return err
			}
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-st.view.Gone:
			return errGone(st.view)
		case <-st.srv.stopped:
			return errStopping()
		}
	}
}

func (st *stream) failure() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.failed
}

func errStopping() error { return status.Error(codes.Unavailable, "istiod is stopping") }

func errGone(v *View) error {
	return status.Errorf(codes.NotFound, "gateway %q was removed, or its service account changed", v.Proxy)
}

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
	if req.GetTypeUrl() == typeHealth {
		return
	}
	st.mu.Lock()
	notices := st.record(req)
	st.mu.Unlock()
	st.report(notices)
	poke(st.kick)
}

func (st *stream) record(req *discovery.DeltaDiscoveryRequest) []Rejection {
	t := req.GetTypeUrl()
	if w := st.watches[t]; w != nil {
		notices := st.acknowledge(w, req)
		if err := w.update(req); err != nil {
			st.failed = err
		}
		return notices
	}
	if !slices.Contains(st.view.Types, t) {
		if !st.unknown[t] && len(st.unknown) < maxUnknown {
			st.unknown[t] = true
			st.log.Warn("proxy asked for a type that is not served", "type", t)
		}
		return nil
	}
	head, _ := st.view.Cache.head()
	r := st.view.Cache.open(st.plan.stored(t))
	w, err := newWatch(t, r, req, head)
	if err != nil {
		st.view.Cache.close(r)
		st.failed = err
		return nil
	}
	if w.all {
		w.removed = st.view.Cache.missing(w.stored, w.versions, head)
	}
	st.watches[t] = w
	st.plan.opened(st, w, head)
	return nil
}

// acknowledge records the proxy's verdict on a response.
func (st *stream) acknowledge(w *watch, req *discovery.DeltaDiscoveryRequest) []Rejection {
	nonce := req.GetResponseNonce()
	if nonce == "" {
		return nil
	}
	m, short := st.srv.metrics, shortType(w.typeURL)
	done := w.ack(nonce)
	if len(done) == 0 {
		m.stale.WithLabelValues(short).Inc()
		return nil
	}
	f := done[len(done)-1]
	now := time.Now()
	w.lastNonce, w.lastAck = nonce, now
	m.observe(m.ackSeconds, w.typeURL, f.at, now)
	var refused []string
	if e := req.GetErrorDetail(); e != nil {
		// The proxy keeps the good part and its former state of the rest; sending the same again would change nothing.
		w.rejects++
		w.reject = e.GetMessage()
		refused = mentioned(e.GetMessage(), f.sent)
		m.rejected.WithLabelValues(short).Inc()
		st.log.Error("proxy rejected resources", "type", short, "names", refused, "nonce", nonce, "reason", e.GetMessage())
	} else {
		w.acked = f.seq
		m.acked.WithLabelValues(short).Inc()
		if !f.changed.IsZero() {
			m.observe(m.convergence, w.typeURL, f.changed, now)
		}
	}
	st.plan.answered(w, done, refused)
	return st.judge(w, done, refused, req.GetErrorDetail().GetMessage())
}

// send transmits one response; it blocks while the proxy does not read.
func (st *stream) send(w *watch, r *response) error {
	st.nonces++
	nonce := strconv.FormatUint(st.nonces, 10)
	st.mu.Lock()
	f := inflight{nonce: nonce, from: r.from, seq: r.seq, at: time.Now(), changed: r.changed, sent: r.resources}
	st.plan.sending(st, w, r, &f)
	w.inflight = append(w.inflight, f)
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
