package push

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// ErrAnonymous is returned by a Config.Authenticate that found no credentials at all.
var ErrAnonymous = errors.New("no credentials")

// Caller is who opened a stream, as far as the credentials tell.
type Caller struct{ Namespace, ServiceAccount string }

// Config is what a Server needs.
type Config struct {
	// Identifier names this istiod in every response.
	Identifier string
	// Authenticate checks the credentials of a stream. Nil accepts everybody.
	Authenticate func(context.Context) (Caller, error)
	// AnonymousPlaintext accepts callers without credentials on connections without TLS.
	// Envoys must always have some, since private keys of users' certificates are among what they are served.
	AnonymousPlaintext bool
	// Select chooses what a stream is served; Directory.Select is one. Nil, or a nil View, is the server's own cache.
	// It may wait, until ctx ends. The caller is nil if it has no credentials.
	Select func(ctx context.Context, node *core.Node, caller *Caller) (*View, error)
	// OnReject hears of resources that a proxy refuses, and of those that it accepts again. It must not block.
	OnReject func(Rejection)
	Log      *slog.Logger
	Metrics  prometheus.Registerer

	// grace replaces removalGrace in tests.
	grace *time.Duration
}

func (c *Config) removalGrace() time.Duration {
	if c.grace != nil {
		return *c.grace
	}
	return removalGrace
}

// Server serves the aggregated discovery service.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	cfg     Config
	cache   *Cache
	metrics *metrics

	mu      sync.Mutex
	streams map[*stream]struct{}
	stopped chan struct{}
	stop    sync.Once
}

func shortType(t string) string {
	if i := strings.LastIndexByte(t, '.'); i >= 0 {
		return t[i+1:]
	}
	return t
}

// NewServer makes a server. Cache is what streams are served for which Config.Select chooses nothing else.
func NewServer(cfg Config, cache *Cache) (*Server, error) {
	s := &Server{cfg: cfg, cache: cache, streams: map[*stream]struct{}{}, stopped: make(chan struct{})}
	s.metrics = newMetrics(s.Proxies)
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(s.metrics); err != nil {
			return nil, fmt.Errorf("register metrics of %q: %w", "push", err)
		}
	}
	return s, nil
}

// Register adds the service to a gRPC server.
func (s *Server) Register(g *grpc.Server) { discovery.RegisterAggregatedDiscoveryServiceServer(g, s) }

// Close ends every stream; proxies reconnect to another istiod and go on from what they hold.
func (s *Server) Close() { s.stop.Do(func() { close(s.stopped) }) }

// StreamAggregatedResources refuses the state-of-the-world variant.
func (s *Server) StreamAggregatedResources(discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return status.Error(codes.Unimplemented, "this control plane serves the incremental variant only: call DeltaAggregatedResources")
}

// DeltaAggregatedResources serves one proxy until either side ends the stream.
func (s *Server) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ctx := g.Context()
	addr := "unknown"
	if p, ok := peer.FromContext(ctx); ok {
		addr = p.Addr.String()
	}
	caller, err := s.authenticate(ctx)
	if err != nil {
		s.metrics.refused.WithLabelValues("credentials").Inc()
		s.cfg.Log.Warn("xds stream refused", "peer", addr, "error", err)
		return status.Error(codes.Unauthenticated, "the caller's credentials were not accepted")
	}
	first, err := firstRequest(g)
	if err != nil {
		return err
	}
	if err := checkNode(first.GetNode(), caller); err != nil {
		s.metrics.refused.WithLabelValues("node").Inc()
		s.cfg.Log.Warn("xds stream refused", "peer", addr, "error", err)
		return err
	}
	view, err := s.choose(ctx, first.GetNode(), caller)
	if err != nil && ctx.Err() == nil {
		s.metrics.refused.WithLabelValues("gateway").Inc()
		s.cfg.Log.Warn("xds stream refused", "peer", addr, "proxy", first.GetNode().GetId(), "error", err)
	}
	if err != nil {
		return err
	}
	st := newStream(s, view, g, first.GetNode(), addr)
	s.mu.Lock()
	s.streams[st] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.streams, st)
		s.mu.Unlock()
		st.close()
	}()
	st.log.Info("proxy connected")
	err = st.run(ctx, first)
	st.log.Info("proxy disconnected", "error", err)
	return err
}

