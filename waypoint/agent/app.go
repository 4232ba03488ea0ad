package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/identity/ca"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/version"
	"github.com/ambit-mesh/ambit/waypoint/agent/bootstrap"
	"github.com/ambit-mesh/ambit/waypoint/agent/certs"
	"github.com/ambit-mesh/ambit/waypoint/agent/envoy"
	"github.com/ambit-mesh/ambit/waypoint/agent/relay"
	"github.com/ambit-mesh/ambit/waypoint/agent/sds"
	"github.com/ambit-mesh/ambit/waypoint/agent/stats"
)

const (
	// directoryMode lets nobody but the proxy's user at the socket, through which the private key goes.
	directoryMode = 0o700
	// maxSocketPath is the longest name that a unix socket can have (sockaddr_un: 108 bytes with the final zero).
	maxSocketPath = 107
)

var errDraining = errors.New("shutting down")

// app holds the parts between start and end.
type app struct {
	cfg        Config
	log        *slog.Logger
	logging    *telemetry.Logging
	ready      *telemetry.Readiness
	conditions conditions
	registry   *prometheus.Registry
	metrics    *metrics
	labels     map[string]string
	keeper     *certs.Keeper
	relay      *relay.Relay
	admin      *envoy.Admin
	process    *envoy.Process
	// stopping is set before Envoy is told to end.
	stopping atomic.Bool
	closers  []func()
}

// Run runs the proxy until ctx ends, and then drains it. An error says why it ended by itself.
func Run(ctx context.Context, cfg Config, logging *telemetry.Logging) error {
	adminAddr, err := netip.ParseAddrPort(cfg.AdminAddr)
	if err != nil {
		return fmt.Errorf("read ADMIN_ADDR: %w", err)
	}
	labels, err := readLabels(cfg.LabelsFile)
	if err != nil {
		return err
	}
	a := &app{
		cfg: cfg, logging: logging, log: logging.Logger("app"), ready: telemetry.NewReadiness(), registry: telemetry.NewRegistry(),
		labels: labels, admin: envoy.NewAdmin(adminAddr),
	}
	a.metrics, a.conditions = newMetrics(a.registry), newConditions(a.ready)
	defer a.close()
	a.log.Info("starting waypoint agent", "version", version.String(), "config", cfg)
	// The parts outlive ctx: Envoy needs them while it drains.
	parts, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, parts := errgroup.WithContext(parts)
	for _, start := range []func(context.Context, *errgroup.Group) error{a.startTelemetry, a.startCertificates, a.startSocket, a.startEnvoy} {
		if err := start(parts, g); err != nil {
			stop()
			return errors.Join(err, g.Wait())
		}
	}
	select {
	case <-ctx.Done():
		a.drain(parts)
	case <-parts.Done(): // a part failed, or Envoy ended
	}
	a.stopping.Store(true)
	a.process.Stop(context.WithoutCancel(ctx))
	stop()
	return g.Wait()
}

func (a *app) close() {
	for _, c := range a.closers {
		c()
	}
	a.admin.Close()
}

// startTelemetry serves readiness and metrics first, so that a start that hangs can be looked at.
func (a *app) startTelemetry(ctx context.Context, g *errgroup.Group) error {
	rewriter := stats.New(a.self())
	a.metrics.pages(rewriter)
	readiness, err := telemetry.NewServer(a.cfg.ReadinessAddr, a.ready.Handler())
	if err != nil {
		return err
	}
	g.Go(func() error { return readiness.Run(ctx) })
	pages, err := telemetry.NewServer(a.cfg.MetricsAddr, stats.Handler(rewriter, a.admin.Prometheus, a.registry, a.logging.Logger("stats")))
	if err != nil {
		return err
	}
	g.Go(func() error { return pages.Run(ctx) })
	return nil
}

func (a *app) startCertificates(ctx context.Context, g *errgroup.Group) error {
	signer, err := a.signer()
	if err != nil {
		return err
	}
	a.keeper = certs.New(certs.Config{
		Identity: a.cfg.identity(), Signer: signer, Validity: a.cfg.SecretTTL, RootFile: a.cfg.rootFile(),
		Log: a.logging.Logger("identity"), Fetched: a.metrics.certificate,
	})
	g.Go(func() error { return a.keeper.Run(ctx) })
	return nil
}

