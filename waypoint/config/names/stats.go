package names

import "strings"

// Statistics that proxies keep for Istio's metrics. Envoy's Prometheus page shows them as
// "envoy_<StatsScope>_<name>"; the agent renames them and spreads packed tags into Istio's labels:
//
//	StatRequests          istio_requests_total
//	StatDuration          istio_request_duration_milliseconds
//	StatRequestBytes      istio_request_bytes
//	StatResponseBytes     istio_response_bytes
//	StatTCPOpened, …      istio_tcp_connections_opened_total, …
//
// Values that Envoy does not know are Unknown or empty.
const (
	// StatsScope is the prefix of all of them.
	StatsScope = "mesh"

	StatRequests      = "requests_total"
	StatDuration      = "request_duration_milliseconds" // a histogram
	StatRequestBytes  = "request_bytes"                 // a histogram
	StatResponseBytes = "response_bytes"                // a histogram
	StatTCPOpened     = "tcp_connections_opened_total"
	StatTCPClosed     = "tcp_connections_closed_total"
	StatTCPSent       = "tcp_sent_bytes_total"
	StatTCPReceived   = "tcp_received_bytes_total"
)

// Tags of these statistics. Short where the agent unpacks them, Istio's own name where they pass through.
// A tag that is in none of these lists was asked for by a Telemetry resource and passes through too.
const (
	// TagReporter is ReporterWaypoint or ReporterSource.
	TagReporter = "reporter"
	// TagSource is baggage: source_workload, source_workload_namespace, source_canonical_service, … The source of a
	// gateway's requests is the gateway itself (ReporterSource) and left out here.
	TagSource          = "source_baggage"
	TagSourcePrincipal = "source_principal"
	// TagDestination is a packed Peer.
	TagDestination          = "destination_peer"
	TagDestinationPrincipal = "destination_principal"
	// TagHost, TagService and TagServiceNamespace become destination_service, …_name and …_namespace: the service that
	// was chosen. TagRequested is the one that the client called, if none was chosen.
	TagHost             = "destination_service"
	TagService          = "destination_service_name"
	TagServiceNamespace = "destination_service_namespace"
	TagRequested        = "requested_service"
	TagCode             = "response_code"
	// TagGRPC is a number for gRPC only, else empty: so it tells the request_protocol.
	TagGRPC  = "grpc_response_status"
	TagFlags = "response_flags"
	// TagRemoved lists labels, joined by commas, that a Telemetry resource removes after unpacking.
	TagRemoved = "removed_labels"
)

// Reporters.
const (
	ReporterWaypoint = "waypoint"
	ReporterSource   = "source"
)

// Unknown is what Envoy writes for most values that it does not know.
const Unknown = "-"

// Peer is what metrics say of an endpoint's workload.
type Peer struct {
	Workload, Namespace, CanonicalName, CanonicalRevision, App, Version, Cluster string
}

// peerSeparator occurs in none of the values: they are names or label values of Kubernetes.
const peerSeparator = ";"

// peerFields is the number of fields of a packed Peer.
const peerFields = 7

// Pack joins the fields: one tag is formatted faster than seven. Separators within values are replaced.
func (p Peer) Pack() string {
	fields := [peerFields]string{p.Workload, p.Namespace, p.CanonicalName, p.CanonicalRevision, p.App, p.Version, p.Cluster}
	for i, f := range fields {
		fields[i] = strings.ReplaceAll(f, peerSeparator, "_")
	}
	return strings.Join(fields[:], peerSeparator)
}

// UnpackPeer reads what Pack wrote. Of anything else it reports false.
func UnpackPeer(s string) (Peer, bool) {
	f := strings.Split(s, peerSeparator)
	if len(f) != peerFields {
		return Peer{}, false
	}
	return Peer{f[0], f[1], f[2], f[3], f[4], f[5], f[6]}, true
}