// choose finds what the stream is served. It waits for a proxy that is not known
// yet, but not longer than the server runs.
func (s *Server) choose(ctx context.Context, n *core.Node, caller *Caller) (*View, error) {
	if s.cfg.Select == nil {
		return ZtunnelView(s.cache), nil
	}
	if s.cfg.Authenticate != nil && caller == nil && isEnvoy(n) {
		return nil, status.Error(codes.Unauthenticated, "gateways must have credentials")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.stopped:
			cancel()
		case <-ctx.Done():
		}
	}()
	v, err := s.cfg.Select(ctx, n, caller)
	select {
	case <-s.stopped:
		return nil, errStopping()
	default:
	}
	if v == nil && err == nil {
		v = ZtunnelView(s.cache)
	}
	return v, err
}

func (s *Server) authenticate(ctx context.Context) (*Caller, error) {
	if s.cfg.Authenticate == nil {
		return nil, nil
	}
	c, err := s.cfg.Authenticate(ctx)
	if err == nil {
		return &c, nil
	}
	if s.cfg.AnonymousPlaintext && errors.Is(err, ErrAnonymous) && !overTLS(ctx) {
		return nil, nil
	}
	return nil, err
}

func overTLS(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	return ok && p.AuthInfo != nil && p.AuthInfo.AuthType() == "tls"
}

// typeHealth is sent by Istio's agents before the first real request to probe the stream.
const typeHealth = "type.googleapis.com/istio.v1.HealthInformation"

func firstRequest(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) (*discovery.DeltaDiscoveryRequest, error) {
	for {
		req, err := g.Recv()
		if err != nil {
			return nil, err
		}
		if req.GetTypeUrl() != typeHealth {
			return req, nil
		}
	}
}

// checkNode refuses a proxy that does not say who it is, or says it is of another
// namespace or service account than its credentials.
func checkNode(n *core.Node, caller *Caller) error {
	if n.GetId() == "" {
		return status.Error(codes.InvalidArgument, "the first request has no node id")
	}
	if caller == nil {
		return nil
	}
	if ns := metadata(n, "NAMESPACE"); ns != "" && ns != caller.Namespace {
		return status.Errorf(codes.PermissionDenied, "node namespace %q is not that of the credentials", ns)
	}
	if sa := metadata(n, "SERVICE_ACCOUNT"); sa != "" && sa != caller.ServiceAccount {
		return status.Errorf(codes.PermissionDenied, "node service account %q is not that of the credentials", sa)
	}
	return nil
}

// ProxyStatus is what a debug page shows of a connected proxy.
type ProxyStatus struct {
	Proxy string `json:"proxy"`
	// Gateway is "namespace/name" of the waypoint or gateway that the proxy is a replica of.
	Gateway   string       `json:"gateway,omitempty"`
	Peer      string       `json:"peer"`
	Connected time.Time    `json:"connected"`
	Types     []TypeStatus `json:"types"`
}

// TypeStatus is how far a proxy is with one type.
type TypeStatus struct {
	Type     string `json:"type"`
	OnDemand bool   `json:"onDemand,omitempty"`
	// Sent and Acked number the state: equal to the server's own number when the proxy has everything.
	Sent  uint64 `json:"sentVersion"`
	Acked uint64 `json:"ackedVersion"`
	// Behind counts changes of the state that the proxy was not sent yet.
	Behind     uint64    `json:"behind"`
	InFlight   int       `json:"inFlight"`
	LagSeconds float64   `json:"lagSeconds"`
	LastNonce  string    `json:"lastNonce,omitempty"`
	LastAck    time.Time `json:"lastAck,omitzero"`
	Resources  uint64    `json:"resourcesSent"`
	Rejects    uint64    `json:"rejects,omitempty"`
	// LastReject is the proxy's own message, which names the resources.
	LastReject string `json:"lastReject,omitempty"`
	// Rejected are the resources whose newest form the proxy does not use.
	Rejected []string `json:"rejected,omitempty"`
}

// Proxies lists the connected proxies, ordered by name.
func (s *Server) Proxies() []ProxyStatus {
	now := time.Now()
	s.mu.Lock()
	streams := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	s.mu.Unlock()
	out := make([]ProxyStatus, 0, len(streams))
	for _, st := range streams {
		out = append(out, st.status(now))
	}
	slices.SortFunc(out, func(a, b ProxyStatus) int {
		if c := strings.Compare(a.Proxy, b.Proxy); c != 0 {
			return c
		}
		return strings.Compare(a.Peer, b.Peer)
	})
	return out
}
