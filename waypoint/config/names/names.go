// Package names holds what the parts of a proxy's configuration, and the agent
// beside Envoy, must call by the same name: resource types, listeners, clusters,
// secrets, filter state, metadata and headers (this file), the statistics that
// the agent turns into Istio's metrics (stats.go), and the resolver that two
// extensions share (dns.go). waypoint/config, waypoint/config/route and
// waypoint/agent import it; it imports none of them. It decides nothing.
package names

// Types of resources, as xDS names them.
const (
	TypeListener    = "type.googleapis.com/envoy.config.listener.v3.Listener"
	TypeCluster     = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	TypeEndpoints   = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	TypeRoute       = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	TypeScopedRoute = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"
	TypeSecret      = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// Listeners. Those with Main are internal: each is also a cluster of the same name that leads to it.
const (
	// ConnectTerminate is the socket on port 15008 that takes tunnels apart.
	ConnectTerminate = "connect_terminate"
	// MainHTTP serves ports that speak HTTP, MainTCP those that do not, MainAuto those that nobody knows of.
	MainHTTP = "main_http"
	MainTCP  = "main_tcp"
	MainAuto = "main_auto"
	// MainDirect serves workloads by their own address.
	MainDirect = "main_direct"
	// ConnectOriginate puts a connection into a tunnel. As a cluster it is the tunnels' other ends, not the way in.
	ConnectOriginate = "connect_originate"
)

// Other clusters.
const (
	// XDS is the agent's unix socket, made by the bootstrap: ADS relayed to istiod, and the agent's own SDS.
	XDS = "xds"
	// Encap leads into ConnectOriginate with the address that the connection was made to: for MainDirect.
	Encap = "encap"
)

// Route tables that are not named after a service port or a gateway's port.
const (
	// RouteConnect chooses the Main listener by the authority of a CONNECT.
	RouteConnect = "connect"
	// RouteDirect is that of MainDirect.
	RouteDirect = "direct"
	// ScopedRoutes names the set of scopes within an HTTP connection manager.
	ScopedRoutes = "services"
)

// Secrets of the proxy itself. The agent serves them by SDS (a delta stream of its own on cluster XDS, not ADS).
const (
	SecretIdentity = "default"
	SecretRoots    = "ROOTCA"
)

// secretPrefix starts the names of secrets that istiod takes from Kubernetes' Secrets and serves over ADS.
const secretPrefix = "kubernetes://"

// UserSecret is the SDS name of the certificate in a Secret, given as "namespace/name".
func UserSecret(key string) string { return secretPrefix + key }

// RootsSecret is the SDS name of the roots for what owner names: a gateway's chain, or a cluster.
func RootsSecret(owner string) string { return secretPrefix + owner + "-cacert" }

// Filter state. Values are strings that are part of the key of connection pools (HashableString), so that what belongs
// to one source can never be found on a connection that another one uses. It is shared with the next internal
// listener only (ONCE), and there again if that listener says so.
const (
	// HashableString is the factory of all of them.
	HashableString = "envoy.hashable_string"
	// StateAuthority is the authority of the CONNECT: "ip:port" or "host:port" of a service or workload.
	StateAuthority = "mesh.connect_authority"
	// StatePeer is the SPIFFE id of who opened the tunnel: the source pod. StateLocal is the proxy's own.
	StatePeer  = "mesh.peer_principal"
	StateLocal = "mesh.local_principal"
	// StateBaggage is what the source's node proxy says of the source workload; for telemetry only.
	StateBaggage = "mesh.source_baggage"
	// StateSourceIP is the source's address without port.
	StateSourceIP = "mesh.source_ip"
	// StateUpstreamPeer is the SPIFFE id that the workload addressed through MainDirect must have.
	StateUpstreamPeer = "mesh.upstream_principal"
)

// Filter state and metadata that Envoy itself reads.
const (
	// OriginalDst is a listener filter, and the metadata of an endpoint that it reads.
	OriginalDst = "envoy.filters.listener.original_dst"
	// OriginalLocal and OriginalRemote are the addresses that the original_dst filter of an internal listener restores.
	OriginalLocal  = OriginalDst + ".local_ip"
	OriginalRemote = OriginalDst + ".remote_ip"
	// UpstreamSANs is the exact list of names of which the peer of the next TLS connection must have one.
	UpstreamSANs = "envoy.network.upstream_subject_alt_names"
)

// Metadata of endpoints, clusters and routes, under MetadataMesh unless said otherwise.
const (
	MetadataMesh = "mesh"
	// KeyPrincipal is the SPIFFE id that the tunnel's other end must have; on endpoints, and on routes to MainDirect.
	KeyPrincipal = "principal"
	// KeyWorkload and KeyNamespace are for logs; KeyPeer packs all that metrics say of an endpoint (see Peer).
	KeyWorkload  = "workload"
	KeyNamespace = "namespace"
	KeyPeer      = "peer"
	// KeyHost, KeyService and KeyNamespace of a cluster are the service that it belongs to. On a route, KeyHost is the
	// service that the client called (RouteRule.Service).
	KeyHost    = "host"
	KeyService = "service"
	// KeyLocal and KeyWaypoint, under OriginalDst: the address that is asked for, and where the tunnel ends if not there.
	KeyLocal    = "local"
	KeyWaypoint = "waypoint"
)

// Headers.
const (
	// HeaderAuthority carries StateAuthority to the choice of the scope. It is overwritten when a request comes in,
	// and every route table removes it before a request leaves (request_headers_to_remove): filters may choose the
	// route anew, so it must live until then.
	HeaderAuthority = "x-ambit-authority"
	// HeaderPrefix starts the names of headers that are ours; a client's are removed.
	HeaderPrefix = "x-ambit-"
	// HeaderEnvoyPrefix starts the names of headers by which Envoy is steered; a client's are removed.
	HeaderEnvoyPrefix = "x-envoy-"
	HeaderBaggage     = "baggage"
	HeaderXFCC        = "x-forwarded-client-cert"
)

// HTTP filters, as routes refer to them (typed_per_filter_config). Several filters may be of one type.
const (
	FilterJWT          = "envoy.filters.http.jwt_authn"
	FilterExtAuthz     = "envoy.filters.http.ext_authz" // followed by "." and the provider's name
	FilterRBACDeny     = "envoy.filters.http.rbac.deny"
	FilterRBACAllow    = "envoy.filters.http.rbac.allow"
	FilterLocalLimit   = "envoy.filters.http.local_ratelimit"
	FilterGlobalLimit  = "envoy.filters.http.ratelimit"
	FilterCORS         = "envoy.filters.http.cors"
	FilterFault        = "envoy.filters.http.fault"
	FilterSession      = "envoy.filters.http.stateful_session"
	FilterDynamicProxy = "envoy.filters.http.dynamic_forward_proxy"
	FilterRouter       = "envoy.filters.http.router"
)
