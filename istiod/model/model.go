// Package model holds istiod's own view of what it reads: plain structs without
// behaviour of Kubernetes or of the wire, made by package translate from API
// objects and read by package graph. Values are immutable once made: a change is
// a new value, so they are shared between goroutines without locks. The package
// imports no Kubernetes type, so that a source which is not Kubernetes can fill
// it too. It decides nothing: rules live in translate, dependencies in graph.
package model

import (
	"net/netip"
	"time"
)

// Kind names a kind of input object.
type Kind string

// The kinds that istiod reads. A further kind is one more constant, one translator and one case in the graph.
const (
	KindPod                 Kind = "Pod"
	KindService             Kind = "Service"
	KindEndpointSlice       Kind = "EndpointSlice"
	KindNamespace           Kind = "Namespace"
	KindNode                Kind = "Node"
	KindAuthorizationPolicy Kind = "AuthorizationPolicy"
	KindPeerAuthentication  Kind = "PeerAuthentication"
)

// Key names an object within its kind. Namespace is empty for cluster-scoped kinds.
type Key struct{ Namespace, Name string }

// String returns "namespace/name", or the name alone for a cluster-scoped object.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// Less orders keys by namespace, then name.
func (k Key) Less(o Key) bool {
	if k.Namespace != o.Namespace {
		return k.Namespace < o.Namespace
	}
	return k.Name < o.Name
}

// OwnerType is what kind of owner a pod has, as far as telemetry tells them apart.
type OwnerType uint8

// The owners that the workload API knows.
const (
	OwnerPod OwnerType = iota
	OwnerDeployment
	OwnerJob
	OwnerCronJob
)

// Pod is a pod as the mesh sees it.
type Pod struct {
	Key
	UID            string
	Labels         map[string]string
	Node           string
	ServiceAccount string
	// IPs is empty until the pod has an address.
	IPs         []netip.Addr
	HostNetwork bool
	// Ready is false too for a pod that is being deleted.
	Ready bool
	// Finished pods own neither address nor identity any more.
	Finished bool
	// Tunnel says that its node captures the pod's traffic; NativeTunnel that the app itself speaks HBONE.
	Tunnel, NativeTunnel bool
	// Enrolled is the redirection annotation in any state: capture is in place or being put in place.
	Enrolled bool
	// MeshLabel is the pod's own dataplane-mode label, empty when it has none.
	MeshLabel string
	// Owner is the workload's name: the Deployment, Job …, or the pod itself.
	Owner     string
	OwnerType OwnerType
	// TCPPorts maps the names of container ports to their numbers.
	TCPPorts map[string]uint16
	Waypoint WaypointRef
}

// Locality is where a node is.
type Locality struct{ Region, Zone, Subzone string }

// Node is a node's locality.
type Node struct {
	Name     string
	Locality Locality
}

// Namespace is what of a namespace touches workloads and services.
type Namespace struct {
	Name string
	// Labels decide which listeners and waypoints the namespace's objects may attach to.
	Labels      map[string]string
	MeshLabel   string
	Terminating bool
	Waypoint    WaypointRef
	// IngressWaypoint is the label istio.io/ingress-use-waypoint: gateways go through the waypoint too.
	IngressWaypoint bool
	// Distribution applies to services that choose none themselves.
	Distribution Distribution
	// Bypass holds for services that say nothing themselves.
	Bypass Bypass
}

// Bypass says who may connect to the pods of a service with a waypoint without coming through the waypoint.
type Bypass uint8

// Who may pass by a waypoint. Unset leaves it to the namespace, then to the mesh.
const (
	BypassUnset Bypass = iota
	// BypassRefuse refuses callers of the mesh. Callers outside cannot use a waypoint: PeerAuthentication judges them.
	BypassRefuse
	// BypassStrict refuses callers without identity too.
	BypassStrict
	// BypassAllow refuses nobody.
	BypassAllow
)

// WaypointRef is a use-waypoint label: which waypoint, or explicitly none.
type WaypointRef struct {
	Key
	// None is the label's value "none", which overrides the namespace's.
	None bool
	// Canary is a second waypoint that gets CanaryWeight percent of the connections; services only.
	Canary       Key
	CanaryWeight uint32
	// CanaryInvalid says that the weight written down is no percentage, so that the canary is not used.
	CanaryInvalid bool
}

