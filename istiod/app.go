// Package istiod is the control plane of the mesh: it watches Kubernetes or a
// directory, computes what each proxy must know and pushes it, and signs the
// certificates of workloads. cmd/istiod is its only caller.
//
// This package is the wiring, in start order: authority, sources, state, servers,
// and last the writers that only the leader runs. What always holds: nothing is
// served before the state is complete; readiness names what is missing; Run
// returns only after everything it started has ended.
package istiod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/internal/kube"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/version"
	"github.com/ambit-mesh/ambit/istiod/admin"
	"github.com/ambit-mesh/ambit/istiod/ca"
	"github.com/ambit-mesh/ambit/istiod/graph"
	"github.com/ambit-mesh/ambit/istiod/jwks"
	"github.com/ambit-mesh/ambit/istiod/layer7"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/status"
	"github.com/ambit-mesh/ambit/istiod/watch"
	"github.com/ambit-mesh/ambit/waypoint/deploy"
)

const (
	// maxRequest bounds a message from a proxy, in bytes: a reconnect names everything held, 70 bytes each,
	// so 64 MiB are close to a million resources. Callers are authenticated before their first message is read.
	maxRequest = 64 << 20
	// keepaliveEvery and keepaliveTimeout find connections whose other side is gone, in bounded time.
	keepaliveEvery   = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	// keepaliveMin is how often a proxy may ping; ztunnel does every 10 s.
	keepaliveMin = 5 * time.Second
	// drainTimeout is how long unary calls in flight may take at shutdown.
	drainTimeout = 5 * time.Second
)

// Clients are the connections to Kubernetes; nil in directory mode.
type Clients = watch.Clients

// App is one control plane. Fields are set by New and do not change.
type App struct {
	settings Settings
	log      *telemetry.Logging
	clients  *Clients
	registry *prometheus.Registry
	ready    *telemetry.Readiness

	authority *ca.Authority
	serving   *ca.Serving
	source    watch.Source
	graph     *graph.Graph
	cache     *push.Cache
	xds       *push.Server
	certs     *ca.Server
	leader    atomic.Bool

	// Layer 7. The writer of statuses and the deployer are nil without Kubernetes.
	directory *push.Directory
	engine    *layer7.Engine
	keys      *jwks.Fetcher
	statuses  *status.Writer
	deployer  *deploy.Deployer

	secureListener, plainListener net.Listener
	debug, metrics                *telemetry.Server
}

// Connect makes the clients that the settings ask for; nil in directory mode.
func Connect(s Settings) (*Clients, error) {
	if s.ConfigDir != "" {
		return nil, nil
	}
	c, err := kube.New(kube.Config{Kubeconfig: s.Kubeconfig, UserAgent: "istiod"})
	if err != nil {
		return nil, err
	}
	return &Clients{Kube: c.Kube, Istio: c.Istio, Gateway: c.Gateway, Dynamic: c.Dynamic}, nil
}

// New prepares a control plane and opens its listeners. It waits for nothing but
// the authority's Secret.
func New(ctx context.Context, s Settings, clients *Clients, log *telemetry.Logging) (*App, error) {
	a := &App{settings: s, log: log, clients: clients, registry: telemetry.NewRegistry(), ready: telemetry.NewReadiness()}
	steps := []func(context.Context) error{a.makeAuthority, a.makeState, a.makeLayer7, a.makeServers, a.listen}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			a.Close()
			return nil, err
		}
	}
	return a, nil
}

func (a *App) makeAuthority(ctx context.Context) error {
	log := a.log.Logger("ca")
	var bundle *ca.Bundle
	var err error
	if a.clients != nil {
		bundle, err = ca.AwaitSecrets(ctx, a.clients.Kube, a.settings.Namespace, a.settings.TrustDomain, log)
	} else {
		bundle, err = ca.FromDirectory(a.settings.CADir, a.settings.TrustDomain)
	}
	if err != nil {
		return err
	}
	a.authority = ca.NewAuthority(bundle)
	a.serving, err = ca.NewServing(a.authority, a.settings.serverNames(), log)
	return err
}

func (a *App) makeState(context.Context) error {
	if a.clients != nil {
		a.source = watch.NewKubernetes(*a.clients, a.log.Logger("watch"))
	} else {
		a.source = watch.NewDirectory(a.settings.ConfigDir, a.log.Logger("watch"))
	}
	a.cache = push.NewCache(push.Types()...)
	var err error
	a.graph, err = graph.New(graph.Config{
		Config: a.translation(), Bypass: a.settings.WaypointBypass, Log: a.log.Logger("graph"), Metrics: a.registry,
	}, a.cache)
	return err
}

func (a *App) makeServers(context.Context) error {
	var reviewer kubernetes.Interface
	if a.clients != nil {
		reviewer = a.clients.Kube
	}
	authn := ca.NewAuthenticator(reviewer, a.settings.TrustDomain, a.settings.ClusterID)
	var err error
	a.certs, err = ca.NewServer(ca.Config{
		TrustDomain:         a.settings.TrustDomain,
		Lifetimes:           ca.Lifetimes{Default: a.settings.CertTTL, Max: a.settings.MaxCertTTL},
		TrustedNodeAccounts: a.settings.TrustedNodeAccounts, Pods: a.graph,
		CertificateRenewal: a.clients == nil,
		Log:                a.log.Logger("ca"), Metrics: a.registry,
	}, authn, a.authority)
	if err != nil {
		return err
	}
	a.xds, err = push.NewServer(push.Config{
		Identifier: a.settings.Pod,
		Authenticate: func(ctx context.Context) (push.Caller, error) {
			c, err := authn.Authenticate(ctx)
			if errors.Is(err, ca.ErrAnonymous) {
				err = push.ErrAnonymous
			}
			return push.Caller{Namespace: c.Namespace, ServiceAccount: c.ServiceAccount}, err
		},
		AnonymousPlaintext: true,
		Select:             a.choose,
		OnReject:           a.engine.Rejected,
		Log:                a.log.Logger("xds"), Metrics: a.registry,
	}, a.cache)
	return err
}

