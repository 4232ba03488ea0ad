package config

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	statsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stats/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// tag is a label of a statistic, as a format string.
type tag struct{ name, format string }

// httpTags and tcpTags are what Istio's standard metrics say; the agent spreads the packed ones.
func (b *builder) httpTags() []tag {
	return append(b.tcpTags(),
		tag{names.TagCode, "%RESPONSE_CODE%"},
		tag{names.TagGRPC, "%GRPC_STATUS_NUMBER%"},
		tag{names.TagRequested, routeMetadata(names.KeyHost)},
	)
}

func (b *builder) tcpTags() []tag {
	tags := []tag{
		{names.TagReporter, names.ReporterSource},
		{names.TagSourcePrincipal, spiffeID(b.proxy)},
	}
	if b.proxy.Waypoint {
		tags = []tag{
			{names.TagReporter, names.ReporterWaypoint},
			{names.TagSourcePrincipal, filterState(names.StatePeer)},
			{names.TagSource, filterState(names.StateBaggage)},
		}
	}
	return append(tags,
		tag{names.TagDestination, hostMetadata(names.KeyPeer)},
		tag{names.TagDestinationPrincipal, hostMetadata(names.KeyPrincipal)},
		tag{names.TagHost, clusterMetadata(names.KeyHost)},
		tag{names.TagService, clusterMetadata(names.KeyService)},
		tag{names.TagServiceNamespace, clusterMetadata(names.KeyNamespace)},
		tag{names.TagFlags, "%RESPONSE_FLAGS%"},
	)
}

// statsScope is a scope for each logger. One that all share (sharing_name) would be the better bound, but makes Envoy
// 1.40 fail when it ends.
func statsScope() *typev3.Scope {
	return &typev3.Scope{Prefix: names.StatsScope, MaxCounters: u32(maxCounters), MaxHistograms: u32(maxHistograms)}
}

// httpMetrics count requests. They are access loggers: those run when the request is over and all is known.
func (b *builder) httpMetrics() []*accesslogv3.AccessLog {
	cfg := &statsv3.Config{StatsScope: statsScope()}
	tags := b.httpTags()
	if t, on := b.statTags(names.StatRequests, tags); on {
		cfg.Counters = append(cfg.Counters, counter(names.StatRequests, t, ""))
	}
	for _, h := range []struct {
		name, format string
		unit         statsv3.Config_Histogram_Unit
	}{
		{names.StatDuration, "%DURATION%", statsv3.Config_Histogram_Milliseconds},
		{names.StatRequestBytes, "%DOWNSTREAM_WIRE_BYTES_RECEIVED%", statsv3.Config_Histogram_Bytes},
		{names.StatResponseBytes, "%DOWNSTREAM_WIRE_BYTES_SENT%", statsv3.Config_Histogram_Bytes},
	} {
		if t, on := b.statTags(h.name, tags); on {
			cfg.Histograms = append(cfg.Histograms, &statsv3.Config_Histogram{
				Stat: &statsv3.Config_Stat{Name: h.name, Tags: t}, Unit: h.unit, ValueFormat: h.format,
			})
		}
	}
	if len(cfg.Counters)+len(cfg.Histograms) == 0 {
		return nil
	}
	return []*accesslogv3.AccessLog{b.statsLogger(cfg, nil)}
}

// tcpMetrics count connections: when they open, and when they are over.
func (b *builder) tcpMetrics() []*accesslogv3.AccessLog {
	var out []*accesslogv3.AccessLog
	for _, at := range []struct {
		when  datav3.AccessLogType
		stats []tag
	}{
		{datav3.AccessLogType_TcpUpstreamConnected, []tag{{names.StatTCPOpened, ""}}},
		{datav3.AccessLogType_TcpConnectionEnd, []tag{
			{names.StatTCPClosed, ""}, {names.StatTCPSent, "%BYTES_SENT%"}, {names.StatTCPReceived, "%BYTES_RECEIVED%"},
		}},
	} {
		cfg := &statsv3.Config{StatsScope: statsScope()}
		for _, s := range at.stats {
			if t, on := b.statTags(s.name, b.tcpTags()); on {
				cfg.Counters = append(cfg.Counters, counter(s.name, t, s.format))
			}
		}
		if len(cfg.Counters) > 0 {
			out = append(out, b.statsLogger(cfg, logTypes(at.when)))
		}
	}
	return out
}

