package config

import (
	"maps"
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	otlplogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	withoutqueryv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/req_without_query/v3"
	otlpv1 "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

const (
	stdout = "/dev/stdout"
	// logName is what a collector finds records under if the provider gives no name; Istio's.
	logName = "otel_envoy_accesslog"
	// badRequest is the least status that the log of tunnels' requests shows: what went well, the requests within say.
	badRequest = 400
)

// identities are how a log names both ends.
type identities struct{ source, destination string }

// identities of a waypoint's traffic come with the tunnel, those of a gateway's clients with their certificate.
func (b *builder) identities() identities {
	id := identities{source: filterState(names.StatePeer), destination: hostMetadata(names.KeyPrincipal)}
	if !b.proxy.Waypoint {
		id.source = "%DOWNSTREAM_PEER_URI_SAN%"
	}
	return id
}

func filterState(key string) string { return "%FILTER_STATE(" + key + ":PLAIN)%" }
func hostMetadata(key string) string {
	return "%UPSTREAM_METADATA(" + names.MetadataMesh + ":" + key + ")%"
}
func clusterMetadata(key string) string {
	return "%CLUSTER_METADATA(" + names.MetadataMesh + ":" + key + ")%"
}
func routeMetadata(key string) string {
	return "%METADATA(ROUTE:" + names.MetadataMesh + ":" + key + ")%"
}

// logField is one field of the default formats, in the order of the text.
type logField struct {
	name, value string
	quoted      bool
}

// defaultFields are those of Istio's default log, in its order, then who spoke to whom.
func (b *builder) defaultFields() []logField {
	id := b.identities()
	return []logField{
		{"response_code", "%RESPONSE_CODE%", false},
		{"response_flags", "%RESPONSE_FLAGS%", false},
		{"response_code_details", "%RESPONSE_CODE_DETAILS%", false},
		{"connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%", false},
		{"upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%", true},
		{"bytes_received", "%BYTES_RECEIVED%", false},
		{"bytes_sent", "%BYTES_SENT%", false},
		{"duration", "%DURATION%", false},
		{"upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%", false},
		{"x_forwarded_for", "%REQ(X-FORWARDED-FOR)%", true},
		{"user_agent", "%REQ(USER-AGENT)%", true},
		{"request_id", "%REQ(X-REQUEST-ID)%", true},
		{"authority", "%REQ(:AUTHORITY)%", true},
		{"upstream_host", "%UPSTREAM_HOST%", true},
		{"upstream_cluster", "%UPSTREAM_CLUSTER_RAW%", false},
		{"upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%", false},
		{"downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%", false},
		{"downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%", false},
		{"requested_server_name", "%REQUESTED_SERVER_NAME%", false},
		{"route_name", "%ROUTE_NAME%", false},
		{"source_principal", id.source, true},
		{"destination_principal", id.destination, true},
	}
}

const (
	methodFormat = "%REQ(:METHOD)%"
	pathFormat   = "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"
)

func (b *builder) defaultText() string {
	var s strings.Builder
	s.WriteString(`[%START_TIME%] "` + methodFormat + " " + pathFormat + ` %PROTOCOL%"`)
	for _, f := range b.defaultFields() {
		q := ""
		if f.quoted {
			q = `"`
		}
		s.WriteString(" " + q + f.value + q)
	}
	s.WriteString("\n")
	return s.String()
}

func (b *builder) defaultJSON() map[string]string {
	out := map[string]string{"start_time": "%START_TIME%", "method": methodFormat, "path": pathFormat, "protocol": "%PROTOCOL%"}
	for _, f := range b.defaultFields() {
		out[f.name] = f.value
	}
	return out
}

// accessLogs are the sinks that the mesh configuration and Telemetry resources ask for.
func (b *builder) accessLogs() []*accesslogv3.AccessLog {
	var out []*accesslogv3.AccessLog
	for i := range b.proxy.HTTP.Logs {
		l := &b.proxy.HTTP.Logs[i]
		log := b.fileLog(l)
		if l.OTLP != nil {
			log = b.otlpLog(l)
		}
		if l.Filter != "" {
			log.Filter = &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
				ExtensionFilter: &accesslogv3.ExtensionFilter{
					Name:       "envoy.access_loggers.extension_filters.cel",
					ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: b.pack(&celv3.ExpressionFilter{Expression: l.Filter})},
				},
			}}
		}
		out = append(out, log)
	}
	return out
}

// failureLogs are the same sinks for the tunnels' own requests, of those that failed.
func (b *builder) failureLogs() []*accesslogv3.AccessLog {
	return onlyIf(&accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
		StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
			Op:    accesslogv3.ComparisonFilter_GE,
			Value: &corev3.RuntimeUInt32{DefaultValue: badRequest, RuntimeKey: "ambit.tunnel_log_status"},
		}},
	}}, b.accessLogs())
}

