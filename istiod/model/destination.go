package model

import (
	"net/netip"
	"time"
)

// DestinationRule is how a host's endpoints are chosen and reached.
type DestinationRule struct {
	Meta
	// Host is fully qualified, or a wildcard.
	Host     string
	ExportTo []string
	// Selector limits it to clients with these labels.
	Selector map[string]string
	Traffic  TrafficPolicy
	Subsets  []Subset
}

// Subset is the endpoints with these labels.
type Subset struct {
	Name    string
	Labels  map[string]string
	Traffic *TrafficPolicy
}

// TrafficPolicy is how endpoints are chosen and reached; nil parts are inherited.
type TrafficPolicy struct {
	LB      *LoadBalancer
	Pool    *ConnectionPool
	Outlier *Outlier
	TLS     *ClientTLS
	// Ports override all of the above, not merged (as Istio does).
	Ports map[uint16]*TrafficPolicy
	// ProxyProtocol is "", "V1" or "V2".
	ProxyProtocol string
	// RetryBudget bounds retries to a share of active requests.
	RetryBudget *RetryBudget
}

// RetryBudget is Envoy's: Percent of active requests, at least Min per second.
type RetryBudget struct {
	Percent float64
	Min     uint32
}

// LBKind is a load-balancing algorithm.
type LBKind uint8

// Algorithms. Unset is least request.
const (
	LBUnset LBKind = iota
	LBRoundRobin
	LBLeastRequest
	LBRandom
	LBPassthrough
	LBConsistentHash
)

// LoadBalancer chooses an endpoint.
type LoadBalancer struct {
	Kind     LBKind
	Hash     *HashPolicy
	Locality *LocalityLB
	// WarmUp slowly raises a new endpoint's share; 0 is off. Aggression and MinPercent are Envoy's slow start.
	WarmUp     time.Duration
	Aggression float64
	MinPercent uint32
}

// HashPolicy is what is hashed: exactly one is set.
type HashPolicy struct {
	Header, Query string
	Cookie        *HashCookie
	SourceIP      bool
	// Maglev with TableSize, else a ring of at least MinRing.
	Maglev    bool
	TableSize uint64
	MinRing   uint64
}

// HashCookie is generated if TTL is not nil and the request has none.
type HashCookie struct {
	Name, Path string
	TTL        *time.Duration
	// Attributes are further ones of a generated cookie, such as SameSite.
	Attributes []Header
}

// LocalityLB prefers places. Localities are "region/zone/subzone", * at the end.
type LocalityLB struct {
	Enabled    *bool
	Distribute []LocalityShare
	// Failover maps a region to the next; Priority lists label keys (or key=value) that must agree, most important first.
	Failover map[string]string
	Priority []string
}

// LocalityShare spreads what comes From over To by weight.
type LocalityShare struct {
	From string
	To   map[string]uint32
}

// ConnectionPool bounds what one proxy does to a destination; 0 is no bound, nil is the default.
type ConnectionPool struct {
	MaxConnections           uint32
	ConnectTimeout, TCPIdle  time.Duration
	MaxConnectionDuration    time.Duration
	Keepalive                *Keepalive
	MaxPending, MaxRequests  uint32
	MaxRequestsPerConnection uint32
	MaxRetries               uint32
	HTTPIdle                 time.Duration
	MaxStreams               uint32
	// PingInterval and PingTimeout are HTTP/2's; 0 sends no pings.
	PingInterval, PingTimeout time.Duration
	// H2Upgrade forces HTTP/2 (true) or HTTP/1.1 (false) to the endpoint; nil keeps the client's.
	H2Upgrade *bool
	// ClientProtocol keeps the client's protocol.
	ClientProtocol bool
}

// Keepalive of TCP.
type Keepalive struct {
	Probes         uint32
	Time, Interval time.Duration
}

// Outlier takes failing endpoints out.
type Outlier struct {
	Consecutive5xx, ConsecutiveGateway, ConsecutiveLocal *uint32
	SplitLocal                                           bool
	Interval, BaseEjection                               time.Duration
	MaxEjectionPercent                                   *uint32
	MinHealthPercent                                     uint32
}

// TLSMode of a connection to an endpoint.
type TLSMode uint8

// Modes. Istio mutual is the mesh's own and means HBONE where the endpoint has it.
const (
	TLSUnset TLSMode = iota
	TLSDisable
	TLSSimple
	TLSMutual
	TLSIstioMutual
)

// ClientTLS is TLS that the proxy originates.
type ClientTLS struct {
	Mode TLSMode
	// SNI and SANs; empty SANs accept any name that the SNI verifies.
	SNI  string
	SANs []StringMatch
	// Credential names a Secret with key, certificate and CA; CA holds PEM roots given otherwise; SystemCA uses the image's.
	Credential Key
	CA         string
	SystemCA   bool
	// InsecureSkipVerify is asked for by name only.
	InsecureSkipVerify bool
	// Files of a certificate in the proxy's own container.
	CertFile, KeyFile, CAFile string
}

// BackendTLS is a BackendTLSPolicy, the Gateway API's way to say ClientTLS.
type BackendTLS struct {
	Meta
	Targets []PolicyTarget
	TLS     ClientTLS
	// CARefs are ConfigMaps or Secrets whose ca.crt is trusted; resolved by the layer-7 graph.
	CARefs  []ObjectRef
	Invalid *Condition
}

// ObjectRef names an object of another kind.
type ObjectRef struct {
	Kind Kind
	Key
}

// PolicyTarget is what a policy is attached to; Section is a port name or listener.
type PolicyTarget struct {
	// Kind is Gateway, GatewayClass, Service, ServiceEntry or a route kind. Empty is a target that could not be read: it
	// matches nothing, and keeps the policy from becoming one of the whole namespace.
	Kind string
	Key
	Section string
}

// Resolution is how a ServiceEntry's addresses are found.
type Resolution uint8

// Resolutions of a ServiceEntry.
const (
	ResolveStatic Resolution = iota
	ResolveDNS
	ResolveDNSRoundRobin
	ResolveNone
	// ResolveDynamic resolves the host that each request names (a wildcard host with dynamic DNS).
	ResolveDynamic
)

// ServiceEntry is a host that Kubernetes has no Service for.
type ServiceEntry struct {
	Meta
	Hosts      []string
	Addresses  []netip.Prefix
	Ports      []ServicePort
	Resolution Resolution
	External   bool
	Endpoints  []EntryEndpoint
	Selector   map[string]string
	ExportTo   []string
	SANs       []string
	Waypoint   WaypointRef
}

// EntryEndpoint is one endpoint of a ServiceEntry; Host is set where Address is a DNS name.
type EntryEndpoint struct {
	Address        netip.Addr
	Host           string
	Ports          map[string]uint16
	Labels         map[string]string
	Locality       Locality
	Weight         uint32
	ServiceAccount string
	Network        string
}
