package istiod

import (
	"context"
	"fmt"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	corev1 "k8s.io/api/core/v1"

	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/graph"
	"github.com/ambit-mesh/ambit/istiod/jwks"
	"github.com/ambit-mesh/ambit/istiod/layer7"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/status"
	"github.com/ambit-mesh/ambit/istiod/translate"
	"github.com/ambit-mesh/ambit/istiod/watch"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/deploy"
)

// layers hands each event to layer 4 and then to layer 7, which asks layer 4.
type layers struct {
	graph  *graph.Graph
	engine *layer7.Engine
}

var _ watch.Handler = layers{}

func (l layers) Handle(e watch.Event) {
	l.graph.Handle(e)
	l.engine.Handle(e)
}

// Synced: layer 7 first, because what ztunnels are told first names their waypoints.
func (l layers) Synced() {
	l.engine.Synced()
	l.graph.Synced()
}

// renderer is package waypoint/config as layer 7 calls it.
type renderer struct{}

var _ layer7.Renderer = renderer{}

func resources(in []config.Resource) []layer7.Resource {
	out := make([]layer7.Resource, len(in))
	for i, r := range in {
		out[i] = layer7.Resource(r)
	}
	return out
}

func (renderer) Proxy(p *model.Proxy) ([]layer7.Resource, error) {
	out, err := config.Proxy(p)
	return resources(out), err
}

func (renderer) Scope(p *model.Proxy, s *model.Scope) []layer7.Resource {
	return resources(config.Scope(p, s))
}

func (renderer) RouteTable(p *model.Proxy, t *model.RouteTable) ([]layer7.Resource, error) {
	out, err := config.RouteTable(p, t)
	return resources(out), err
}

func (renderer) Cluster(p *model.Proxy, c *model.Cluster) ([]layer7.Resource, error) {
	out, err := config.Cluster(p, c)
	return resources(out), err
}

func (renderer) Endpoints(p *model.Proxy, e *model.Endpoints) (layer7.Resource, error) {
	out, err := config.Endpoints(p, e)
	return layer7.Resource(out), err
}

// makeLayer7 prepares what waypoints and gateways need. Without Kubernetes nothing is deployed and no status written.
func (a *App) makeLayer7(context.Context) error {
	s := a.settings
	a.directory = push.NewDirectory()
	cfg := layer7.Config{Config: a.translation(), Settled: a.settled, Log: a.log.Logger("layer7"), Metrics: a.registry}
	a.keys = jwks.New(jwks.Config{Log: a.log.Logger("jwks"), Changed: func(uri, issuer string) { a.engine.KeysChanged(uri, issuer) }})
	cfg.Keys = a.keys
	var err error
	if a.clients != nil && a.clients.Dynamic != nil {
		if a.statuses, err = status.NewWriter(a.clients.Dynamic, a.log.Logger("status"), a.registry); err != nil {
			return err
		}
		cfg.Statuses = a.statuses
	}
	if a.clients != nil && s.Image != "" {
		a.deployer = deploy.NewDeployer(deploy.Config{
			Client: a.clients.Kube, Namespace: s.Namespace, Log: a.log.Logger("deploy"),
			Report: func(r deploy.Report) { a.engine.Deployed(r.Key, r.Problem) },
			Options: deploy.Options{
				Image: s.Image, PullPolicy: corev1.PullPolicy(s.ImagePullPolicy), PullSecrets: s.ImagePullSecrets,
				Istiod:      fmt.Sprintf("istiod.%s.svc:%d", s.Namespace, ports.XDSTLS),
				TrustDomain: s.TrustDomain, ClusterID: s.ClusterID, Domain: s.Domain, Network: s.Network,
				LogLevel: s.LogLevel, LogFormat: s.LogFormat,
			},
		})
		cfg.Deployments = a.deployer
	}
	a.engine, err = layer7.New(cfg, a.graph, renderer{}, a.directory)
	return err
}

func (a *App) translation() translate.Config {
	s := a.settings
	return translate.Config{
		ClusterID: s.ClusterID, Network: s.Network, TrustDomain: s.TrustDomain, Domain: s.Domain, RootNamespace: s.RootNamespace,
	}
}

// runLayer7 runs what serves waypoints and gateways.
func (a *App) runLayer7(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return a.directory.Run(ctx) })
	g.Go(func() error { return a.engine.Run(ctx) })
	g.Go(func() error { return a.graph.Run(ctx) })
	g.Go(func() error { return a.keys.Run(ctx) })
}

// leadLayer7 runs what only the leader does for them.
func (a *App) leadLayer7(ctx context.Context, g *errgroup.Group) {
	if a.statuses != nil {
		g.Go(func() error { return a.statuses.Run(ctx) })
		g.Go(func() error { return status.NewClasses(a.clients.Dynamic, a.log.Logger("status")).Run(ctx) })
	}
	if a.deployer != nil {
		g.Go(func() error { return a.deployer.Run(ctx) })
	}
}

// settled tells whether replicas of a proxy are connected, and whether all have taken what they were sent.
func (a *App) settled(proxy model.Key) (connected, settled bool) {
	settled = true
	for _, p := range a.xds.Proxies() {
		if p.Gateway != proxy.String() {
			continue
		}
		connected = true
		for _, t := range p.Types {
			settled = settled && t.Behind == 0 && t.InFlight == 0
		}
	}
	return connected, settled
}

// choose finds what a stream is served. A proxy that no Gateway of the Gateway API stands for may be one that Istio's
// Gateways choose by its pod's labels: those the API server knows, not those that the proxy claims.
func (a *App) choose(ctx context.Context, node *core.Node, caller *push.Caller) (*push.View, error) {
	fields := node.GetMetadata().GetFields()
	key := model.Key{Namespace: fields["NAMESPACE"].GetStringValue(), Name: fields["GATEWAY_NAME"].GetStringValue()}
	if key.Name != "" {
		select {
		case <-a.engine.Ready():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		pod := a.graph.Pod(model.Key{Namespace: key.Namespace, Name: fields["NAME"].GetStringValue()})
		if pod != nil && (caller == nil || caller.ServiceAccount == pod.ServiceAccount && caller.Namespace == pod.Namespace) {
			a.engine.Join(key, pod)
		}
	}
	return a.directory.Select(ctx, node, caller)
}