// connectionLogs are the same sinks for connections: a line at the end of each, and none at its begin, which is
// written for the statistics only.
func (b *builder) connectionLogs() []*accesslogv3.AccessLog {
	begun := logTypes(datav3.AccessLogType_TcpUpstreamConnected)
	begun.GetLogTypeFilter().Exclude = true
	return onlyIf(begun, b.accessLogs())
}

// onlyIf puts a filter before the logs' own.
func onlyIf(first *accesslogv3.AccessLogFilter, logs []*accesslogv3.AccessLog) []*accesslogv3.AccessLog {
	for _, l := range logs {
		if l.Filter == nil {
			l.Filter = first
			continue
		}
		l.Filter = &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{
			AndFilter: &accesslogv3.AndFilter{Filters: []*accesslogv3.AccessLogFilter{first, l.Filter}},
		}}
	}
	return logs
}

func (b *builder) fileLog(l *model.AccessLog) *accesslogv3.AccessLog {
	format := &corev3.SubstitutionFormatString{OmitEmptyValues: l.OmitEmpty}
	switch {
	case l.JSON != nil:
		labels := l.JSON
		if len(labels) == 0 {
			labels = b.defaultJSON()
		}
		format.Format = &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: textStruct(labels)}
		format.JsonFormatOptions = &corev3.JsonFormatOptions{SortProperties: true}
	case l.Text != "":
		format.Format = textFormat(l.Text)
	default:
		format.Format = textFormat(b.defaultText())
	}
	if usesWithoutQuery(l.Text, l.JSON) {
		format.Formatters = b.formatters()
	}
	path := l.Path
	if path == "" {
		path = stdout
	}
	return &accesslogv3.AccessLog{Name: "envoy.access_loggers.file", ConfigType: &accesslogv3.AccessLog_TypedConfig{
		TypedConfig: b.pack(&filev3.FileAccessLog{
			Path: path, AccessLogFormat: &filev3.FileAccessLog_LogFormat{LogFormat: format},
		}),
	}}
}

// usesWithoutQuery tells whether a format needs the one of Istio's formatters that Envoy has not built in.
func usesWithoutQuery(text string, labels map[string]string) bool {
	const command = "%REQ_WITHOUT_QUERY("
	for _, v := range labels {
		if strings.Contains(v, command) {
			return true
		}
	}
	return strings.Contains(text, command)
}

func (b *builder) formatters() []*corev3.TypedExtensionConfig {
	return []*corev3.TypedExtensionConfig{b.extension("envoy.formatter.req_without_query", &withoutqueryv3.ReqWithoutQuery{})}
}

// textFormat ends the line: Envoy does not.
func textFormat(s string) *corev3.SubstitutionFormatString_TextFormatSource {
	if !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	return &corev3.SubstitutionFormatString_TextFormatSource{
		TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}},
	}
}

func textStruct(labels map[string]string) *structpb.Struct {
	s := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for k, v := range labels {
		s.Fields[k] = structpb.NewStringValue(v)
	}
	return s
}

func (b *builder) otlpLog(l *model.AccessLog) *accesslogv3.AccessLog {
	name := l.OTLP.LogName
	if name == "" {
		name = logName
	}
	text, attributes := l.OTLP.Text, l.OTLP.JSON
	if text == "" {
		text = b.defaultText()
	}
	if attributes == nil {
		id := b.identities()
		attributes = map[string]string{"source_principal": id.source, "destination_principal": id.destination}
	}
	cfg := &otlplogv3.OpenTelemetryAccessLogConfig{
		LogName:    name,
		Body:       otlpText(strings.TrimSuffix(text, "\n")),
		Attributes: otlpList(attributes),
	}
	if usesWithoutQuery(text, attributes) {
		cfg.Formatters = b.formatters()
	}
	if l.OTLP.HTTPPath != "" {
		cfg.HttpService = collectorHTTP(l.OTLP, l.Cluster)
	} else {
		cfg.GrpcService = collectorGRPC(l.OTLP, l.Cluster)
	}
	return &accesslogv3.AccessLog{Name: "envoy.access_loggers.open_telemetry", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.pack(cfg)}}
}

func otlpText(s string) *otlpv1.AnyValue {
	return &otlpv1.AnyValue{Value: &otlpv1.AnyValue_StringValue{StringValue: s}}
}

func otlpList(values map[string]string) *otlpv1.KeyValueList {
	list := &otlpv1.KeyValueList{}
	for _, k := range slices.Sorted(maps.Keys(values)) {
		list.Values = append(list.Values, &otlpv1.KeyValue{Key: k, Value: otlpText(values[k])})
	}
	return list
}
