package config

import (
	"math"
	"net/url"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	headermetav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	samplersv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/samplers/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// stateSource is the metadata of a CONNECT, and the prefix of the filter state, that hold what spans say of the source.
const stateSource = "mesh.source"

// Denominators of shares.
const (
	hundred = 100
	million = 1_000_000
)

// tracing sends spans to a collector. The proxy is a hop of its own, with a span for each side: so the application's
// spans hang below the one that called it.
func (b *builder) tracing() *hcmv3.HttpConnectionManager_Tracing {
	t := b.proxy.HTTP.Tracing
	if t == nil {
		return nil
	}
	otel := &tracev3.OpenTelemetryConfig{ServiceName: t.Service}
	if otel.ServiceName == "" {
		otel.ServiceName = b.proxy.Name + "." + b.proxy.Namespace
	}
	if t.HTTPPath != "" {
		otel.HttpService = collectorHTTP(&t.OTLP, t.Cluster)
	} else {
		otel.GrpcService = collectorGRPC(&t.OTLP, t.Cluster)
	}
	otel.Sampler = b.sampler(t.Percent)
	out := &hcmv3.HttpConnectionManager_Tracing{
		// The sampler decides. What this says would overrule the application's own decision (see sampler).
		RandomSampling:       &typev3.Percent{Value: hundred},
		MaxPathTagLength:     u32OrNil(t.MaxTagLength),
		SpawnUpstreamSpan:    wrapperspb.Bool(true),
		NoContextPropagation: t.NoPropagation,
		Provider: &tracev3.Tracing_Http{
			Name:       "envoy.tracers.opentelemetry",
			ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: b.pack(otel)},
		},
	}
	named := map[string]bool{}
	for _, tag := range slices.Concat(t.Tags, b.meshTags(t)) {
		// Names must be unique; the user's own comes first.
		if c := customTag(tag); c != nil && !named[tag.Name] {
			named[tag.Name] = true
			out.CustomTags = append(out.CustomTags, c)
		}
	}
	return out
}

// sampler records the traces that their application records, and of those that begin here the given percentage, chosen
// by the trace's id: so all proxies choose the same ones. Istio documents the percentage for requests of which nobody
// decided yet (Telemetry, randomSamplingPercentage); without a sampler, Envoy decides for all by chance, and tells the
// next application not to record either.
func (b *builder) sampler(percent float64) *corev3.TypedExtensionConfig {
	return b.extension("envoy.tracers.opentelemetry.samplers.parent_based", &samplersv3.ParentBasedSamplerConfig{
		WrappedSampler: b.extension("envoy.tracers.opentelemetry.samplers.trace_id_ratio_based", &samplersv3.TraceIdRatioBasedSamplerConfig{
			SamplingPercentage: &typev3.FractionalPercent{
				Numerator:   uint32(math.Round(percent / hundred * million)),
				Denominator: typev3.FractionalPercent_MILLION,
			},
		}),
	})
}

// meshTags say who spoke to whom, under Istio's names where it has some. What a waypoint knows of the source's workload
// is what the source's node proxy said of it (sourceTags).
func (b *builder) meshTags(t *model.Tracing) []model.TraceTag {
	id := b.identities()
	tags := []model.TraceTag{
		{Name: "source.principal", Format: id.source},
		{Name: "destination.principal", Format: id.destination},
	}
	if t.NoMeshTags {
		return tags
	}
	tags = append(tags,
		model.TraceTag{Name: "istio.canonical_service", Literal: b.proxy.Name},
		model.TraceTag{Name: "istio.canonical_revision", Literal: "latest"},
		model.TraceTag{Name: "istio.namespace", Literal: b.proxy.Namespace},
		model.TraceTag{Name: "istio.mesh_id", Literal: b.proxy.TrustDomain},
		model.TraceTag{Name: "istio.cluster_id", Environment: "CLUSTER_ID", Default: ports.DefaultClusterID},
		model.TraceTag{Name: "istio.destination_workload", Format: hostMetadata(names.KeyWorkload)},
		model.TraceTag{Name: "istio.destination_namespace", Format: hostMetadata(names.KeyNamespace)},
	)
	if b.proxy.Waypoint {
		for _, s := range sourceTags() {
			tags = append(tags, model.TraceTag{Name: "istio.source_" + s.name, Format: filterState(stateSource + "." + s.name)})
		}
	}
	return tags
}

// sourceTag is a part of the baggage that a tunnel's CONNECT carries.
type sourceTag struct{ name, key string }

