package telemetry

// Metric names, Istio's where Istio has one.
const (
	MetricConnectionsOpened = "istio_tcp_connections_opened_total"
	MetricConnectionsClosed = "istio_tcp_connections_closed_total"
	MetricConnectionsFailed = "istio_tcp_connections_failed_total"
	MetricSentBytes         = "istio_tcp_sent_bytes_total"
	MetricReceivedBytes     = "istio_tcp_received_bytes_total"
	// MetricSeriesDropped counts connections recorded under unknown labels because MaxTCPSeries was reached.
	MetricSeriesDropped = "ambit_tcp_series_overflow_total"
)

// Labels of the TCP metrics, Istio's layer 4 set.
const (
	LabelReporter = "reporter"

	LabelSourceWorkload          = "source_workload"
	LabelSourceCanonicalService  = "source_canonical_service"
	LabelSourceCanonicalRevision = "source_canonical_revision"
	LabelSourceNamespace         = "source_workload_namespace"
	LabelSourcePrincipal         = "source_principal"
	LabelSourceApp               = "source_app"
	LabelSourceVersion           = "source_version"
	LabelSourceCluster           = "source_cluster"

	LabelDestinationService          = "destination_service"
	LabelDestinationServiceNamespace = "destination_service_namespace"
	LabelDestinationServiceName      = "destination_service_name"

	LabelDestinationWorkload          = "destination_workload"
	LabelDestinationCanonicalService  = "destination_canonical_service"
	LabelDestinationCanonicalRevision = "destination_canonical_revision"
	LabelDestinationNamespace         = "destination_workload_namespace"
	LabelDestinationPrincipal         = "destination_principal"
	LabelDestinationApp               = "destination_app"
	LabelDestinationVersion           = "destination_version"
	LabelDestinationCluster           = "destination_cluster"

	LabelRequestProtocol = "request_protocol"
	LabelResponseFlags   = "response_flags"
	LabelSecurityPolicy  = "connection_security_policy"
)

// Values of LabelReporter.
const (
	ReporterSource      = "source"
	ReporterDestination = "destination"
)

// Values of LabelSecurityPolicy.
const (
	SecurityMutualTLS = "mutual_tls"
	SecurityUnknown   = "unknown"
)

// Values of LabelResponseFlags: why a connection failed, "-" when it did not.
const (
	FlagNone          = "-"
	FlagDenied        = "DENY"
	FlagConnect       = "CONNECT"
	FlagTLS           = "TLS_FAILURE"
	FlagHTTP2         = "H2_HANDSHAKE_FAILURE"
	FlagNetworkPolicy = "NETWORK_POLICY"
	FlagIdentity      = "IDENTITY_ERROR"
	// FlagNoRoute and those below are Ambit's own: Istio logs these without a metric.
	FlagNoRoute  = "NO_ROUTE"
	FlagSelfCall = "SELF_CALL"
	FlagLimit    = "LIMIT"
	FlagNoSource = "UNKNOWN_SOURCE"
	FlagDrain    = "DRAIN"
)

// Unknown stands for an empty label value.
const Unknown = "unknown"

// ProtocolTCP is the only value of LabelRequestProtocol at layer 4.
const ProtocolTCP = "tcp"

// Fields of an access log line, Istio's names.
const (
	AccessSrcAddr      = "src.addr"
	AccessSrcWorkload  = "src.workload"
	AccessSrcNamespace = "src.namespace"
	AccessSrcIdentity  = "src.identity"
	AccessDstAddr      = "dst.addr"
	AccessDstHBONEAddr = "dst.hbone_addr"
	AccessDstService   = "dst.service"
	AccessDstWorkload  = "dst.workload"
	AccessDstNamespace = "dst.namespace"
	AccessDstIdentity  = "dst.identity"
	AccessDirection    = "direction"
	AccessBytesSent    = "bytes_sent"
	AccessBytesRecv    = "bytes_recv"
	AccessDuration     = "duration"
	AccessPolicy       = "policy"
	AccessReason       = "reason"
	AccessFlags        = "response_flags"
	AccessTraceID      = "trace_id"
)

// ScopeAccess is the log scope of access log lines.
const ScopeAccess = "access"

// Metrics of the node proxy as a process.
const (
	MetricPods               = "ambit_ztunnel_pods"
	MetricCertificates       = "ambit_certificate_requests_total"
	MetricCertificateSeconds = "ambit_certificate_request_seconds"
	MetricXDSConnected       = "ambit_xds_connected"
	MetricXDSResources       = "ambit_xds_resources_total"
	MetricXDSRejected        = "ambit_xds_rejected_total"
)

// Labels of those, and values of LabelResult.
const (
	LabelResult = "result"
	LabelType   = "type"
	ResultOK    = "ok"
	ResultError = "error"
)
