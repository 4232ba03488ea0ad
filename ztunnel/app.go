// Package ztunnel is the node proxy: this file wires its parts in start order,
// cmd/ztunnel runs it.
//
// In shared mode it serves the pods of a node. The node agent tells of them and
// lends their listeners (ztunnel/capture), istiod tells of workloads and policies
// (internal/xds, ztunnel/state) and signs certificates (internal/identity), and
// ztunnel/proxy carries the connections.
//
// In dedicated mode it serves its own network namespace, for a host or to try it
// without a cluster:
//
//	ztunnel dev-ca /tmp/ca
//	AMBIT_CA_DIR=/tmp/ca LOCAL_XDS_PATH=state.yaml PROXY_MODE=dedicated \
//	  POD_NAME=local POD_NAMESPACE=default SERVICE_ACCOUNT=default ztunnel proxy ztunnel
//	curl --socks5-hostname 127.0.0.1:15080 http://example.com/
//
// curl names the destination to the SOCKS5 port, which is the way in without
// capture. With capture, redirect the host's connections to 127.0.0.1:15001
// (nft REDIRECT; the destination is read by SO_ORIGINAL_DST), but not those of
// the user that ztunnel runs as.
//
// What always holds: admin pages bind loopback; nothing is ready before state,
// pods and certificates' authority are configured; a signal to end stops
// accepting at once, and live connections go on until they end or the grace
// period is nearly over.
package ztunnel

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/version"
	"github.com/ambit-mesh/ambit/ztunnel/admin"
	"github.com/ambit-mesh/ambit/ztunnel/capture"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
	"github.com/ambit-mesh/ambit/ztunnel/state"
)

// cutTime is how long the end of connections may take after they were cut.
const cutTime = 2 * time.Second

var (
	errDrained  = errors.New("proxy ended, its grace period is over")
	errDraining = errors.New("shutting down")
)

// app holds the parts between start and end.
type app struct {
	cfg      Config
	logging  *telemetry.Logging
	log      *slog.Logger
	ready    *telemetry.Readiness
	registry *prometheus.Registry
	metrics  *metrics
	store    *state.Store
	synced   chan struct{}
	certs    *identity.Manager
	proxy    *proxy.Proxy
	manager  *capture.Manager // shared mode
	pod      *proxy.Pod       // dedicated mode
	quit     context.CancelFunc
	closers  []func()
}

// Run runs the proxy until ctx ends, and then drains it.
func Run(ctx context.Context, cfg Config, logging *telemetry.Logging) error {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	a := &app{cfg: cfg, logging: logging, log: logging.Logger("app"), quit: quit, ready: telemetry.NewReadiness(), synced: make(chan struct{})}
	defer func() {
		for _, c := range a.closers {
			c()
		}
	}()
	a.log.Info("starting ztunnel", "version", version.String(), "config", cfg)
	// The parts outlive ctx: they serve while the proxy drains.
	parts, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, parts := errgroup.WithContext(parts)
	for _, start := range []func(context.Context, *errgroup.Group) error{
		a.startTelemetry, a.startState, a.startCertificates, a.startProxy,
	} {
		if err := start(parts, g); err != nil {
			stop()
			return errors.Join(err, g.Wait())
		}
	}
	accepting, stopAccepting := context.WithCancel(parts)
	defer stopAccepting()
	accepted := make(chan struct{})
	g.Go(func() error {
		defer close(accepted)
		return a.accept(accepting)
	})
	select {
	case <-ctx.Done():
	case <-parts.Done(): // a part failed
	}
	stopAccepting()
	<-accepted
	a.drain()
	stop()
	return g.Wait()
}

