// Package ports holds every number and name by which the parts of the mesh, and
// the users' tools around them, find each other: ports, packet marks, labels,
// annotations, paths. All parts import it; it imports nothing. A value here is a
// contract: most are Istio's, kept so that a part, a dashboard or a manifest can
// be exchanged for Istio's.
package ports

// Ports of the node proxy (ztunnel).
const (
	// ZtunnelOutbound receives connections that a pod's app opens. Bound in the pod's netns.
	ZtunnelOutbound = 15001
	// ZtunnelInboundPlaintext receives connections from outside the mesh. Bound in the pod's netns.
	ZtunnelInboundPlaintext = 15006
	// HBONE is the tunnel: HTTP/2 CONNECT over mutual TLS. Bound in the pod's netns; waypoints serve it too.
	HBONE = 15008
	// ZtunnelAdmin serves config dump, log level and pprof. Loopback of the proxy's own netns only.
	ZtunnelAdmin = 15000
	// Metrics serves Prometheus text. Reachable from the pod network.
	Metrics = 15020
	// Readiness serves /healthz/ready for the kubelet.
	Readiness = 15021
	// ZtunnelDNS answers captured DNS queries. Bound in the pod's netns.
	ZtunnelDNS = 15053
)

// Ports of the control plane (istiod).
const (
	// XDSPlaintext serves xDS and CA without TLS, only when a flag asks for it.
	XDSPlaintext = 15010
	// XDSTLS serves xDS and CA over TLS.
	XDSTLS = 15012
	// IstiodMonitoring serves metrics.
	IstiodMonitoring = 15014
	// IstiodWebhook serves admission webhooks; Service port 443 maps to it.
	IstiodWebhook = 15017
	// IstiodDebug serves readiness and debug pages.
	IstiodDebug = 8080
)

// Ports of the node agent.
const (
	// AgentReadiness serves /healthz and /readyz on the node's address, as Istio's CNI agent does.
	AgentReadiness = 8000
	// AgentMetrics serves Prometheus text.
	AgentMetrics = 15014
)

// Packet marks (SO_MARK). Only the low 12 bits are ours, as with Istio, so that other users of marks keep theirs.
const (
	// MarkMask selects the bits that are ours.
	MarkMask = 0xfff
	// MarkProxy is on every socket that ztunnel opens in a pod's netns: never captured again.
	MarkProxy = 0x539
	// MarkApp is on ztunnel's connections to the app when capture is by sk_lookup: routed to loopback, so that
	// the app's answers to the spoofed client address come back to the proxy.
	MarkApp = 0x53a
	// MarkCapture is on the app's own outbound sockets: routed to loopback, steered to the outbound listener.
	// The nftables fallback uses the same value as connection mark.
	MarkCapture = 0x111
	// CaptureTable is the routing table in a pod's netns that delivers marked packets locally.
	CaptureTable = 100
)

// Addresses that kubelet probes come from, so that they can be told from other host traffic.
const (
	ProbeSourceV4 = "169.254.7.127"
	ProbeSourceV6 = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
)

// Labels and annotations.
const (
	// LabelDataplaneMode on a namespace or pod: "ambient" enrols, "none" opts out.
	LabelDataplaneMode   = "istio.io/dataplane-mode"
	DataplaneModeAmbient = "ambient"
	DataplaneModeNone    = "none"
	// AnnotationRedirection on a pod says that capture is in place ("enabled") or waits ("pending").
	AnnotationRedirection        = "ambient.istio.io/redirection"
	AnnotationRedirectionEnabled = "enabled"
	AnnotationRedirectionPending = "pending"
	// LabelUseWaypoint names the waypoint of a pod, service or namespace.
	LabelUseWaypoint          = "istio.io/use-waypoint"
	LabelUseWaypointNamespace = "istio.io/use-waypoint-namespace"
	// AnnotationWaypointBypass on a service or namespace says who may reach pods past the waypoint of their service.
	AnnotationWaypointBypass = "ambit.dev/waypoint-bypass"
	// LabelCanonicalName and LabelCanonicalRevision override the app and version in telemetry.
	LabelCanonicalName     = "service.istio.io/canonical-name"
	LabelCanonicalRevision = "service.istio.io/canonical-revision"
)

// Names in Kubernetes.
const (
	// SystemNamespace is where the mesh runs unless the user says otherwise; also the default root namespace of policy.
	SystemNamespace = "istio-system"
	// DefaultTrustDomain is used where the API leaves the trust domain empty.
	DefaultTrustDomain = "cluster.local"
	// DefaultClusterID is the cluster's name unless the user says otherwise.
	DefaultClusterID = "Kubernetes"
	// RootConfigMap in every namespace holds the mesh's root certificates under RootConfigMapKey.
	RootConfigMap    = "istio-ca-root-cert"
	RootConfigMapKey = "root-cert.pem"
	// CASecret is where a plugged-in or generated signing key lives.
	CASecret          = "cacerts"
	GeneratedCASecret = "istio-ca-secret"
	// TokenAudience is the audience of the tokens that proxies present.
	TokenAudience = "istio-ca"
	// IstiodServerName is the name that istiod's certificate is checked against.
	IstiodServerName = "istiod.istio-system.svc"
)

// WaypointRequiredPrefix begins the names of the policies that refuse what passes by a waypoint. They are for
// connections as these open: those that were open before stay. The underscore cannot occur in a Kubernetes name.
const WaypointRequiredPrefix = "ambit_waypoint_required_"

// Paths on a node or in a container.
const (
	// ZDSSocket is the agent's SOCK_SEQPACKET socket that ztunnel connects to.
	ZDSSocket = "/var/run/ztunnel/ztunnel.sock"
	// PluginSocket is the agent's HTTP socket that the CNI plugin calls.
	PluginSocket = "/var/run/istio-cni/pluginevent.sock"
	// TokenFile is the projected service account token.
	TokenFile = "/var/run/secrets/tokens/istio-token"
	// RootCertFile is the mounted RootConfigMap.
	RootCertFile = "/var/run/secrets/istio/root-cert.pem"
	// CNIBinDir and CNIConfDir are the node's CNI directories.
	CNIBinDir  = "/opt/cni/bin"
	CNIConfDir = "/etc/cni/net.d"
	// BPFDir holds the agent's pinned programs, links and maps.
	BPFDir = "/sys/fs/bpf/ambit"
)

// xDS resource types.
const (
	TypeAddress       = "type.googleapis.com/istio.workload.Address"
	TypeWorkload      = "type.googleapis.com/istio.workload.Workload"
	TypeAuthorization = "type.googleapis.com/istio.security.Authorization"
)
