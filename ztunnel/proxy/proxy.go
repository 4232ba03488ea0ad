package proxy

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/state"
)

const (
	// sourceWait is how long a connection waits for the state of its own pod: the control plane tells of a new
	// pod about when it starts. Istio's proxy waits as long.
	sourceWait = 5 * time.Second
	// connectTimeout bounds one connection to an app or an upstream, as in Istio's proxy.
	connectTimeout = 10 * time.Second
	// tunnelTimeout bounds opening a stream to the next hop: its own connect, TLS and the peer's connect to the app.
	tunnelTimeout = 2*connectTimeout + sourceWait
	// MaxConnectionsPerPod bounds what one pod can take of the node's descriptors: each connection holds two.
	MaxConnectionsPerPod = 16384
	// MaxTunnelsPerPod bounds the inbound tunnels of one pod; each carries up to 200 streams.
	MaxTunnelsPerPod = 4096
	// HBONELinger is how long a pod that left the mesh still accepts tunnels: the proxies that send to it learn
	// of it from the control plane a moment later.
	HBONELinger = 5 * time.Second
)

// Certificates gives the certificate of an identity; identity.Manager is one.
type Certificates interface {
	Get(ctx context.Context, id identity.Identity) (*identity.Certificate, error)
	Acquire(id identity.Identity)
	Release(id identity.Identity)
}

// Config is what all pods of a proxy share.
type Config struct {
	Network     string
	ClusterID   string
	TrustDomain string
	State       *state.Store
	// Synced is closed once the state is complete for the first time.
	Synced  <-chan struct{}
	Certs   Certificates
	Metrics *telemetry.TCPMetrics
	Access  *telemetry.AccessLog
	Log     *slog.Logger
	Tunnel  hbone.Limits
}

// Proxy serves the pods of a node.
type Proxy struct {
	cfg      Config
	registry *registry
}

// New makes a Proxy without pods.
func New(cfg Config) *Proxy {
	return &Proxy{cfg: cfg, registry: newRegistry()}
}

// Run enforces policy on live connections and counts their bytes until ctx ends.
func (p *Proxy) Run(ctx context.Context) error {
	sampler := time.NewTicker(sampleEvery)
	defer sampler.Stop()
	var judged uint64
	for {
		changed := p.cfg.State.Changed()
		// Most changes are of workloads elsewhere, on which no verdict here depends.
		if snap := p.cfg.State.Snapshot(); snap.PolicyGeneration != judged {
			p.recheck(snap)
			judged = snap.PolicyGeneration
		}
		if !p.wait(ctx, changed, sampler.C) {
			return nil
		}
	}
}

// wait returns at the next change of state, at least recheckEvery later; it counts bytes meanwhile.
func (p *Proxy) wait(ctx context.Context, changed <-chan struct{}, sample <-chan time.Time) bool {
	pause := time.NewTimer(recheckEvery)
	defer pause.Stop()
	ready := pause.C
	for {
		var next <-chan struct{}
		if ready == nil {
			next = changed
		}
		select {
		case <-ctx.Done():
			return false
		case <-ready:
			ready = nil
		case <-next:
			return true
		case <-sample:
			p.registry.sample()
		}
	}
}

// Connections lists the live connections.
func (p *Proxy) Connections() []ConnectionInfo { return p.registry.list() }

// Sample brings the byte counters of live connections up to date.
func (p *Proxy) Sample() { p.registry.sample() }

// errUnknownSource says that the control plane has not told of the pod itself.
var errUnknownSource = errors.New("unknown source workload")

// ownWorkload returns the pod's own workload and the state it was found in, waiting for both.
func (pod *Pod) ownWorkload(ctx context.Context) (*state.Workload, *state.Snapshot, error) {
	store := pod.p.cfg.State
	if pod.p.synced() {
		snap := store.Snapshot()
		if w := pod.find(snap); w != nil {
			return w, snap, nil
		}
	}
	limit := time.NewTimer(sourceWait)
	defer limit.Stop()
	select {
	case <-pod.p.cfg.Synced:
	case <-limit.C:
		return nil, nil, errNotSynced
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	for {
		changed := store.Changed()
		snap := store.Snapshot()
		if w := pod.find(snap); w != nil {
			return w, snap, nil
		}
		select {
		case <-changed:
		case <-limit.C:
			return nil, nil, errUnknownSource
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

var errNotSynced = errors.New("no state from the control plane yet")

func (p *Proxy) synced() bool {
	select {
	case <-p.cfg.Synced:
		return true
	default:
		return false
	}
}

func (pod *Pod) find(snap *state.Snapshot) *state.Workload {
	return snap.WorkloadByName(pod.cfg.Namespace, pod.cfg.Name, pod.cfg.ServiceAccount)
}
