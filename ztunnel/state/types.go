package state

import (
	"fmt"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/identity"
)

// Protocol is how a workload accepts connections.
type Protocol uint8

// The protocols.
const (
	ProtocolTCP   Protocol = iota // plaintext only
	ProtocolHBONE                 // the tunnel on port 15008
)

// Workload is one pod, host or external endpoint. Immutable once published.
type Workload struct {
	UID               string
	Name              string
	Namespace         string
	TrustDomain       string
	ServiceAccount    string
	Network           string
	ClusterID         string
	Node              string
	Hostname          string
	WorkloadName      string
	WorkloadType      string // deployment, cronjob, pod, job
	CanonicalName     string
	CanonicalRevision string
	Addresses         []netip.Addr
	Services          []WorkloadService // sorted by Key
	Policies          []string          // namespace/name of selector-based policies
	Waypoint          *GatewayAddress
	NetworkGateway    *GatewayAddress
	ApplicationTunnel *ApplicationTunnel
	Locality          Locality
	Capacity          uint32
	Protocol          Protocol
	HostNetwork       bool
	Healthy           bool
	NativeTunnel      bool
}

// Identity is the SPIFFE identity of w.
func (w *Workload) Identity() identity.Identity {
	return identity.Identity{TrustDomain: w.TrustDomain, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}
}

// WorkloadService is a service that a workload is an endpoint of.
type WorkloadService struct {
	Key   string // namespace/hostname
	Ports []Port
}

// Port maps a service port to the port that the app listens on.
type Port struct{ Service, Target uint16 }

// Locality is where a workload runs.
type Locality struct{ Region, Zone, Subzone string }

// GatewayAddress is where a waypoint or network gateway is found: by Hostname
// (with Namespace), or else by Network and Address.
type GatewayAddress struct {
	Namespace, Hostname string
	Network             string
	Address             netip.Addr
	HBONEPort           uint16
}

// ApplicationTunnel is how a workload wants tunnelled bytes handed over.
type ApplicationTunnel struct {
	Proxy bool // PROXY protocol on Port; else a plain connection
	Port  uint16
}

// Service is one service. Immutable once published.
type Service struct {
	Name              string
	Namespace         string
	Hostname          string
	VIPs              []NetworkPrefix
	Ports             []Port
	SubjectAltNames   []string
	Waypoint          *GatewayAddress
	WeightedWaypoints []WeightedWaypoint
	LoadBalancing     *LoadBalancing
	IPFamilies        IPFamilies
	Canonical         bool
	NamespaceOnly     bool // visible to clients of its own namespace only
}

// Key is namespace/hostname.
func (s *Service) Key() string { return s.Namespace + "/" + s.Hostname }

// NetworkPrefix is a VIP or a range of VIPs in a network.
type NetworkPrefix struct {
	Network string
	Prefix  netip.Prefix
}

// WeightedWaypoint is one of several waypoints of a service.
type WeightedWaypoint struct {
	Destination GatewayAddress
	Weight      uint32
}

// Scope is one step of a routing preference.
type Scope uint8

// The scopes.
const (
	ScopeRegion Scope = iota + 1
	ScopeZone
	ScopeSubzone
	ScopeNode
	ScopeCluster
	ScopeNetwork
)

// Mode says what a routing preference does.
type Mode uint8

// The modes.
const (
	ModeStandard    Mode = iota // any endpoint
	ModeStrict                  // only endpoints that match every scope
	ModeFailover                // the best matching ones
	ModePassthrough             // no choice: the original destination
)

// LoadBalancing is how an endpoint is chosen.
type LoadBalancing struct {
	Preference     []Scope
	Mode           Mode
	AllowUnhealthy bool
}

// IPFamilies restricts the address family of a service's endpoints.
type IPFamilies uint8

// The families.
const (
	IPAutomatic IPFamilies = iota
	IPv4Only
	IPv6Only
	IPDual
)

// Kind is what to do with a connection.
type Kind uint8

// The kinds.
const (
	Passthrough Kind = iota // not of the mesh: plain TCP to the original destination
	Plaintext               // plain TCP to Addr
	HBONE                   // CONNECT Authority through Tunnel
	Refused                 // close; Reason says why
)

// String is the kind in lower case.
func (k Kind) String() string {
	switch k {
	case Passthrough:
		return "passthrough"
	case Plaintext:
		return "plaintext"
	case HBONE:
		return "hbone"
	case Refused:
		return "refused"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Upstream is where a connection goes.
type Upstream struct {
	Kind      Kind
	Workload  *Workload      // next hop: the endpoint or the waypoint; nil if unknown
	Service   *Service       // nil if the destination is not a service
	Addr      netip.AddrPort // where plain TCP goes; for HBONE the app behind the tunnel
	Tunnel    netip.AddrPort // HBONE only
	Authority string         // HBONE only
	SANs      []string       // HBONE only: acceptable SPIFFE URIs of the tunnel's server
	Waypoint  bool
	Reason    string // Refused only
}
