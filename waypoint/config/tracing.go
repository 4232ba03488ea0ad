package config

import (
	"net/url"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
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
	out := &hcmv3.HttpConnectionManager_Tracing{
		RandomSampling:    &typev3.Percent{Value: t.Percent},
		MaxPathTagLength:  u32OrNil(t.MaxTagLength),
		SpawnUpstreamSpan: wrapperspb.Bool(true),
		Provider: &tracev3.Tracing_Http{
			Name:       "envoy.tracers.opentelemetry",
			ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: b.pack(otel)},
		},
	}
	id := b.identities()
	named := map[string]bool{}
	for _, tag := range append(t.Tags,
		model.TraceTag{Name: "source.principal", Format: id.source},
		model.TraceTag{Name: "destination.principal", Format: id.destination},
	) {
		// Names must be unique; the user's own comes first.
		if c := customTag(tag); c != nil && !named[tag.Name] {
			named[tag.Name] = true
			out.CustomTags = append(out.CustomTags, c)
		}
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
		g.InitialMetadata = append(g.InitialMetadata, &corev3.HeaderValue{Key: h.Name, Value: h.Value})
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
			Header:       &corev3.HeaderValue{Key: h.Name, Value: h.Value},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return s
}