// startTelemetry serves admin, metrics and readiness, so that a start that hangs can be looked at.
func (a *app) startTelemetry(ctx context.Context, g *errgroup.Group) error {
	a.registry = telemetry.NewRegistry()
	a.metrics = newMetrics(a.registry)
	a.store = state.NewStore(state.Config{
		Node: a.cfg.NodeName, Network: a.cfg.Network, ClusterID: a.cfg.ClusterID, Log: a.logging.Logger("state"),
	})
	signer, err := a.signer()
	if err != nil {
		return err
	}
	a.certs = identity.NewManager(identity.ManagerConfig{
		Signer: signer, Validity: a.cfg.SecretTTL, Log: a.logging.Logger("identity"),
		Metrics: identity.Hooks{Fetched: a.metrics.certificate},
	})
	a.proxy = proxy.New(proxy.Config{
		Network: a.cfg.Network, ClusterID: a.cfg.ClusterID, TrustDomain: a.cfg.TrustDomain, State: a.store, Synced: a.synced,
		Certs: a.certs, Metrics: telemetry.NewTCPMetrics(a.registry), Access: telemetry.NewAccessLog(a.logging.Root()),
		Log: a.logging.Logger("proxy"), Tunnel: hbone.Limits{Memory: hbone.NewMemory(0, 0)},
	})
	sources := admin.Sources{
		Version: version.String(), Config: a.cfg, Store: a.store, Connections: a.proxy.Connections, Certificates: a.certs.List,
		Logging: a.logging, Ready: a.ready, Quit: a.quit,
	}
	if a.cfg.Mode == ModeShared {
		a.manager = capture.New(capture.Config{
			Socket: a.cfg.ZDSSocket, Ready: a.ready.Condition("pods"), Log: a.logging.Logger("capture"),
			Serve: func(c proxy.PodConfig, l proxy.Listeners) (capture.Served, error) { return a.proxy.Serve(c, l) },
		})
		sources.Pods = a.manager.Pods
		a.metrics.pods(func() float64 { return float64(len(a.manager.Pods())) })
	}
	pages := telemetry.MetricsHandler(a.registry)
	for _, s := range []struct {
		addr    string
		handler http.Handler
	}{
		{a.cfg.AdminAddr, admin.Handler(sources)},
		{a.cfg.MetricsAddr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a.proxy.Sample()
			pages.ServeHTTP(w, r)
		})},
		{a.cfg.ReadinessAddr, a.ready.Handler()},
	} {
		server, err := telemetry.NewServer(s.addr, s.handler)
		if err != nil {
			return err
		}
		g.Go(func() error { return server.Run(ctx) })
	}
	return nil
}

func (a *app) startCertificates(ctx context.Context, g *errgroup.Group) error {
	g.Go(func() error { return a.certs.Run(ctx) })
	return nil
}

func (a *app) startProxy(ctx context.Context, g *errgroup.Group) error {
	g.Go(func() error { return a.proxy.Run(ctx) })
	if a.cfg.Mode == ModeShared {
		return nil
	}
	l, err := a.cfg.listen()
	if err != nil {
		return err
	}
	a.pod, err = a.proxy.Serve(proxy.PodConfig{
		UID: "self", Name: a.cfg.PodName, Namespace: a.cfg.PodNamespace, ServiceAccount: a.cfg.ServiceAccount, Dedicated: true,
	}, l)
	return err
}

// listen opens the listeners of dedicated mode.
func (c Config) listen() (proxy.Listeners, error) {
	var l proxy.Listeners
	var open []*net.TCPListener
	for _, s := range []struct {
		addr string
		to   **net.TCPListener
	}{
		{c.OutboundAddr, &l.Outbound}, {c.PlaintextAddr, &l.InboundPlaintext}, {c.HBONEAddr, &l.InboundHBONE}, {c.SOCKSAddr, &l.SOCKS},
	} {
		if s.addr == off {
			continue
		}
		t, err := listen(s.addr)
		if err != nil {
			for _, o := range open {
				o.Close()
			}
			return proxy.Listeners{}, err
		}
		open = append(open, t)
		*s.to = t
	}
	return l, nil
}

func listen(addr string) (*net.TCPListener, error) {
	ap, err := listenAddress(addr)
	if err != nil {
		return nil, err
	}
	var own *linux.NetNS
	f, err := own.Listen(linux.ListenOptions{Addr: ap, DualStack: true})
	if err != nil {
		return nil, err
	}
	return linux.ListenerFromFile(f)
}

// accept takes pods until ctx ends.
func (a *app) accept(ctx context.Context) error {
	if a.manager != nil {
		return a.manager.Run(ctx)
	}
	<-ctx.Done()
	return nil
}

// drain lets live connections end, and cuts what is left of them.
func (a *app) drain() {
	a.ready.Condition("running").Set(errDraining)
	limit := a.cfg.drainTime()
	a.log.Info("draining", "connections", len(a.proxy.Connections()), "at_most", limit)
	begin := time.Now()
	a.retire()
	if !a.ended(limit) {
		a.log.Warn("cutting connections that outlived the drain", "connections", len(a.proxy.Connections()))
		a.cut()
		a.ended(cutTime)
	}
	a.log.Info("drained", "took", time.Since(begin).Round(time.Millisecond))
}

func (a *app) retire() {
	if a.manager != nil {
		a.manager.Drain()
	}
	if a.pod != nil {
		a.pod.Retire(0)
	}
}

func (a *app) cut() {
	if a.manager != nil {
		a.manager.Cut(errDrained)
	}
	if a.pod != nil {
		a.pod.Cut(errDrained)
	}
}

// ended waits for the last connection, at most d.
func (a *app) ended(d time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if a.manager != nil && a.manager.Wait(ctx) != nil {
		return false
	}
	if a.pod == nil {
		return true
	}
	select {
	case <-a.pod.Done():
		return true
	case <-ctx.Done():
		return false
	}
}
