package model

import (
	"net/netip"
	"time"
)

// This file is the output side of layer 7: what one proxy, a waypoint or gateway, is told. Front ends fill the
// structs of route.go, destination.go, gateway.go and policy.go; package layer7 resolves them for each proxy into
// these; waypoint/config writes them as Envoy's. Every reference is resolved here: nothing below needs a lookup.

// Proxy is what all replicas of one waypoint or gateway have in common.
type Proxy struct {
	Key
	Waypoint bool
	// ServiceAccount of its pods, and the trust domain of the mesh.
	ServiceAccount, TrustDomain string
	Domain, RootNamespace       string
	// Locality and Network are for choosing endpoints.
	Network string
	// HTTP is what its HTTP filters share.
	HTTP HTTPFilters
	// Ports are the sockets of a gateway; a waypoint has none but the mesh's.
	Ports []ProxyPort
	// Scopes list what a waypoint serves, in order of name.
	Scopes []Scope
	// Direct says that a waypoint also serves workloads by address.
	Direct bool
	// Workloads are those that it serves by address, ordered; what is not listed is refused, so that a waypoint is no
	// open proxy. DirectPolicy applies to them.
	Workloads    []DirectWorkload
	DirectPolicy HTTPPolicy
	// TrustDomains are further trust domains whose identities are accepted (aliases).
	TrustDomains []string
	// Families says where the proxy's sockets listen; Automatic is IPv4.
	Families IPFamilies
}

// DirectWorkload is a workload that a waypoint serves by its address.
type DirectWorkload struct {
	Address netip.Addr
	// Identity that its tunnel must have.
	Identity string
}

// ScopeKind is how the bytes of a service port are read.
type ScopeKind uint8

// Kinds of scopes. Auto looks at the first bytes.
const (
	ScopeHTTP ScopeKind = iota
	ScopeTCP
	ScopeAuto
)

// Scope is one service port of a waypoint, addressed by any of its authorities.
type Scope struct {
	// Name is also that of the route table: "<namespace>/<hostname>:<port>".
	Name string
	Kind ScopeKind
	// Authorities are "ip:port" and "host:port" as CONNECT names them.
	Authorities []string
	// TCP is how connections are forwarded if Kind is not ScopeHTTP.
	TCP *TCPForward
}

// TCPForward sends connections to clusters by weight, after policy.
type TCPForward struct {
	// Name is unique in the proxy.
	Name     string
	Clusters []WeightedCluster
	Authz    []*Authorization
	// SNI limits a TLS forward to these names; Prefixes to these destinations.
	SNI      []string
	Prefixes []netip.Prefix
	// HashSourceIP keeps a source on an endpoint.
	HashSourceIP bool
	IdleTimeout  time.Duration
	// Refuse closes connections at once: the rule is invalid.
	Refuse bool
}

// WeightedCluster is a share; Endpoint may be limited to a subset by the cluster itself.
type WeightedCluster struct {
	Cluster string
	Weight  uint32
}

// ProxyPort is a socket of a gateway.
type ProxyPort struct {
	Port uint16
	// Bind is where Envoy listens, which differs from Port for privileged ports.
	Bind uint16
	// Chains are told apart by SNI; a plain port has one without.
	Chains []PortChain
}

// PortChain is what happens to connections of some SNI names.
type PortChain struct {
	Name string
	SNI  []string
	// TLS terminates; nil is plaintext or passthrough.
	TLS *ServerTLS
	// Routes names the route table for HTTP; TCP forwards otherwise.
	Routes string
	TCP    *TCPForward
	// RejectTLS refuses these names: the certificate is missing.
	Reject bool
}

// ServerTLS terminates TLS. Names are of SDS resources that waypoint/config makes from Certificates.
type ServerTLS struct {
	Certificates []Certificate
	// ClientCA is PEM; Optional asks without insisting.
	ClientCA string
	Optional bool
	// Insecure asks for a client certificate and lets the client in whether or not it verifies.
	Insecure bool
	// Mesh uses the proxy's own identity and the mesh's roots.
	Mesh                   bool
	MinVersion, MaxVersion string
	Ciphers                []string
	SANs                   []string
	// Files in the proxy's container, instead.
	CertFile, KeyFile, CAFile string
}

// Certificate is a certificate of a user's Secret.
type Certificate struct {
	// Name is "namespace/name" of the Secret.
	Name       string
	Chain, Key []byte
}

// RouteTable is one RDS resource.
type RouteTable struct {
	Name  string
	Hosts []VirtualHost
}

// VirtualHost is the ordered rules for some host names.
type VirtualHost struct {
	Name    string
	Domains []string
	Rules   []RouteRule
	Policy  HTTPPolicy
	// RedirectTLS answers everything with 301 to https.
	RedirectTLS bool
}

// RouteRule is one match and what happens: the first one that matches wins.
type RouteRule struct {
	Name  string
	Match HTTPMatch
	// SourceAddresses, if not nil, are the addresses that Match.SourceLabels chooses; empty matches nobody.
	SourceAddresses []netip.Addr
	// Action is the rule, with Matches, Backends and Mirrors not to be read: Clusters and MirrorClusters stand for them.
	Action         HTTPRule
	Clusters       []RouteCluster
	MirrorClusters []MirrorCluster
	// Hash is what the chosen clusters' load balancers hash.
	Hash []HashPolicy
	// Status is answered at once if it is not 0: 500 for what cannot be routed, 404 for nothing.
	Status int
	// Retry is the rule's or the mesh's default, never nil unless off.
	Retry *Retry
	// Policy adds to the virtual host's; nil adds nothing.
	Policy *HTTPPolicy
	// ExtAuthz is the cluster of Action.ExternalAuth.
	ExtAuthz string
	// Service is for telemetry: the service that the client called.
	Service string
}