// sourceTags are read once for each tunnel's stream, with RE2, since format strings cannot take a value apart.
func sourceTags() []sourceTag {
	return []sourceTag{
		{"workload", `k8s\.(?:deployment|statefulset|daemonset|cronjob|job|pod)\.name`},
		{"namespace", `k8s\.namespace\.name`},
		{"cluster_id", `k8s\.cluster\.name`},
		{"canonical_service", `service\.name`},
		{"canonical_revision", `service\.version`},
	}
}

// sourceReader takes the baggage of a CONNECT apart, for spans only.
func (b *builder) sourceReader() []*hcmv3.HttpFilter {
	if t := b.proxy.HTTP.Tracing; t == nil || t.NoMeshTags {
		return nil
	}
	cfg := &headermetav3.Config{}
	for _, s := range sourceTags() {
		cfg.RequestRules = append(cfg.RequestRules, &headermetav3.Config_Rule{
			Header: names.HeaderBaggage,
			OnHeaderPresent: &headermetav3.Config_KeyValuePair{
				MetadataNamespace: stateSource, Key: s.name,
				RegexValueRewrite: &matcherv3.RegexMatchAndSubstitute{
					// Always matches, or the value would stay as it is; an empty one is not set.
					Pattern:      &matcherv3.RegexMatcher{Regex: `^(?:.*,)?\s*` + s.key + `=([^,;]*).*$|^.*$`},
					Substitution: `\1`,
				},
			},
		})
	}
	return []*hcmv3.HttpFilter{b.httpFilter("ambit.filters.http.source_tags", cfg)}
}

// sourceState shares what sourceReader found.
func (b *builder) sourceState() []*statev3.FilterStateValue {
	var out []*statev3.FilterStateValue
	if t := b.proxy.HTTP.Tracing; t == nil || t.NoMeshTags {
		return nil
	}
	for _, s := range sourceTags() {
		v := stateValue(stateSource+"."+s.name, "%DYNAMIC_METADATA("+stateSource+":"+s.name+")%")
		v.FactoryKey = names.HashableString
		out = append(out, v)
	}
	return out
}

// customTag is nil for a tag without name or source, which Envoy would refuse.
func customTag(t model.TraceTag) *tracingv3.CustomTag {
	c := &tracingv3.CustomTag{Tag: t.Name}
	switch {
	case t.Name == "":
		return nil
	case t.Header != "":
		c.Type = &tracingv3.CustomTag_RequestHeader{RequestHeader: &tracingv3.CustomTag_Header{Name: t.Header, DefaultValue: t.Default}}
	case t.Environment != "":
		c.Type = &tracingv3.CustomTag_Environment_{Environment: &tracingv3.CustomTag_Environment{Name: t.Environment, DefaultValue: t.Default}}
	case t.Format != "":
		c.Type = &tracingv3.CustomTag_Value{Value: t.Format}
	case t.Literal != "":
		c.Type = &tracingv3.CustomTag_Literal_{Literal: &tracingv3.CustomTag_Literal{Value: t.Literal}}
	default:
		return nil
	}
	return c
}

// collectorGRPC and collectorHTTP reach an OpenTelemetry collector.
func collectorGRPC(o *model.OTLP, cluster string) *corev3.GrpcService {
	g := &corev3.GrpcService{
		Timeout: duration(o.Timeout),
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
			ClusterName: cluster, Authority: o.Backend.Host,
		}},
	}
	if o.Timeout == 0 {
		g.Timeout = duration(collectorTimeout)
	}
	for _, h := range o.Headers {
		// Envoy reads the value as a format and refuses the listener if it is none, but sends it as it was written. So there
		// is no right way to write a percent sign; the translation refuses it.
		g.InitialMetadata = append(g.InitialMetadata, &corev3.HeaderValue{Key: h.Name, Value: formatLiteral(h.Value)})
	}
	return g
}

func collectorHTTP(o *model.OTLP, cluster string) *corev3.HttpService {
	timeout := o.Timeout
	if timeout == 0 {
		timeout = collectorTimeout
	}
	s := &corev3.HttpService{HttpUri: &corev3.HttpUri{
		Uri:              (&url.URL{Scheme: "http", Host: o.Backend.Host, Path: o.HTTPPath}).String(),
		HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster},
		Timeout:          duration(timeout),
	}}
	for _, h := range o.Headers {
		s.RequestHeadersToAdd = append(s.RequestHeadersToAdd, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: h.Name, Value: formatLiteral(h.Value)},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return s
}
