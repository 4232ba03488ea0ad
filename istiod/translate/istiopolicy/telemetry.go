package istiopolicy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	telemetryapi "istio.io/api/telemetry/v1alpha1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// metricPrefix of all metrics, which model.TelemetryMetric leaves out.
const metricPrefix = "istio_"

// Telemetry translates what is counted, logged and traced. The result is never nil; what holds an error is left out of it.
func Telemetry(cfg translate.Config, t *telemetryv1.Telemetry) (*model.Telemetry, error) {
	spec := &t.Spec
	p := &problems{}
	out := &model.Telemetry{Meta: meta(model.KindTelemetry, t.ObjectMeta)}
	out.Targets, out.Selector = p.attachment(cfg, t.Namespace, spec.GetSelector(), spec.GetTargetRef(), spec.GetTargetRefs())
	for i, m := range spec.GetMetrics() {
		out.Metrics = append(out.Metrics, p.metrics(fmt.Sprintf("spec.metrics[%d]", i), m)...)
	}
	for i, l := range spec.GetAccessLogging() {
		field := fmt.Sprintf("spec.accessLogging[%d]", i)
		log := model.TelemetryLog{
			Providers: p.providers(field, l.GetProviders()),
			Disabled:  l.GetDisabled().GetValue(),
			Filter:    l.GetFilter().GetExpression(),
		}
		log.Client, log.Server = modes(l.GetMatch().GetMode())
		if log.Filter != "" {
			if err := CheckCEL(log.Filter); err != nil {
				p.fail(field+".filter.expression", "%w", err)
				continue
			}
		}
		out.Logs = append(out.Logs, log)
	}
	for i, tr := range spec.GetTracing() {
		out.Tracing = append(out.Tracing, p.tracing(fmt.Sprintf("spec.tracing[%d]", i), tr))
	}
	out.Warnings = p.warnings
	return out, p.err()
}

func (p *problems) providers(field string, in []*telemetryapi.ProviderRef) []string {
	var out []string
	for i, r := range in {
		if r.GetName() == "" {
			p.fail(fmt.Sprintf("%s.providers[%d].name", field, i), "empty")
			continue
		}
		out = append(out, r.GetName())
	}
	return out
}

func modes(m telemetryapi.WorkloadMode) (client, server bool) {
	return m != telemetryapi.WorkloadMode_SERVER, m != telemetryapi.WorkloadMode_CLIENT
}

// metrics gives one entry per override, in order: later ones go on top of earlier ones.
func (p *problems) metrics(field string, m *telemetryapi.Metrics) []model.TelemetryMetric {
	if m.GetReportingInterval() != nil {
		p.warn("%s.reportingInterval: has no effect; metrics are read when they are scraped", field)
	}
	providers := p.providers(field, m.GetProviders())
	if len(m.GetOverrides()) == 0 {
		return []model.TelemetryMetric{{Providers: providers, Client: true, Server: true}}
	}
	var out []model.TelemetryMetric
	for i, o := range m.GetOverrides() {
		at := fmt.Sprintf("%s.overrides[%d]", field, i)
		metric := model.TelemetryMetric{Providers: providers}
		name, ok := metricName(o.GetMatch())
		if !ok {
			p.failValue(at+".match.metric", o.GetMatch().GetMetric().String(), "is not a metric")
			continue
		}
		metric.Name = name
		metric.Client, metric.Server = modes(o.GetMatch().GetMode())
		if d := o.GetDisabled(); d != nil {
			metric.Disabled, metric.Enabled = d.GetValue(), !d.GetValue()
		}
		for _, tag := range slices.Sorted(maps.Keys(o.GetTagOverrides())) {
			value, ok := p.tag(fmt.Sprintf("%s.tagOverrides[%s]", at, tag), tag, o.GetTagOverrides()[tag])
			if !ok {
				continue
			}
			if metric.Tags == nil {
				metric.Tags = map[string]string{}
			}
			metric.Tags[tag] = value
		}
		out = append(out, metric)
	}
	return out
}

// tag reads what a label is replaced by; "" removes it.
func (p *problems) tag(field, name string, t *telemetryapi.MetricsOverrides_TagOverride) (string, bool) {
	if !labelName(name) {
		p.failValue(field, name, "is not the name of a label")
		return "", false
	}
	value := t.GetValue()
	if t.GetOperation() == telemetryapi.MetricsOverrides_TagOverride_REMOVE {
		if value != "" {
			p.warn("%s.value: has no effect with operation REMOVE", field)
		}
		return "", true
	}
	if value == "" {
		p.fail(field+".value", "empty; REMOVE removes a label")
		return "", false
	}
	// A label is text whatever the expression gives, and Envoy has no function that makes text.
	if inner, ok := strings.CutPrefix(value, "string("); ok && strings.HasSuffix(inner, ")") && CheckCEL(inner[:len(inner)-1]) == nil {
		value = inner[:len(inner)-1]
	}
	if err := CheckCEL(value); err != nil {
		p.fail(field+".value", "%w", err)
		return "", false
	}
	// The expression becomes the argument of a command of a format string, which these would end or break.
	if strings.ContainsAny(value, "%\r\n") {
		p.failValue(field+".value", value, "a label takes neither percent signs nor line breaks")
		return "", false
	}
	return value, true
}