// RouteCluster is a share of requests. A share without cluster is answered with 500.
type RouteCluster struct {
	WeightedCluster
	Request, Response HeaderOps
	// Authority replaces the request's host, for this share only.
	Authority string
}

// MirrorCluster copies requests.
type MirrorCluster struct {
	Cluster string
	Share   Fraction
}

// HTTPPolicy is what is checked before a request is routed.
type HTTPPolicy struct {
	// Authz in order of name; waypoint/config sorts by action: CUSTOM, DENY, ALLOW, and AUDIT beside.
	Authz []*Authorization
	// JWT are the rules of all RequestAuthentications that apply; Requirement is their name in HTTPFilters.
	JWT         []JWTRule
	Requirement string
	Limits      []*RateLimit
}

// HTTPFilters is what the filter chain of HTTP must hold for the tables that use it.
type HTTPFilters struct {
	// JWT providers by requirement: every set of rules in use. JWKS are resolved.
	JWT []JWTRequirement
	// ExtAuthz servers in use, by provider; Cluster of each is resolved.
	ExtAuthz []ExtAuthzCluster
	// RateLimit clusters in use.
	RateLimit []RateLimitCluster
	Logs      []AccessLog
	Tracing   *Tracing
	Metrics   []TelemetryMetric
}

// JWTRequirement is a set of rules of which one must accept a token, if there is one.
type JWTRequirement struct {
	Name  string
	Rules []JWTRule
	// Scopes are the scopes of a waypoint that it is for. There the filter chain itself says who must show a token: a
	// table that named the requirement would be wrong for connections on the chain from before.
	Scopes []string
}

// ExtAuthzCluster is a server with its cluster.
type ExtAuthzCluster struct {
	ExtAuthz
	Cluster string
}

// RateLimitCluster is a server of the ratelimit protocol with its cluster.
type RateLimitCluster struct {
	GlobalLimit
	Cluster string
}

// AccessLog is one sink. OTLP's Cluster is resolved.
type AccessLog struct {
	LogFile
	OTLP    *OTLP
	Cluster string
	Filter  string
}

// Tracing is one collector.
type Tracing struct {
	OTLP
	Cluster string
	Percent float64
	Tags    []TraceTag
	Service string
	// NoMeshTags leaves out Istio's own tags, NoPropagation the headers by which what is behind would join the trace.
	NoMeshTags, NoPropagation bool
}

// ClusterKind is how a cluster finds its endpoints.
type ClusterKind uint8

// Kinds of clusters.
const (
	ClusterEDS ClusterKind = iota
	ClusterDNS
	// ClusterOriginalDst goes where the client wanted to (ServiceEntry with resolution NONE, and passthrough).
	ClusterOriginalDst
	// ClusterDynamic resolves the request's own host.
	ClusterDynamic
)

// Cluster is a destination of a proxy.
type Cluster struct {
	// Name is Istio's: "outbound|<port>|<subset>|<host>".
	Name     string
	Kind     ClusterKind
	Protocol AppProtocol
	// Policy is merged: subset over port over host over mesh.
	Policy TrafficPolicy
	// TLS is what is originated, certificates resolved; nil is none.
	TLS *ClusterTLS
	// HTTP says that requests, not connections, are sent to it; Downstream keeps the client's protocol version.
	HTTP bool
	// Service, Namespace, Host are for telemetry.
	Service, Namespace, Host string
	// DNS endpoints; EDS ones are sent apart.
	DNS []DNSEndpoint
	// RoundRobinDNS resolves logically.
	RoundRobinDNS bool
}

// ClusterTLS is ClientTLS resolved.
type ClusterTLS struct {
	ClientTLS
	// CA is PEM of the roots, Certificate the client's own.
	Roots       string
	Certificate *Certificate
}

// DNSEndpoint is a name to resolve.
type DNSEndpoint struct {
	Host     string
	Port     uint16
	Weight   uint32
	Locality Locality
}

// Endpoints is what an EDS cluster holds now, ordered by address.
type Endpoints struct {
	Cluster   string
	Endpoints []ProxyEndpoint
	// Locality is where the proxy is and how it prefers; nil spreads evenly.
	Locality *LocalityLB
	From     Locality
	// FromLabels are the proxy's own, which Locality.Priority compares with the endpoints' Labels.
	FromLabels map[string]string
}

// ProxyEndpoint is one place to send to.
type ProxyEndpoint struct {
	Address netip.AddrPort
	// Tunnel wraps it in HBONE to Identity at port 15008; else it is plain.
	Tunnel   bool
	Identity string
	// Waypoint is where the tunnel ends instead, with Address as what is asked for.
	Waypoint netip.AddrPort
	Weight   uint32
	Locality Locality
	Priority uint32
	Draining bool
	Unready  bool
	// For telemetry.
	Workload, Namespace, CanonicalName, CanonicalRevision, App, Version, Cluster string
	Labels                                                                       map[string]string
}
