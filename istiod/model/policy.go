package model

import (
	"net/netip"
	"time"
)

// AuthzAction is what an AuthorizationPolicy does.
type AuthzAction uint8

// Actions. Custom asks an external server.
const (
	AuthzAllow AuthzAction = iota
	AuthzDeny
	AuthzAudit
	AuthzCustom
)

// Authorization is an AuthorizationPolicy with all its layer-7 fields, as a waypoint or gateway enforces it.
// Patterns are Istio's: exact, "prefix*", "*suffix", "*" for present.
type Authorization struct {
	Meta
	// Targets is empty for a policy by Selector; both empty is the whole namespace (the mesh, in the root namespace).
	Targets  []PolicyTarget
	Selector map[string]string
	Action   AuthzAction
	Provider string
	DryRun   bool
	// Rules empty with ALLOW denies everything; a rule without conditions matches everything.
	Rules []AuthzRule
	// Warnings say what in the object has no effect, for its status.
	Warnings []string
}

// AuthzRule matches if one of From, one of To and all of When do; an empty list is no condition.
type AuthzRule struct {
	From []AuthzSource
	To   []AuthzOperation
	When []AuthzCondition
}

// Patterns are values of which one must match, and values of which none may.
type Patterns struct{ In, Not []string }

// Blocks are addresses likewise.
type Blocks struct{ In, Not []netip.Prefix }

// AuthzSource is who calls; all that is set must hold. ServiceAccounts are "namespace/name".
type AuthzSource struct {
	Principals, RequestPrincipals, Namespaces, ServiceAccounts Patterns
	IPs, RemoteIPs                                             Blocks
}

// AuthzOperation is what is called. A path may also be one of Istio's templates: {*} stands for one segment, {**} at the
// end for any number of them; Ports are decimal.
type AuthzOperation struct{ Hosts, Ports, Methods, Paths Patterns }

// AuthzCondition is a named attribute: request.headers[x], request.auth.claims[a][b], request.auth.principal,
// request.auth.audiences, request.auth.presenter, source.ip, remote.ip, source.namespace, source.principal, destination.ip,
// destination.port, connection.sni or experimental.envoy.filters.<filter>[<key>]. Addresses are CIDRs, ports decimal.
type AuthzCondition struct {
	Key string
	Patterns
}

// JWTPolicy is a RequestAuthentication.
type JWTPolicy struct {
	Meta
	Targets  []PolicyTarget
	Selector map[string]string
	Rules    []JWTRule
	Warnings []string
}

// UnusableJWKS is a key set that no token satisfies: it stands where keys are wanted and none are known, so that
// tokens are refused and not overlooked. Envoy refuses a configuration with an empty set, so it holds one key, which
// nobody has the private half of: its point on the curve comes out of a hash (package jwks shows how in a test).
const UnusableJWKS = `{"keys":[{"kty":"EC","kid":"nobody","alg":"ES256","crv":"P-256","x":"TCkL8wQjBqt-FFPFkuk3QCcrwEkmbJ5CcKOxAkMgYQs","y":"8844ILdu4iKCpfVjYoSWok0vs2lMfhQOcbY8oDa6yzA"}]}`

// JWTRule is one issuer.
type JWTRule struct {
	Issuer    string
	Audiences []string
	// JWKS is the key set if the user gave it, else istiod fetches it from JWKSURI (or by OpenID discovery from the issuer).
	JWKSURI, JWKS  string
	FromHeaders    []JWTHeader
	FromParams     []string
	FromCookies    []string
	OutputHeader   string
	Forward        bool
	ClaimToHeaders []ClaimHeader
	Timeout        time.Duration
	SpaceDelimited []string
}

// JWTHeader is where a token is; Prefix is cut off.
type JWTHeader struct{ Name, Prefix string }

// ClaimHeader copies a claim into a header.
type ClaimHeader struct{ Header, Claim string }

// Telemetry is what is counted, logged and traced; nil or empty parts are inherited from the namespace, then the mesh.
type Telemetry struct {
	Meta
	Targets  []PolicyTarget
	Selector map[string]string
	Metrics  []TelemetryMetric
	Logs     []TelemetryLog
	Tracing  []TelemetryTracing
	Warnings []string
}

// TelemetryMetric changes the tags of a metric, or of all ("") .
type TelemetryMetric struct {
	Providers []string
	// Name as in Prometheus without the prefix, such as "requests_total"; empty is every one.
	Name     string
	Client   bool
	Server   bool
	Disabled bool
	// Enabled says that false was written for disabled: it turns on what a parent turned off.
	Enabled bool
	// Tags maps a label to the CEL expression or literal that replaces it; empty removes the label.
	Tags map[string]string
}

// TelemetryLog turns access logs on or off. Filter is a CEL expression.
type TelemetryLog struct {
	Providers      []string
	Client, Server bool
	Disabled       bool
	Filter         string
}