func logTypes(types ...datav3.AccessLogType) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_LogTypeFilter{
		LogTypeFilter: &accesslogv3.LogTypeFilter{Types: types},
	}}
}

// counter adds 1 if it has no format.
func counter(name string, tags []*statsv3.Config_Tag, format string) *statsv3.Config_Counter {
	c := &statsv3.Config_Counter{Stat: &statsv3.Config_Stat{Name: name, Tags: tags}, ValueFormat: format}
	if format == "" {
		c.ValueFixed = wrapperspb.UInt64(1)
	}
	return c
}

func (b *builder) statsLogger(cfg *statsv3.Config, filter *accesslogv3.AccessLogFilter) *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{
		Name: "envoy.access_loggers.stats", Filter: filter,
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.pack(cfg)},
	}
}

// statTags applies what Telemetry resources say to the tags of one metric, in their order; false turns it off.
func (b *builder) statTags(metric string, base []tag) ([]*statsv3.Config_Tag, bool) {
	on := true
	changes := map[string]string{}
	for _, m := range b.proxy.HTTP.Metrics {
		if !b.concerns(&m) || m.Name != "" && m.Name != metric {
			continue
		}
		on = (on || m.Enabled) && !m.Disabled
		maps.Copy(changes, m.Tags)
	}
	var tags []tag
	var removed []string
	for _, t := range base {
		if change, ok := changes[t.name]; !ok {
			tags = append(tags, t)
		} else if change != "" {
			tags = append(tags, tag{t.name, labelFormat(change)})
		}
		delete(changes, t.name)
	}
	for _, label := range slices.Sorted(maps.Keys(changes)) {
		if changes[label] == "" {
			removed = append(removed, label)
			continue
		}
		tags = append(tags, tag{label, labelFormat(changes[label])})
	}
	if len(removed) > 0 {
		tags = append(tags, tag{names.TagRemoved, strings.Join(removed, ",")})
	}
	var out []*statsv3.Config_Tag
	for _, t := range tags {
		out = append(out, &statsv3.Config_Tag{Name: t.name, ValueFormat: t.format})
	}
	return out, on
}

// concerns tells whether a change of metrics is for this side: a waypoint reports as the server does, a gateway as the
// client (Istio's WorkloadMode). Neither is both.
func (b *builder) concerns(m *model.TelemetryMetric) bool {
	if !m.Client && !m.Server {
		return true
	}
	if b.proxy.Waypoint {
		return m.Server
	}
	return m.Client
}

// labelFormat writes a tag's CEL expression as a format string. The simple ones, which are most, need no interpreter.
func labelFormat(expr string) string {
	expr = strings.TrimSpace(expr)
	if len(expr) > 1 && (expr[0] == '\'' || expr[0] == '"') && expr[len(expr)-1] == expr[0] && !strings.ContainsAny(expr[1:len(expr)-1], `'"\`) {
		return strings.ReplaceAll(expr[1:len(expr)-1], "%", "%%")
	}
	if m := regexp.MustCompile(`^request\.headers\[['"]([A-Za-z0-9_:-]+)['"]\]$`).FindStringSubmatch(expr); m != nil {
		return "%REQ(" + m[1] + ")%"
	}
	switch expr {
	case "request.method":
		return methodFormat
	case "request.host":
		return "%REQ(:AUTHORITY)%"
	case "request.path":
		return "%REQ(:PATH)%"
	case "response.code":
		return "%RESPONSE_CODE%"
	}
	if strings.Contains(expr, "%") {
		// It would end the command that it is in, and Envoy would refuse the listener.
		return names.Unknown
	}
	return "%CEL(" + expr + ")%"
}