// rootFile is where the mesh's roots are published; a development CA publishes none.
func (c Config) rootFile() string {
	if c.CADirectory != "" {
		return filepath.Join(c.CADirectory, ca.RootCertFile)
	}
	return c.MeshRoots
}

func (a *app) signer() (identity.Signer, error) {
	if a.cfg.CADirectory != "" {
		return ca.Directory(a.cfg.CADirectory)
	}
	own, err := certs.NewOwn(a.cfg.ca())
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, func() {
		if err := own.Close(); err != nil {
			a.log.Warn("close CA client", telemetry.FieldError, err)
		}
	})
	return own, nil
}

// startSocket serves Envoy's configuration and secrets.
func (a *app) startSocket(ctx context.Context, g *errgroup.Group) error {
	l, err := listenUnix(a.cfg.socket())
	if err != nil {
		return err
	}
	server := grpc.NewServer(relay.ServerOptions()...)
	a.relay = relay.New(relay.Config{Istiod: a.cfg.xds(), Log: a.logging.Logger("xds"), Hooks: a.metrics.relay()})
	a.relay.Register(server)
	sds.New(a.keeper, a.logging.Logger("sds")).Register(server)
	g.Go(func() error {
		failed := make(chan error, 1)
		go func() { failed <- server.Serve(l) }()
		select {
		case err := <-failed:
			return fmt.Errorf("serve %q: %w", a.cfg.socket(), err)
		case <-ctx.Done():
			server.Stop() // Envoy has ended
			<-failed
			a.relay.Close()
			return nil
		}
	})
	return nil
}

// listenUnix listens at path, where an agent that was killed may have left a socket.
func listenUnix(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen on %q: a socket's name has at most %d bytes", path, maxSocketPath)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, directoryMode); err != nil {
		return nil, fmt.Errorf("make directory %q: %w", dir, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %q (hint: the directory must be writable, a volume for example): %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect socket: %w", err), l.Close())
	}
	return l, nil
}

// startEnvoy writes the bootstrap, starts Envoy and watches it.
func (a *app) startEnvoy(ctx context.Context, g *errgroup.Group) error {
	b, err := bootstrap.New(a.bootstrap())
	if err != nil {
		return err
	}
	if err := bootstrap.Write(a.cfg.bootstrapFile(), b); err != nil {
		return err
	}
	workers := a.cfg.Concurrency
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0) // Go has asked the cgroup
	}
	a.process, err = envoy.Start(envoy.Options{
		Path: a.cfg.Envoy, Bootstrap: a.cfg.bootstrapFile(), Concurrency: workers, LogLevel: a.cfg.EnvoyLogLevel,
		// Listeners that are replaced drain as long as a proxy that ends.
		DrainTime: max(a.cfg.drainMaximum(), time.Second), IPv6: a.cfg.ipv6(), Output: os.Stdout,
	})
	if err != nil {
		return err
	}
	a.log.Info("envoy started", "pid", a.process.PID(), "workers", workers)
	g.Go(func() error { return a.watch(ctx) })
	return nil
}

func (a *app) bootstrap() bootstrap.Config {
	c := a.cfg
	admin, _ := netip.ParseAddrPort(c.AdminAddr) // parsed before
	return bootstrap.Config{
		Kind: c.Kind, IP: c.InstanceIP, Pod: c.PodName, Namespace: c.PodNamespace, Domain: c.Domain, Gateway: c.GatewayName,
		ServiceAccount: c.ServiceAccount, ClusterID: c.ClusterID, Network: c.Network, NodeName: c.NodeName, Labels: a.labels,
		Socket: c.socket(), Admin: admin, MaxConnections: c.MaxConnections, MemoryLimit: c.MemoryLimit,
		StatsPrefixes: c.StatsPrefixes, JSON: c.LogFormat == "json",
	}
}
