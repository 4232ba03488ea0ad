package status

import (
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// ControllerName is who we are in the status of routes and policies. It is Istio's, so that a mesh of either kind takes
// over what the other wrote.
const ControllerName = "istio.io/gateway-controller"

// API groups.
const (
	groupGateway  = gatewayv1.GroupName
	groupNetwork  = "networking.istio.io"
	groupSecurity = "security.istio.io"
)

// shape is how a kind's status is laid out.
type shape uint8

const (
	shapeConditions shape = iota
	shapeClass
	shapeGateway
	shapeRoute
	shapePolicy
)

// resource is where objects of a kind are, and how their status looks.
type resource struct {
	schema.GroupVersionResource
	shape shape
}

// resourceOf knows the kinds that have a status of ours.
func resourceOf(k model.Kind) (resource, bool) {
	at := func(group, version, name string, s shape) (resource, bool) {
		return resource{schema.GroupVersionResource{Group: group, Version: version, Resource: name}, s}, true
	}
	switch k {
	case model.KindGatewayClass:
		return at(groupGateway, "v1", "gatewayclasses", shapeClass)
	case model.KindGateway:
		return at(groupGateway, "v1", "gateways", shapeGateway)
	case model.KindHTTPRoute:
		return at(groupGateway, "v1", "httproutes", shapeRoute)
	case model.KindGRPCRoute:
		return at(groupGateway, "v1", "grpcroutes", shapeRoute)
	case model.KindTCPRoute:
		return at(groupGateway, "v1", "tcproutes", shapeRoute)
	case model.KindTLSRoute:
		return at(groupGateway, "v1", "tlsroutes", shapeRoute)
	case model.KindBackendTLSPolicy:
		return at(groupGateway, "v1", "backendtlspolicies", shapePolicy)
	case model.KindVirtualService:
		return at(groupNetwork, "v1", "virtualservices", shapeConditions)
	case model.KindDestinationRule:
		return at(groupNetwork, "v1", "destinationrules", shapeConditions)
	case model.KindServiceEntry:
		return at(groupNetwork, "v1", "serviceentries", shapeConditions)
	case model.KindIstioGateway:
		return at(groupNetwork, "v1", "gateways", shapeConditions)
	case model.KindAuthorizationPolicy:
		return at(groupSecurity, "v1", "authorizationpolicies", shapeConditions)
	case model.KindPeerAuthentication:
		return at(groupSecurity, "v1", "peerauthentications", shapeConditions)
	case model.KindRequestAuthentication:
		return at(groupSecurity, "v1", "requestauthentications", shapeConditions)
	case model.KindTelemetry:
		return at("telemetry.istio.io", "v1", "telemetries", shapeConditions)
	case model.KindRateLimit:
		return at("policy.ambit.dev", "v1alpha1", "ratelimits", shapeConditions)
	case model.KindService:
		return at("", "v1", "services", shapeConditions)
	}
	return resource{}, false
}

// ownPrefix begins the types of conditions that are ours on objects of Kubernetes.
const ownPrefix = "istio.io/"

// ours tells whether a type of condition is written by istiod, so that one that is not said any more goes. All others
// belong to other controllers and stay (Gateway API, "MUST NOT remove or reorder Conditions that they are not directly
// responsible for").
func ours(conditionType string) bool {
	switch conditionType {
	case "Accepted", "Programmed", "ResolvedRefs", "Conflicted", "Ready", "PartiallyInvalid", "SupportedVersion",
		"OverlappingTLSConfig", "InsecureFrontendValidationMode", "ResolvedWaypoints", "ZtunnelAccepted", "WaypointAccepted",
		"Scheduled", "Detached", "UnresolvedRefs":
		return true
	}
	return strings.HasPrefix(conditionType, ownPrefix)
}