// listen opens every listener, so that a taken port ends the start and not the run.
func (a *App) listen(context.Context) error {
	var err error
	if a.secureListener, err = net.Listen("tcp", a.settings.SecureGRPC); err != nil {
		return fmt.Errorf("listen on %q: %w", a.settings.SecureGRPC, err)
	}
	if a.settings.GRPC != "" {
		if a.plainListener, err = net.Listen("tcp", a.settings.GRPC); err != nil {
			return fmt.Errorf("listen on %q: %w", a.settings.GRPC, err)
		}
	}
	if a.debug, err = telemetry.NewServer(a.settings.HTTP, admin.Handler(admin.Config{
		Ready: a.ready, LogLevel: a.log, Graph: a.graph, Layer7: a.engine, Directory: a.directory, Cache: a.cache, Server: a.xds, Source: a.source,
		Settings: a.settings, Leader: a.leader.Load,
	})); err != nil {
		return err
	}
	a.metrics, err = telemetry.NewServer(a.settings.Monitoring, telemetry.MetricsHandler(a.registry))
	return err
}

// Close gives back what New opened, for a control plane that is never run.
func (a *App) Close() {
	for _, l := range []net.Listener{a.secureListener, a.plainListener} {
		if l != nil {
			_ = l.Close() // nothing was ever served on it
		}
	}
	for _, s := range []*telemetry.Server{a.debug, a.metrics} {
		if s != nil {
			_ = s.Close() // nothing was ever served on it
		}
	}
}

// Run serves until ctx ends or a part fails for good.
func (a *App) Run(ctx context.Context) error {
	log := a.log.Root()
	log.Info("istiod starts", "settings", fmt.Sprintf("%+v", a.settings))
	g, ctx := errgroup.WithContext(ctx)
	state := a.ready.Condition("state")
	g.Go(func() error { return a.source.Run(ctx, layers{a.graph, a.engine}) })
	a.runLayer7(ctx, g)
	g.Go(func() error { return a.cache.Run(ctx) })
	g.Go(func() error { return a.reportState(ctx, state) })
	g.Go(func() error { return a.serving.Run(ctx) })
	g.Go(func() error { return a.debug.Run(ctx) })
	g.Go(func() error { return a.metrics.Run(ctx) })
	g.Go(func() error {
		return a.serve(ctx, a.secureListener, grpc.Creds(credentials.NewTLS(a.serving.TLS())))
	})
	if a.plainListener != nil {
		log.Warn("serving without TLS", "address", a.plainListener.Addr().String())
		g.Go(func() error { return a.serve(ctx, a.plainListener) })
	}
	if a.clients != nil {
		g.Go(func() error { return a.lead(ctx) })
	}
	err := g.Wait()
	log.Info("istiod ended", "error", err)
	return err
}

// reportState makes istiod ready once the state is complete, and until then shows what is missing.
func (a *App) reportState(ctx context.Context, state *telemetry.Condition) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.cache.Ready():
			a.log.Root().Info("state is complete", "sizes", a.graph.Sizes())
			state.Set(nil)
			return nil
		case <-t.C:
		}
		if c := a.source.Conditions(); len(c) > 0 {
			state.Set(fmt.Errorf("%s: %s", c[0].Object, c[0].Reason))
		}
	}
}

func (a *App) lead(ctx context.Context) error {
	log := a.log.Logger("leader")
	identity := a.settings.Pod
	if host, err := os.Hostname(); err == nil && identity == "istiod" {
		identity = host // two replicas run by hand must not share a name
	}
	roots := status.NewRootCerts(a.clients.Kube, func() string { return a.authority.Bundle().RootsPEM() }, log)
	return status.Lead(ctx, a.clients.Kube, a.settings.Namespace, identity, log, a.leader.Store, func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return roots.Run(ctx) })
		a.leadLayer7(ctx, g)
		return g.Wait()
	})
}

// serve runs one gRPC server until ctx ends; then streams end at once, since proxies
// go on at another replica, and calls in flight finish.
func (a *App) serve(ctx context.Context, l net.Listener, opts ...grpc.ServerOption) error {
	opts = append(opts,
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveEvery, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMin, PermitWithoutStream: true}),
	)
	srv := grpc.NewServer(opts...)
	a.xds.Register(srv)
	a.certs.Register(srv)
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %q: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	a.xds.Close()
	force := time.AfterFunc(drainTimeout, srv.Stop)
	defer force.Stop()
	srv.GracefulStop()
	<-failed
	return nil
}

// Addresses returns where the servers listen, for tests that let the system choose ports.
func (a *App) Addresses() (secure, plain, debug net.Addr) {
	if a.plainListener != nil {
		plain = a.plainListener.Addr()
	}
	return a.secureListener.Addr(), plain, a.debug.Addr()
}

// Run connects to Kubernetes if the settings ask for it, and runs a control plane until ctx ends.
func Run(ctx context.Context, s Settings, log *telemetry.Logging) error {
	log.Root().Info("starting istiod", "version", version.String(), "config", fmt.Sprintf("%+v", s))
	clients, err := Connect(s)
	if err != nil {
		return err
	}
	a, err := New(ctx, s, clients, log)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}
