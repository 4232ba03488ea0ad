package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	istioinformers "istio.io/client-go/pkg/informers/externalversions"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
	gatewayinformers "sigs.k8s.io/gateway-api/pkg/client/informers/externalversions"

	"github.com/ambit-mesh/ambit/api/ratelimit/v1alpha1"
	"github.com/ambit-mesh/ambit/internal/kube"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// crdPoll is how often kinds that are not installed are looked for.
const crdPoll = 5 * time.Second

// kind is one kind with what delivers it.
type kind struct {
	kind model.Kind
	// name is what the API server calls it, in a group that may be missing; empty for Kubernetes' own.
	name     string
	informer func() cache.SharedIndexInformer
}

// group is an API group whose kinds may be absent, come later or be fewer, because the group is of an older version.
type group struct {
	version   string
	discovery discovery.DiscoveryInterface
	missing   []kind
}

// optional tells the kinds without which layer 4 works: a cluster that does not let istiod read them is served what
// can be.
func optional(k model.Kind) bool {
	switch k {
	case model.KindPod, model.KindService, model.KindEndpointSlice, model.KindNamespace, model.KindNode,
		model.KindAuthorizationPolicy, model.KindPeerAuthentication:
		return false
	}
	return true
}

// groups lists the API groups that are looked for.
func (s *Kubernetes) groups() []*group {
	istio := istioinformers.NewSharedInformerFactoryWithOptions(s.clients.Istio, 0, istioinformers.WithTransform(kube.Strip))
	security, networking, telemetry := istio.Security().V1(), istio.Networking().V1(), istio.Telemetry().V1()
	d := s.clients.Istio.Discovery()
	out := []*group{
		{"security.istio.io/v1", d, []kind{
			{model.KindAuthorizationPolicy, "AuthorizationPolicy", security.AuthorizationPolicies().Informer},
			{model.KindPeerAuthentication, "PeerAuthentication", security.PeerAuthentications().Informer},
			{model.KindRequestAuthentication, "RequestAuthentication", security.RequestAuthentications().Informer},
		}},
		{"networking.istio.io/v1", d, []kind{
			{model.KindVirtualService, "VirtualService", networking.VirtualServices().Informer},
			{model.KindDestinationRule, "DestinationRule", networking.DestinationRules().Informer},
			{model.KindServiceEntry, "ServiceEntry", networking.ServiceEntries().Informer},
			{model.KindIstioGateway, "Gateway", networking.Gateways().Informer},
		}},
		{"telemetry.istio.io/v1", d, []kind{{model.KindTelemetry, "Telemetry", telemetry.Telemetries().Informer}}},
	}
	if c := s.clients.Gateway; c != nil {
		api := gatewayinformers.NewSharedInformerFactoryWithOptions(c, 0, gatewayinformers.WithTransform(kube.Strip)).Gateway().V1()
		out = append(out, &group{"gateway.networking.k8s.io/v1", c.Discovery(), []kind{
			{model.KindGatewayClass, "GatewayClass", api.GatewayClasses().Informer},
			{model.KindGateway, "Gateway", api.Gateways().Informer},
			{model.KindHTTPRoute, "HTTPRoute", api.HTTPRoutes().Informer},
			{model.KindGRPCRoute, "GRPCRoute", api.GRPCRoutes().Informer},
			{model.KindTCPRoute, "TCPRoute", api.TCPRoutes().Informer},
			{model.KindTLSRoute, "TLSRoute", api.TLSRoutes().Informer},
			{model.KindReferenceGrant, "ReferenceGrant", api.ReferenceGrants().Informer},
			{model.KindBackendTLSPolicy, "BackendTLSPolicy", api.BackendTLSPolicies().Informer},
		}})
	}
	if s.clients.Dynamic != nil {
		out = append(out, &group{v1alpha1.GroupVersion().String(), s.clients.Kube.Discovery(), []kind{
			{model.KindRateLimit, v1alpha1.Kind, s.rateLimitInformer},
		}})
	}
	return out
}

// rateLimitInformer reads our own kind without a generated client: objects are converted as they come in.
func (s *Kubernetes) rateLimitInformer() cache.SharedIndexInformer {
	inf := dynamicinformer.NewFilteredDynamicInformer(s.clients.Dynamic, v1alpha1.Resource(),
		metav1.NamespaceAll, 0, cache.Indexers{}, nil).Informer()
	// It fails only for an informer that runs, and this one is new.
	_ = inf.SetTransform(typedRateLimit)
	return inf
}

// typedRateLimit converts; what cannot be stays as it is, and is then reported like any object that cannot be read.
func typedRateLimit(obj any) (any, error) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		o := &v1alpha1.RateLimit{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, o); err == nil {
			obj = o
		}
	}
	return kube.Strip(obj)
}

// await waits until the API server says which of the group's kinds it has, and starts those.
func (r *run) await(ctx context.Context, g *group) error {
	tick := time.NewTicker(crdPoll)
	defer tick.Stop()
	for {
		found, err := r.look(g)
		if err == nil {
			return r.start(ctx, found)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// pickUp goes on looking for the kinds that are missing, and starts them as they appear.
func (r *run) pickUp(ctx context.Context, g *group) error {
	tick := time.NewTicker(crdPoll)
	defer tick.Stop()
	for len(g.missing) > 0 {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		found, err := r.look(g)
		if err != nil {
			continue // it is a condition until it is gone
		}
		if err := r.start(ctx, found); err != nil {
			return err
		}
	}
	return nil
}

// look asks which of the missing kinds exist now, and takes them off the list.
func (r *run) look(g *group) ([]kind, error) {
	served, err := resources(g.discovery, g.version)
	if err != nil {
		if r.condition(g.version, err.Error()) {
			r.log.Error("look for kinds", "group", g.version, "error", err)
		}
		return nil, err
	}
	var found, missing []kind
	var names []string
	for _, k := range g.missing {
		if served[k.name] {
			found = append(found, k)
		} else {
			missing = append(missing, k)
			names = append(names, k.name)
		}
	}
	g.missing = missing
	reason := ""
	if len(names) > 0 {
		slices.Sort(names)
		reason = fmt.Sprintf("not installed: this cluster has no %s of %s (install their CRDs)", strings.Join(names, ", "), g.version)
	}
	if r.condition(g.version, reason) && reason != "" {
		r.log.Warn("kinds are not installed; going on without them", "group", g.version, "kinds", strings.Join(names, ","))
	}
	return found, nil
}

// resources lists what the API server serves of a group; nothing if it does not know the group.
func resources(d discovery.DiscoveryInterface, version string) (map[string]bool, error) {
	if d == nil {
		return nil, errors.New("list resources: no client")
	}
	list, err := d.ServerResourcesForGroupVersion(version)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list resources of %q: %w", version, err)
	}
	out := map[string]bool{}
	for _, r := range list.APIResources {
		out[r.Kind] = true
	}
	return out, nil
}