// TelemetryTracing sets spans.
type TelemetryTracing struct {
	Providers      []string
	Client, Server bool
	// Disabled and Enabled are span reporting turned off or on; neither inherits.
	Disabled, Enabled bool
	// Percent nil inherits.
	Percent *float64
	Tags    []TraceTag
	// MeshTags false leaves out Istio's own tags, Propagation false ends the trace at the proxy; nil inherits.
	MeshTags, Propagation *bool
}

// TraceTag is a span tag from one source; Format is a format string as in access logs.
type TraceTag struct{ Name, Literal, Header, Environment, Default, Format string }

// ExtAuthz is an external authorization server.
type ExtAuthz struct {
	Name    string
	GRPC    bool
	Backend Destination
	// Grant is needed if a route refers across namespaces.
	Grant    *Reference
	Timeout  time.Duration
	FailOpen bool
	// StatusOnError answers when the server cannot be asked; 0 is 403.
	StatusOnError int
	// HTTP only: PathPrefix before the request's path, headers that are sent, and that are taken over.
	PathPrefix                                                 string
	IncludeHeaders                                             []string
	ToUpstreamOnAllow, ToDownstreamOnDeny, ToDownstreamOnAllow []string
	AddHeaders                                                 []Header
	// Body is how many bytes of the body are sent; 0 is none.
	Body        uint32
	BodyPartial bool
	BodyBytes   bool
	// ClearRouteCache lets headers that the server adds choose the route.
	ClearRouteCache bool
}

// Provider is an extension provider of the mesh configuration; one of the fields is set.
type Provider struct {
	Name     string
	ExtAuthz *ExtAuthz
	// OTLP is a collector for traces or access logs.
	OTLP *OTLP
	// Log writes access logs to a file or standard output.
	Log *LogFile
	// Prometheus is the built-in metrics.
	Prometheus bool
}

// OTLP is an OpenTelemetry collector.
type OTLP struct {
	Backend Destination
	// HTTPPath is set for OTLP over HTTP, else it is gRPC.
	HTTPPath     string
	Timeout      time.Duration
	Headers      []Header
	MaxTagLength uint32
	// Logs says that it takes access logs, else traces. Text is then the body, and JSON the attributes, of a record.
	Logs    bool
	LogName string
	Text    string
	JSON    map[string]string
}

// LogFile is a format of access logs; Text or JSON is set, or neither for the default. JSON that is empty but not nil is
// JSON with the default labels.
type LogFile struct {
	Path string
	Text string
	JSON map[string]string
	// OmitEmpty leaves out what has no value, instead of "-".
	OmitEmpty bool
}

// MeshConfig is the part of Istio's mesh configuration that layer 7 reads.
type MeshConfig struct {
	Providers                                   map[string]*Provider
	DefaultLogs, DefaultTracing, DefaultMetrics []string
	// AccessLog is the path of a log for everything, "" is off; the format is AccessLogText or AccessLogJSON.
	AccessLog, AccessLogText string
	AccessLogJSON            map[string]string
	// Sampling is the default percentage of traced requests.
	Sampling float64
	// RegistryOnly refuses hosts that nothing declares.
	RegistryOnly bool
	// RootNamespace overrides the installation's.
	TrustDomainAliases []string
	// Retries by default; nil is Istio's: twice on connect-failure, refused-stream, unavailable, cancelled, 503.
	Retry          *Retry
	LocalityLB     *LocalityLB
	ConnectTimeout time.Duration
	// Warnings say which fields were not understood or have no effect.
	Warnings []string
}

// RateLimit is Ambit's own kind: how many requests are let through.
type RateLimit struct {
	Meta
	Targets []PolicyTarget
	Local   []LocalLimit
	Global  *GlobalLimit
}

// LocalLimit is counted by each replica of the proxy alone.
type LocalLimit struct {
	Name string
	// Matches selects requests; empty is all.
	Matches []LimitMatch
	// PerSource counts each calling identity for itself; PerHeader each value of a header.
	PerSource bool
	PerHeader string
	// Requests refill the bucket over Per; Burst, never 0, is its size: how many may come at once.
	Requests uint32
	Per      time.Duration
	Burst    uint32
	Status   int
	DryRun   bool
}

// LimitMatch selects requests; all that is set must hold.
type LimitMatch struct {
	Path, Method *StringMatch
	Headers      []NamedMatch
	// Sources are Istio principals, "trust.domain/ns/x/sa/y", with Istio's patterns; one must match.
	Sources []string
}

// GlobalLimit asks a server of Envoy's ratelimit protocol.
type GlobalLimit struct {
	Backend  Destination
	Domain   string
	Timeout  time.Duration
	FailOpen bool
	// Descriptors are alternatives; each is a list of entries.
	Descriptors [][]LimitEntry
}

// LimitEntry is one entry of a descriptor: exactly one source of its value is set.
type LimitEntry struct {
	Key, Value, Header string
	Path, Method       bool
	SourcePrincipal    bool
	SourceAddress      bool
}
