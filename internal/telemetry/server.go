package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Limits of the servers. They answer people, probes and scrapes, so a slow or
// hostile client may hold little.
const (
	serverHeaderTimeout = 10 * time.Second
	serverIdleTimeout   = 2 * time.Minute
	serverHeaderBytes   = 16 << 10
	// serverCloseTimeout lets requests in flight end at shutdown, such as the scrape that sees the last values.
	serverCloseTimeout = time.Second
)

// PathMetrics is where Prometheus scrapes.
const PathMetrics = "/metrics"

// Server is an HTTP server that listens from the moment it exists.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// NewServer listens on addr ("host:port"; port 0 picks one).
func NewServer(addr string, h http.Handler) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", addr, err)
	}
	return &Server{listener: l, http: &http.Server{
		Handler:           h,
		ReadHeaderTimeout: serverHeaderTimeout,
		IdleTimeout:       serverIdleTimeout,
		MaxHeaderBytes:    serverHeaderBytes,
	}}, nil
}

// Addr is the address listened on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// LocalOnly lets only clients on the same host (and network namespace) past: what changes a process is not for
// everyone who may read its metrics. kubectl port-forward counts as local.
func LocalOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "only from this host's loopback, for example through kubectl port-forward", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Run serves until ctx ends, then returns nil.
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- s.http.Serve(s.listener) }()
	select {
	case err := <-failed:
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return fmt.Errorf("serve %q: %w", s.listener.Addr(), err)
	case <-ctx.Done():
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), serverCloseTimeout)
		defer cancel()
		_ = s.http.Shutdown(grace)
		_ = s.http.Close()
		<-failed
		return nil
	}
}

// Close stops the server and its connections at once. It may be called without Run.
func (s *Server) Close() error {
	_ = s.listener.Close() // closed twice when Run has it; that error says nothing
	if err := s.http.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close server %q: %w", s.listener.Addr(), err)
	}
	return nil
}

// Serve listens on addr and serves h until ctx ends.
func Serve(ctx context.Context, addr string, h http.Handler) error {
	s, err := NewServer(addr, h)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// NewRegistry returns a registry that has Go's and the process's own metrics.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// MetricsHandler serves reg as Prometheus text on PathMetrics, and on Istio's /stats/prometheus.
func MetricsHandler(reg prometheus.Gatherer) http.Handler {
	h := promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	mux := http.NewServeMux()
	mux.Handle(PathMetrics, h)
	mux.Handle("/stats/prometheus", h)
	return mux
}
