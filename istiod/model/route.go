package model

import (
	"net/netip"
	"time"
)

// Kinds of layer 7. Both front ends, Gateway API and Istio's, fill the same structs below.
const (
	KindGatewayClass          Kind = "GatewayClass"
	KindGateway               Kind = "Gateway"
	KindHTTPRoute             Kind = "HTTPRoute"
	KindGRPCRoute             Kind = "GRPCRoute"
	KindTCPRoute              Kind = "TCPRoute"
	KindTLSRoute              Kind = "TLSRoute"
	KindReferenceGrant        Kind = "ReferenceGrant"
	KindBackendTLSPolicy      Kind = "BackendTLSPolicy"
	KindVirtualService        Kind = "VirtualService"
	KindDestinationRule       Kind = "DestinationRule"
	KindServiceEntry          Kind = "ServiceEntry"
	KindIstioGateway          Kind = "IstioGateway" // networking.istio.io Gateway; Gateway alone is Gateway API's
	KindRequestAuthentication Kind = "RequestAuthentication"
	KindTelemetry             Kind = "Telemetry"
	KindRateLimit             Kind = "RateLimit"
	KindSecret                Kind = "Secret"
	KindConfigMap             Kind = "ConfigMap"
)

// Meta is what every layer-7 object carries for ordering and status.
type Meta struct {
	Kind Kind
	Key
	Created    time.Time
	Generation int64
	// UID tells an object from an earlier one of the same name; owner references carry it.
	UID string
}

// MatchKind is how a string is compared.
type MatchKind uint8

// Ways to compare. Segments is Gateway API's PathPrefix: whole path elements; Present ignores the value.
const (
	MatchExact MatchKind = iota
	MatchPrefix
	MatchSegments
	MatchRegex
	MatchPresent
	MatchSuffix
)

// StringMatch compares one string. Regular expressions are RE2 and match the whole string.
type StringMatch struct {
	Kind       MatchKind
	Value      string
	IgnoreCase bool
}

// NamedMatch compares a header, query parameter or claim. Not inverts the verdict; an absent header does not match.
type NamedMatch struct {
	Name string
	StringMatch
	Not bool
}

// HTTPMatch is one alternative of a rule; all that is set must hold.
type HTTPMatch struct {
	Path, Method, Scheme, Authority *StringMatch
	Headers, Query                  []NamedMatch
	// Claims are claims of a validated JWT (Istio's header names @request.auth.claims.…); Name is the path, joined by dots,
	// or in brackets, as in [a.b][c], if one of its elements has a dot.
	Claims []NamedMatch
	// GRPC wants content-type application/grpc.
	GRPC bool
	// Port is the port that the client called, 0 for any.
	Port            uint16
	SourceLabels    map[string]string
	SourceNamespace string
	// Gateways limits the match to traffic of these: MeshGateway, or the "namespace/name" of an Istio Gateway. Empty: as the route.
	Gateways []string
}

// MeshGateway is the name that stands for traffic inside the mesh.
const MeshGateway = "mesh"

// HeaderOps edits headers: Set replaces, Add appends, in the order remove, set, add.
type HeaderOps struct {
	Set, Add []Header
	Remove   []string
}

// Header is a name and a value. In HeaderOps the value is a format string of Envoy's, as a VirtualService has it: %NAME% is
// replaced, and a percent sign itself is written twice. Translations see to both; nobody escapes it again.
type Header struct{ Name, Value string }

// IsZero tells that nothing is edited.
func (h HeaderOps) IsZero() bool { return len(h.Set)+len(h.Add)+len(h.Remove) == 0 }

// PathRewrite replaces a request's path: one of the fields is set.
type PathRewrite struct {
	// Full is the whole new path.
	Full *string
	// Prefix replaces what the match's prefix matched.
	Prefix *string
	// Regex with Substitution (\1 for groups) replaces every match.
	Regex, Substitution string
}

// Redirect answers with a location; empty fields keep the request's own.
type Redirect struct {
	Scheme, Host string
	// Port 0 keeps the request's port, or the scheme's default one if the scheme changes (Gateway API); PortFromRequest always keeps it.
	Port            uint16
	PortFromRequest bool
	Path            *PathRewrite
	Code            int
}

// DirectResponse answers without a backend.
type DirectResponse struct {
	Status int
	Body   []byte
}

// Destination is a port of a service, or of one of its subsets.
type Destination struct {
	// Host is a fully qualified service host; Port 0 means the service's only port.
	Host   string
	Port   uint16
	Subset string
	// Namespace is where the Kubernetes Service lives if the reference named one, else empty and the host decides.
	Namespace string
}

// Backend is a share of a rule's traffic.
type Backend struct {
	Destination
	Weight uint32
	// Request and Response edit headers for this share only.
	Request, Response HeaderOps
	// Authority replaces the request's host, for this share only.
	Authority string
	// Grant is what a ReferenceGrant must allow, if the reference crosses namespaces.
	Grant *Reference
	// Invalid says why nothing can be sent here (unknown kind …): its share is answered with 500.
	Invalid *Condition
}