// labelName tells whether s is a label of Prometheus' data model, without the reserved ones.
func labelName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && !strings.HasPrefix(s, "__")
}

// metricName gives the name that Prometheus sees, without its prefix; "" is every metric.
func metricName(m *telemetryapi.MetricSelector) (string, bool) {
	if c := m.GetCustomMetric(); c != "" {
		return strings.TrimPrefix(c, metricPrefix), true
	}
	switch m.GetMetric() {
	case telemetryapi.MetricSelector_ALL_METRICS:
		return "", true
	case telemetryapi.MetricSelector_REQUEST_COUNT:
		return "requests_total", true
	case telemetryapi.MetricSelector_REQUEST_DURATION:
		return "request_duration_milliseconds", true
	case telemetryapi.MetricSelector_REQUEST_SIZE:
		return "request_bytes", true
	case telemetryapi.MetricSelector_RESPONSE_SIZE:
		return "response_bytes", true
	case telemetryapi.MetricSelector_TCP_OPENED_CONNECTIONS:
		return "tcp_connections_opened_total", true
	case telemetryapi.MetricSelector_TCP_CLOSED_CONNECTIONS:
		return "tcp_connections_closed_total", true
	case telemetryapi.MetricSelector_TCP_SENT_BYTES:
		return "tcp_sent_bytes_total", true
	case telemetryapi.MetricSelector_TCP_RECEIVED_BYTES:
		return "tcp_received_bytes_total", true
	case telemetryapi.MetricSelector_GRPC_REQUEST_MESSAGES:
		return "request_messages_total", true
	case telemetryapi.MetricSelector_GRPC_RESPONSE_MESSAGES:
		return "response_messages_total", true
	}
	return "", false
}

func (p *problems) tracing(field string, t *telemetryapi.Tracing) model.TelemetryTracing {
	out := model.TelemetryTracing{Providers: p.providers(field, t.GetProviders())}
	if len(out.Providers) > 1 {
		p.warn("%s.providers: only the first is used", field)
	}
	out.Client, out.Server = modes(t.GetMatch().GetMode())
	if d := t.GetDisableSpanReporting(); d != nil {
		out.Disabled, out.Enabled = d.GetValue(), !d.GetValue()
	}
	if s := t.GetRandomSamplingPercentage(); s != nil {
		if v := s.GetValue(); v >= 0 && v <= 100 {
			out.Percent = &v
		} else {
			p.failValue(field+".randomSamplingPercentage", fmt.Sprint(v), "is not between 0 and 100")
		}
	}
	if t.GetUseRequestIdForTraceSampling() != nil {
		p.warn("%s.useRequestIdForTraceSampling: has no effect", field)
	}
	if v := t.GetEnableIstioTags(); v != nil {
		on := v.GetValue()
		out.MeshTags = &on
	}
	if v := t.GetDisableContextPropagation(); v != nil {
		on := !v.GetValue()
		out.Propagation = &on
	}
	for _, name := range slices.Sorted(maps.Keys(t.GetCustomTags())) {
		if tag, ok := p.traceTag(fmt.Sprintf("%s.customTags[%s]", field, name), name, t.GetCustomTags()[name]); ok {
			out.Tags = append(out.Tags, tag)
		}
	}
	return out
}

func (p *problems) traceTag(field, name string, t *telemetryapi.Tracing_CustomTag) (model.TraceTag, bool) {
	out := model.TraceTag{Name: name}
	switch v := t.GetType().(type) {
	case *telemetryapi.Tracing_CustomTag_Literal:
		out.Literal = v.Literal.GetValue()
	case *telemetryapi.Tracing_CustomTag_Environment:
		out.Environment, out.Default = v.Environment.GetName(), v.Environment.GetDefaultValue()
	case *telemetryapi.Tracing_CustomTag_Header:
		if out.Header, out.Default = v.Header.GetName(), v.Header.GetDefaultValue(); out.Header != "" && !headerName(out.Header) {
			p.failValue(field+".header.name", out.Header, "is not the name of a header")
			return out, false
		}
	case *telemetryapi.Tracing_CustomTag_Formatter:
		out.Format = v.Formatter.GetValue()
		if err := CheckFormat(out.Format); err != nil {
			p.fail(field+".formatter.value", "%w", err)
			return out, false
		}
	}
	if name == "" || out.Literal+out.Environment+out.Header+out.Format == "" {
		p.fail(field, "has no value")
		return out, false
	}
	return out, true
}