// IsSet tells whether the object says anything about its waypoint.
func (w WaypointRef) IsSet() bool { return w.None || w.Name != "" }

// Traffic says which addresses a waypoint is for.
type Traffic uint8

// The values of the label istio.io/waypoint-for.
const (
	TrafficService Traffic = iota
	TrafficWorkload
	TrafficAll
	TrafficNone
)

// Waypoint is a Gateway of a waypoint class that has an address: what a
// use-waypoint label resolves to.
type Waypoint struct {
	Key
	For Traffic
	// Hostname is set when the waypoint is reached by service name, else Address.
	Hostname  string
	Address   netip.Addr
	HBONEPort uint16
	// Ready says that it can take traffic; before that, only layer 7 knows of it.
	Ready bool
	// AllNamespaces or Namespaces say who may attach beside the waypoint's own namespace.
	AllNamespaces bool
	Namespaces    map[string]bool
}

// Distribution is a preference for close endpoints.
type Distribution uint8

// Preferences for close endpoints. Unset lets the namespace decide, Any does not.
const (
	DistributionUnset Distribution = iota
	DistributionAny
	DistributionSameZone
	DistributionSameNode
)

// AppProtocol is what a service port speaks.
type AppProtocol uint8

// Protocols in the order of the workload API.
const (
	ProtocolUnknown AppProtocol = iota
	ProtocolHTTP1
	ProtocolHTTP2
	ProtocolGRPC
	ProtocolTCP
	ProtocolTLS
)

// ServicePort is one port of a service.
type ServicePort struct {
	Name string
	Port uint16
	// Target is the pod's port, or TargetName the name of it, which each pod resolves for itself.
	Target     uint16
	TargetName string
	Protocol   AppProtocol
}

// IPFamilies of a service.
type IPFamilies uint8

// Families in the order of the workload API.
const (
	FamiliesAutomatic IPFamilies = iota
	FamiliesV4
	FamiliesV6
	FamiliesDual
)

// Service is a Kubernetes Service, or later a host of a ServiceEntry.
type Service struct {
	Key
	Hostname string
	// VIPs is empty for a headless service.
	VIPs  []netip.Addr
	Ports []ServicePort
	// Selector is empty when endpoints come from slices only.
	Selector map[string]string
	Families IPFamilies
	// NodeLocal is internalTrafficPolicy: Local.
	NodeLocal       bool
	Distribution    Distribution
	PublishNotReady bool
	Waypoint        WaypointRef
	// NoWaypoint is set on the services of waypoints themselves, which must not have one.
	NoWaypoint bool
	Bypass     Bypass
	// IngressWaypoint is the label istio.io/ingress-use-waypoint; nil leaves it to the namespace.
	IngressWaypoint *bool
	// External are addresses by which the outside reaches it: a load balancer's, as its status says.
	External []GatewayAddress
	// LoadBalancer says that the service asks for such an address.
	LoadBalancer bool
	// Generation is for status.
	Generation int64
}

// ResourceName is the service's name on the wire.
func (s *Service) ResourceName() string { return s.Namespace + "/" + s.Hostname }

// Endpoint is one endpoint of a slice that refers to a pod.
type Endpoint struct {
	Pod    Key
	PodUID string
}

// AddressEndpoint is one endpoint of a slice that names addresses and no pod.
type AddressEndpoint struct {
	Addresses []netip.Addr
	Ready     bool
	Zone      string
}

// EndpointSlice connects a service to endpoints that its selector does not choose.
type EndpointSlice struct {
	Key
	// Service is the name of the service, in the slice's namespace.
	Service   string
	Endpoints []Endpoint
	// Addresses are endpoints that are not pods. Ports maps names of the service's ports to their ports.
	Addresses []AddressEndpoint
	Ports     map[string]uint16
}

// MTLSMode is a mode of PeerAuthentication.
type MTLSMode uint8

// Modes of PeerAuthentication.
const (
	MTLSUnset MTLSMode = iota
	MTLSDisable
	MTLSPermissive
	MTLSStrict
)

// PeerAuthentication says which connections must be mutual TLS.
type PeerAuthentication struct {
	Key
	Created  time.Time
	Selector map[string]string
	Mode     MTLSMode
	Ports    map[uint16]MTLSMode
}
