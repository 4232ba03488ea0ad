package resolve

import (
	"fmt"
	"strconv"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// ClusterName is Istio's name of a destination.
func ClusterName(port uint16, subset, host string) string {
	return "outbound|" + strconv.Itoa(int(port)) + "|" + subset + "|" + host
}

// ParseClusterName undoes ClusterName.
func ParseClusterName(name string) (port uint16, subset, host string, ok bool) {
	parts := strings.SplitN(name, "|", 4)
	if len(parts) != 4 || parts[0] != "outbound" {
		return 0, "", "", false
	}
	n, err := strconv.ParseUint(parts[1], 10, 16)
	return uint16(n), parts[2], parts[3], err == nil
}

// notResolved is the verdict on a reference that leads nowhere.
func notResolved(reason gwv1.RouteConditionReason, format string, args ...any) *model.Condition {
	c := condition(string(gwv1.RouteConditionResolvedRefs), string(reason), fmt.Sprintf(format, args...), false)
	return &c
}

// Destination finds the cluster of a destination, as an object of the namespace refers to it. calledPort is the port
// that the client called: a VirtualService may leave the port out.
func Destination(r *index.Reader, d model.Destination, namespace string, calledPort uint16) (string, *index.Service, *model.Condition) {
	s := r.ServiceFor(d.Host, namespace)
	if s == nil {
		return "", nil, notResolved(gwv1.RouteReasonBackendNotFound, "backend %q does not exist", d.Host)
	}
	port, ok := s.Port(d.Port)
	if !ok && d.Port == 0 {
		port, ok = s.Port(calledPort)
	}
	if !ok {
		return "", nil, notResolved(gwv1.RouteReasonBackendNotFound, "backend %q has no port %d", d.Host, d.Port)
	}
	if d.Subset != "" && subsetOf(rulesFor(r, namespace, s), d.Subset) == nil {
		return "", nil, notResolved(gwv1.RouteReasonBackendNotFound, "no DestinationRule defines subset %q of %q", d.Subset, d.Host)
	}
	return ClusterName(port.Port, d.Subset, d.Host), s, nil
}

// Backend finds the cluster of a route's backend, and why not. Inside the mesh no ReferenceGrant is asked for: the
// caller may reach the backend without the route too, and policy there judges it by its own identity (as with Istio).
func Backend(r *index.Reader, route *model.Route, b *model.Backend, c call) (string, *index.Service, *model.Condition) {
	if b.Invalid != nil {
		return "", nil, b.Invalid
	}
	if c.gateway != model.MeshGateway && !r.Granted(b.Grant) {
		return "", nil, notResolved(gwv1.RouteReasonRefNotPermitted,
			"no ReferenceGrant in namespace %q lets a %s of namespace %q refer to %s %q", b.Grant.ToNamespace, b.Grant.FromKind,
			b.Grant.FromNamespace, b.Grant.ToKind, b.Grant.ToName)
	}
	return Destination(r, b.Destination, route.Namespace, c.port)
}

// weights makes shares of backends: those with weight 0 get nothing, and one alone gets everything.
func weights(backends []model.Backend, ordered bool) []uint32 {
	out := make([]uint32, len(backends))
	for i := range backends {
		out[i] = backends[i].Weight
	}
	// A VirtualService's only destination needs no weight; a Gateway API backend of weight 0 gets nothing.
	if ordered && len(out) == 1 && out[0] == 0 {
		out[0] = 1
	}
	return out
}

// l4Clusters resolves the backends of a rule of connections.
func (b *builder) l4Clusters(route *model.Route, backends []model.Backend, c call) (out []model.WeightedCluster) {
	for i, w := range weights(backends, route.Ordered) {
		if w == 0 {
			continue
		}
		name, _, bad := Backend(b.r, route, &backends[i], c)
		if bad == nil {
			b.clusters[name] = true
		}
		out = append(out, model.WeightedCluster{Cluster: name, Weight: w})
	}
	return out
}

// httpClusters resolves the backends of a rule of requests; the first resolved service is for telemetry and hashing.
func (b *builder) httpClusters(route *model.Route, backends []model.Backend, c call) (out []model.RouteCluster, first *index.Service) {
	good := false
	for i, w := range weights(backends, route.Ordered) {
		if w == 0 {
			continue
		}
		be := &backends[i]
		name, s, bad := Backend(b.r, route, be, c)
		if bad == nil {
			b.clusters[name] = true
			good = true
			if first == nil {
				first = s
			}
		}
		out = append(out, model.RouteCluster{
			WeightedCluster: model.WeightedCluster{Cluster: name, Weight: w},
			Request:         be.Request, Response: be.Response, Authority: be.Authority,
		})
	}
	if !good {
		return nil, nil
	}
	return out, first
}
