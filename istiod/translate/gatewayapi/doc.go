// Package gatewayapi turns objects of the Gateway API (gateway.networking.k8s.io,
// types of release 1.6) into istiod's model: classes, gateways with their
// listeners, routes, grants and policies. Package layer7 calls it for each object
// that it is told of, and resolves the result.
//
// What always holds: a translation never fails and never panics. What is wrong
// with an object becomes a condition with the reason that the Gateway API gives
// it, at the place where it is wrong: a backend, a rule, a listener, the whole
// object. A part with a condition is refused by the proxy and never skipped, so
// that no filter or limit which a user wrote is silently left out. The input is
// not changed; the output shares its maps.
//
// It looks nothing up. Whether a Service, Secret or parent exists, whether a
// ReferenceGrant allows a reference, and which listeners conflict is for layer7 to
// say: each reference across namespaces carries what a grant must allow.
package gatewayapi

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Controllers whose classes are ours; their names are Istio's, so that a Gateway moves between the two without an edit.
const (
	ControllerGateway  = "istio.io/gateway-controller"
	ControllerWaypoint = "istio.io/mesh-controller"
)

// API groups.
const (
	groupCore    = ""
	groupGateway = gwv1.GroupName
	groupIstio   = "networking.istio.io"
)

// Kinds of objects that references name.
const (
	kindGateway      = "Gateway"
	kindService      = "Service"
	kindServiceEntry = "ServiceEntry"
	// kindHostname is Istio's backend that is a host and not an object.
	kindHostname  = "Hostname"
	kindSecret    = "Secret"
	kindConfigMap = "ConfigMap"
)

// Types of conditions that translations give.
const (
	typeAccepted     = "Accepted"
	typeResolvedRefs = "ResolvedRefs"
)

// meta is what status and ordering need of an object.
func meta(kind model.Kind, o metav1.Object) model.Meta {
	return model.Meta{
		Kind:       kind,
		Key:        model.Key{Namespace: o.GetNamespace(), Name: o.GetName()},
		UID:        string(o.GetUID()),
		Created:    o.GetCreationTimestamp().Time,
		Generation: o.GetGeneration(),
	}
}

// notAccepted and notResolved are the two verdicts that a translation can reach.
func notAccepted[R ~string](reason R, message string) *model.Condition {
	return &model.Condition{Type: typeAccepted, Reason: string(reason), Message: message}
}

func notResolved[R ~string](reason R, message string) *model.Condition {
	return &model.Condition{Type: typeResolvedRefs, Reason: string(reason), Message: message}
}

// or returns what p points to, or the default.
func or[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}
