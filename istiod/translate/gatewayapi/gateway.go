package gatewayapi

import (
	"fmt"
	"slices"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// labelWaypointFor says which addresses a waypoint is for.
const labelWaypointFor = "istio.io/waypoint-for"

// Gateway reads a Gateway. The function waypoint tells whether a class is one of waypoints.
func Gateway(g *gwv1.Gateway, waypoint func(class string) bool) *model.Gateway {
	class := string(g.Spec.GatewayClassName)
	out := &model.Gateway{
		Meta:              meta(model.KindGateway, g),
		Class:             class,
		Waypoint:          waypoint(class),
		For:               waypointFor(g.Labels[labelWaypointFor]),
		ObjectLabels:      g.Labels,
		ObjectAnnotations: g.Annotations,
	}
	infrastructure(out, g.Spec.Infrastructure)
	for i, a := range g.Spec.Addresses {
		t := or(a.Type, gwv1.IPAddressType)
		out.Addresses = append(out.Addresses, model.GatewayAddress{Type: string(t), Value: a.Value})
		if out.Invalid == nil && t != gwv1.IPAddressType && t != gwv1.HostnameAddressType {
			out.Invalid = notAccepted(gwv1.GatewayReasonUnsupportedAddress,
				fmt.Sprintf("spec.addresses[%d].type: %q is neither IPAddress nor Hostname", i, t))
		}
	}
	if t := g.Spec.TLS; t != nil && t.Backend != nil && t.Backend.ClientCertificateRef != nil {
		ref := secretRef(*t.Backend.ClientCertificateRef, g.Namespace, "spec.tls.backend.clientCertificateRef",
			string(gwv1.GatewayReasonInvalidClientCertificateRef))
		out.BackendClientCert = &ref
	}
	out.InsecureFrontend = insecureFrontend(g)
	for i := range g.Spec.Listeners {
		out.Listeners = append(out.Listeners, listener(g, i, out.Waypoint))
	}
	return out
}

// insecureFrontend tells whether the Gateway is configured for AllowInsecureFallback, at its own level or for a port
// (Gateway API, GatewayReasonConfigurationChanged). It need not have a listener on the port.
func insecureFrontend(g *gwv1.Gateway) bool {
	if g.Spec.TLS == nil || g.Spec.TLS.Frontend == nil {
		return false
	}
	insecure := func(c gwv1.TLSConfig) bool {
		return c.Validation != nil && c.Validation.Mode == gwv1.AllowInsecureFallback
	}
	f := g.Spec.TLS.Frontend
	return insecure(f.Default) || slices.ContainsFunc(f.PerPort, func(p gwv1.TLSPortConfig) bool { return insecure(p.TLS) })
}

// waypointFor reads the label; a value that nobody knows is the default, as with Istio.
func waypointFor(v string) model.Traffic {
	switch v {
	case "workload":
		return model.TrafficWorkload
	case "all":
		return model.TrafficAll
	case "none":
		return model.TrafficNone
	}
	return model.TrafficService
}

func infrastructure(out *model.Gateway, in *gwv1.GatewayInfrastructure) {
	if in == nil {
		return
	}
	if len(in.Labels) > 0 {
		out.Labels = make(map[string]string, len(in.Labels))
		for k, v := range in.Labels {
			out.Labels[string(k)] = string(v)
		}
	}
	if len(in.Annotations) > 0 {
		out.Annotations = make(map[string]string, len(in.Annotations))
		for k, v := range in.Annotations {
			out.Annotations[string(k)] = string(v)
		}
	}
	p := in.ParametersRef
	switch {
	case p == nil:
	case p.Group != groupCore || p.Kind != kindConfigMap:
		out.Invalid = notAccepted(gwv1.GatewayReasonInvalidParameters,
			fmt.Sprintf("spec.infrastructure.parametersRef: %s is not a ConfigMap", groupKind(p.Group, p.Kind)))
	default:
		out.Parameters = &model.ObjectRef{Kind: model.KindConfigMap, Key: model.Key{Namespace: out.Namespace, Name: p.Name}}
	}
}

// secretRef reads a reference of a Gateway in namespace ns to a Secret. The reason is for a reference to anything else.
func secretRef(r gwv1.SecretObjectReference, ns, field, reason string) model.SecretRef {
	group, kind := or(r.Group, groupCore), or(r.Kind, kindSecret)
	to := string(or(r.Namespace, gwv1.Namespace(ns)))
	out := model.SecretRef{ObjectRef: model.ObjectRef{Kind: model.Kind(kind), Key: model.Key{Namespace: to, Name: string(r.Name)}}}
	if group != groupCore || kind != kindSecret {
		out.Invalid = notResolved(reason, fmt.Sprintf("%s: %s is not a Secret", field, groupKind(group, kind)))
		return out
	}
	out.Grant = grant(kindGateway, ns, string(group), string(kind), to, string(r.Name))
	return out
}

// caRef reads a reference of a Gateway to roots of client certificates (GEP-91): a ConfigMap, or a Secret.
func caRef(r gwv1.ObjectReference, ns, field string) model.SecretRef {
	to := string(or(r.Namespace, gwv1.Namespace(ns)))
	out := model.SecretRef{ObjectRef: model.ObjectRef{Kind: model.Kind(r.Kind), Key: model.Key{Namespace: to, Name: string(r.Name)}}}
	if r.Group != groupCore || (r.Kind != kindConfigMap && r.Kind != kindSecret) {
		out.Invalid = notResolved(gwv1.ListenerReasonInvalidCACertificateKind,
			fmt.Sprintf("%s: %s is neither a ConfigMap nor a Secret", field, groupKind(r.Group, r.Kind)))
		return out
	}
	out.Grant = grant(kindGateway, ns, string(r.Group), string(r.Kind), to, string(r.Name))
	return out
}

// grant is what a ReferenceGrant must allow; nil within one namespace.
func grant(fromKind, fromNS, toGroup, toKind, toNS, toName string) *model.Reference {
	if fromNS == toNS {
		return nil
	}
	return &model.Reference{
		FromGroup: groupGateway, FromKind: fromKind, FromNamespace: fromNS,
		ToGroup: toGroup, ToKind: toKind, ToNamespace: toNS, ToName: toName,
	}
}