// Reference is from one object to another, as a ReferenceGrant judges it.
type Reference struct {
	FromGroup, FromKind, FromNamespace   string
	ToGroup, ToKind, ToNamespace, ToName string
}

// Condition is a verdict on an object in Kubernetes' sense; Type may be empty where the place implies it.
type Condition struct {
	Type, Reason, Message string
	// OK is status True.
	OK bool
}

// Fraction is a share of requests, of Denominator (100, 10_000 or 1_000_000 …).
type Fraction struct{ Numerator, Denominator uint32 }

// Mirror copies a share of requests to another destination and ignores the answers.
type Mirror struct {
	Backend
	Share Fraction
}

// Fault makes a share of requests slow or fail.
type Fault struct {
	Delay      time.Duration
	DelayShare Fraction
	// AbortHTTP or AbortGRPC is set if requests are aborted.
	AbortHTTP  int
	AbortGRPC  string
	AbortShare Fraction
}

// Retry says when a request is tried again. Attempts 0 turns retries off.
type Retry struct {
	Attempts      int
	PerTry        time.Duration
	On            []string // Envoy's retry_on terms
	Codes         []int
	Backoff       time.Duration
	OtherLocality bool
	// SameHost allows to try the same endpoint again.
	SameHost bool
}

// CORS is a cross-origin policy.
type CORS struct {
	Origins                              []StringMatch
	Methods, AllowHeaders, ExposeHeaders []string
	MaxAge                               *time.Duration
	Credentials                          *bool
	// ForwardUnmatched forwards preflights whose origin does not match.
	ForwardUnmatched bool
}

// HTTPRule is what happens to requests that one of Matches takes (none: every request).
type HTTPRule struct {
	Name              string
	Matches           []HTTPMatch
	Request, Response HeaderOps
	Rewrite           *PathRewrite
	// Authority replaces the request's host.
	Authority string
	Redirect  *Redirect
	Direct    *DirectResponse
	Backends  []Backend
	Mirrors   []Mirror
	Fault     *Fault
	Retry     *Retry
	// Timeout bounds the whole request, BackendTimeout each try; nil is the default, 0 is none.
	Timeout, BackendTimeout *time.Duration
	CORS                    *CORS
	Session                 *SessionPersistence
	// ExternalAuth asks a server (Gateway API's ExternalAuth filter).
	ExternalAuth *ExtAuthz
	// Delegate names another VirtualService whose rules stand here.
	Delegate *Key
	// Invalid makes the rule answer 500, and is the route's condition.
	Invalid *Condition
}

// SessionPersistence keeps a client on an endpoint, by cookie or header.
type SessionPersistence struct {
	Name   string
	Header bool
	// TTL 0 is a session cookie.
	TTL  time.Duration
	Path string
}

// L4Match is one alternative of a TCP or TLS rule.
type L4Match struct {
	// SNI names with * as first label; TLS only.
	SNI             []string
	Destinations    []netip.Prefix
	Port            uint16
	SourceLabels    map[string]string
	SourceNamespace string
	Gateways        []string
}

// L4Rule forwards connections.
type L4Rule struct {
	Name     string
	Matches  []L4Match
	Backends []Backend
	Invalid  *Condition
}

// ParentKind is what a route attaches to.
type ParentKind uint8

// Parents. ParentMesh with Host set is a VirtualService for a host inside the mesh.
const (
	ParentGateway ParentKind = iota
	ParentService
	ParentServiceEntry
	ParentMesh
	ParentIstioGateway
)

// Parent is one attachment of a route. Index is its place in the object, for status.
type Parent struct {
	Kind ParentKind
	Key
	Section string
	Port    uint16
	Host    string
	Index   int
	// Invalid says that the reference itself is of no use.
	Invalid *Condition
}

// Route is an HTTPRoute, GRPCRoute, TCPRoute, TLSRoute or VirtualService.
type Route struct {
	Meta
	Parents   []Parent
	Hostnames []string
	HTTP      []HTTPRule
	TCP, TLS  []L4Rule
	// Ordered keeps the rules in their own order (VirtualService); else Gateway API's precedence sorts matches.
	Ordered bool
	// ExportTo limits who sees it: "*", "." or namespaces; empty is everybody.
	ExportTo []string
	// DelegateOnly is a VirtualService without hosts.
	DelegateOnly bool
}

// Grant is a ReferenceGrant: any From may refer to any To in its namespace. ToName empty allows every name.
type Grant struct {
	Meta
	From []GrantFrom
	To   []GrantTo
}

// GrantFrom is who may refer.
type GrantFrom struct{ Group, Kind, Namespace string }

// GrantTo is to what.
type GrantTo struct{ Group, Kind, Name string }
