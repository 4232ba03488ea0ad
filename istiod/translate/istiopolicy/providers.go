package istiopolicy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	meshapi "istio.io/api/mesh/v1alpha1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	// authzTimeout is how long an external authorization server may take by default: Istio's.
	authzTimeout = 600 * time.Second
	// otlpHTTPPath is where OTLP over HTTP takes traces (OTLP specification, "OTLP/HTTP Request").
	otlpHTTPPath = "/v1/traces"
	// stdout is where access logs go by default.
	stdout = "/dev/stdout"
	// maxProviderName is that of a DNS label: names become keys of metadata and parts of metrics.
	maxProviderName = 63
)

// Providers that Istio has without being told.
const (
	providerPrometheus = "prometheus"
	providerEnvoy      = "envoy"
)

// builtIn adds them, unless providers of these names are declared.
func builtIn(out map[string]*model.Provider) {
	if out[providerPrometheus] == nil {
		out[providerPrometheus] = &model.Provider{Name: providerPrometheus, Prometheus: true}
	}
	if out[providerEnvoy] == nil {
		out[providerEnvoy] = &model.Provider{Name: providerEnvoy, Log: &model.LogFile{Path: stdout}}
	}
}

// provider reads one extension provider. With any error it is left out: a policy that names it then refuses.
func (p *problems) provider(field string, in *meshapi.MeshConfig_ExtensionProvider, out map[string]*model.Provider) {
	name := in.GetName()
	if name == "" {
		p.fail(field+".name", "empty")
		return
	}
	if out[name] != nil {
		p.failValue(field+".name", name, "an earlier provider has the same name")
		return
	}
	before := len(p.errs)
	v := &model.Provider{Name: name}
	switch x := in.GetProvider().(type) {
	case *meshapi.MeshConfig_ExtensionProvider_EnvoyExtAuthzHttp:
		v.ExtAuthz = p.authzHTTP(field+".envoyExtAuthzHttp", name, x.EnvoyExtAuthzHttp)
	case *meshapi.MeshConfig_ExtensionProvider_EnvoyExtAuthzGrpc:
		v.ExtAuthz = p.authzGRPC(field+".envoyExtAuthzGrpc", name, x.EnvoyExtAuthzGrpc)
	case *meshapi.MeshConfig_ExtensionProvider_Opentelemetry:
		v.OTLP = p.otlp(field+".opentelemetry", x.Opentelemetry)
	case *meshapi.MeshConfig_ExtensionProvider_EnvoyOtelAls:
		v.OTLP = p.otlpLogs(field+".envoyOtelAls", x.EnvoyOtelAls)
	case *meshapi.MeshConfig_ExtensionProvider_EnvoyFileAccessLog:
		v.Log = p.logFile(field+".envoyFileAccessLog", x.EnvoyFileAccessLog)
	case *meshapi.MeshConfig_ExtensionProvider_Prometheus:
		v.Prometheus = true
	case nil:
		p.fail(field, "provider %q says nothing", name)
	default:
		p.warn("%s: provider %q is of a kind that is not supported", field, name)
		return
	}
	if len(p.errs) == before {
		out[name] = v
	}
}

// backend reads "[<namespace>/]<host>" and a port.
func (p *problems) backend(field, service string, port uint32) model.Destination {
	ns, host, ok := strings.Cut(service, "/")
	if !ok {
		ns, host = "", service
	}
	if !dnsName(host) || ok && !dnsName(ns) {
		p.failValue(field+".service", service, "is not of the form [<namespace>/]<host>")
	}
	if port < 1 || port > 65535 {
		p.failValue(field+".port", fmt.Sprint(port), "is not a port")
		port = 0
	}
	return model.Destination{Host: host, Port: uint16(port), Namespace: ns}
}

// dnsName tells whether s looks like a name of DNS; services of any kind have one.
func dnsName(s string) bool {
	for _, label := range strings.Split(s, ".") {
		for i := range len(label) {
			c := label[i]
			alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
			if !alnum && (c != '-' || i == 0 || i == len(label)-1) {
				return false
			}
		}
		if label == "" || len(label) > 63 {
			return false
		}
	}
	return len(s) <= 253
}

// timeout reads a duration; unset gives the default.
func (p *problems) timeout(field string, d *durationpb.Duration, def time.Duration) time.Duration {
	if d == nil {
		return def
	}
	if d.CheckValid() != nil || d.AsDuration() <= 0 {
		p.failValue(field, d.AsDuration().String(), "is not positive")
		return def
	}
	return d.AsDuration()
}

// status reads a code that Envoy can answer with.
func (p *problems) status(field, s string) int {
	if s == "" {
		return 0
	}
	code, err := strconv.Atoi(s)
	if _, ok := envoytype.StatusCode_name[int32(code)]; err != nil || !ok || code == 0 {
		p.failValue(field, s, "is not a status code")
		return 0
	}
	return code
}

func (p *problems) authzName(field, name string) {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '-' || i == 0 || i == len(name)-1) || i >= maxProviderName {
			p.failValue(field, name, fmt.Sprintf("wants at most %d lower-case letters, digits and hyphens between them", maxProviderName))
			return
		}
	}
}

func (p *problems) authzHTTP(field, name string, in *meshapi.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider) *model.ExtAuthz {
	p.authzName(field, name)
	out := &model.ExtAuthz{
		Name:                name,
		Backend:             p.backend(field, in.GetService(), in.GetPort()),
		Timeout:             p.timeout(field+".timeout", in.GetTimeout(), authzTimeout),
		FailOpen:            in.GetFailOpen(),
		ClearRouteCache:     in.GetClearRouteCache(),
		StatusOnError:       p.status(field+".statusOnError", in.GetStatusOnError()),
		PathPrefix:          in.GetPathPrefix(),
		IncludeHeaders:      p.headerPatterns(field+".includeRequestHeadersInCheck", in.GetIncludeRequestHeadersInCheck()),
		ToUpstreamOnAllow:   p.headerPatterns(field+".headersToUpstreamOnAllow", in.GetHeadersToUpstreamOnAllow()),
		ToDownstreamOnDeny:  p.headerPatterns(field+".headersToDownstreamOnDeny", in.GetHeadersToDownstreamOnDeny()),
		ToDownstreamOnAllow: p.headerPatterns(field+".headersToDownstreamOnAllow", in.GetHeadersToDownstreamOnAllow()),
	}
	if out.PathPrefix != "" && (!strings.HasPrefix(out.PathPrefix, "/") || strings.ContainsAny(out.PathPrefix, "?# ")) {
		p.failValue(field+".pathPrefix", out.PathPrefix, "is not a path")
	}
	//lint:ignore SA1019 the old name of the field is still in use
	if old := in.GetIncludeHeadersInCheck(); len(old) > 0 && len(out.IncludeHeaders) == 0 {
		out.IncludeHeaders = p.headerPatterns(field+".includeHeadersInCheck", old)
	}
	add := in.GetIncludeAdditionalHeadersInCheck()
	for _, h := range slices.Sorted(maps.Keys(add)) {
		if !headerName(h) || strings.ContainsAny(add[h], "\r\n\x00") {
			p.failValue(field+".includeAdditionalHeadersInCheck", h, "is not a header")
			continue
		}
		out.AddHeaders = append(out.AddHeaders, model.Header{Name: h, Value: add[h]})
	}
	p.body(field, in.GetIncludeRequestBodyInCheck(), out)
	return out
}

func (p *problems) authzGRPC(field, name string, in *meshapi.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationGrpcProvider) *model.ExtAuthz {
	p.authzName(field, name)
	out := &model.ExtAuthz{
		Name: name, GRPC: true,
		Backend:         p.backend(field, in.GetService(), in.GetPort()),
		Timeout:         p.timeout(field+".timeout", in.GetTimeout(), authzTimeout),
		FailOpen:        in.GetFailOpen(),
		ClearRouteCache: in.GetClearRouteCache(),
		StatusOnError:   p.status(field+".statusOnError", in.GetStatusOnError()),
	}
	p.body(field, in.GetIncludeRequestBodyInCheck(), out)
	return out
}

func (p *problems) body(field string, in *meshapi.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody, out *model.ExtAuthz) {
	if in == nil {
		return
	}
	if in.GetMaxRequestBytes() == 0 {
		p.fail(field+".includeRequestBodyInCheck.maxRequestBytes", "is zero")
	}
	out.Body, out.BodyPartial, out.BodyBytes = in.GetMaxRequestBytes(), in.GetAllowPartialMessage(), in.GetPackAsBytes()
}

// headerPatterns reads names with an asterisk at one end; "*" alone is refused, as Istio does.
func (p *problems) headerPatterns(field string, in []string) []string {
	for _, s := range in {
		if s == "*" || !oneAsterisk(s) || !headerName(s) {
			p.failValue(field, s, "is neither the name of a header nor the beginning or end of one")
		}
	}
	return in
}

func (p *problems) otlp(field string, in *meshapi.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider) *model.OTLP {
	out := &model.OTLP{Backend: p.backend(field, in.GetService(), in.GetPort()), MaxTagLength: in.GetMaxTagLength()}
	if g := in.GetGrpc(); g != nil {
		out.Timeout = p.timeout(field+".grpc.timeout", g.GetTimeout(), 0)
		out.Headers = p.fixedHeaders(field+".grpc.initialMetadata", g.GetInitialMetadata())
		for i, h := range out.Headers {
			if strings.Contains(h.Value, "%") { // Envoy 1.40 cannot send one
				p.fail(fmt.Sprintf("%s.grpc.initialMetadata[%d].value", field, i), "a percent sign cannot be sent over gRPC")
			}
		}
	}
	if h := in.GetHttp(); h != nil {
		if in.GetGrpc() != nil {
			p.fail(field+".http", "grpc is set too")
		}
		out.HTTPPath = h.GetPath()
		if out.HTTPPath == "" {
			out.HTTPPath = otlpHTTPPath
		}
		if !strings.HasPrefix(out.HTTPPath, "/") {
			p.failValue(field+".http.path", out.HTTPPath, "is not a path")
		}
		out.Timeout = p.timeout(field+".http.timeout", h.GetTimeout(), 0)
		out.Headers = p.fixedHeaders(field+".http.headers", h.GetHeaders())
	}
	if in.GetResourceDetectors() != nil {
		p.warn("%s.resourceDetectors: has no effect", field)
	}
	if in.GetSampling() != nil {
		p.warn("%s.dynatraceSampler: has no effect", field)
	}
	if in.GetServiceAttributeEnrichment() != 0 {
		p.warn("%s.serviceAttributeEnrichment: has no effect", field)
	}
	return out
}

func (p *problems) fixedHeaders(field string, in []*meshapi.MeshConfig_ExtensionProvider_HttpHeader) []model.Header {
	var out []model.Header
	for i, h := range in {
		at := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case h.GetEnvName() != "":
			p.fail(at+".envName", "not supported: proxies have no environment of the user's; give a value")
		case !headerName(h.GetName()) || strings.ContainsAny(h.GetValue(), "\r\n\x00"):
			p.failValue(at+".name", h.GetName(), "is not a header")
		default:
			out = append(out, model.Header{Name: h.GetName(), Value: h.GetValue()})
		}
	}
	return out
}

func (p *problems) otlpLogs(field string, in *meshapi.MeshConfig_ExtensionProvider_EnvoyOpenTelemetryLogProvider) *model.OTLP {
	out := &model.OTLP{Backend: p.backend(field, in.GetService(), in.GetPort()), Logs: true, LogName: in.GetLogName()}
	if f := in.GetLogFormat(); f != nil {
		out.Text = p.textFormat(field+".logFormat.text", f.GetText(), "")
		if f.GetLabels() != nil {
			out.JSON = p.structLabels(field+".logFormat.labels", f.GetLabels())
		}
	}
	return out
}

func (p *problems) logFile(field string, in *meshapi.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider) *model.LogFile {
	out := &model.LogFile{Path: in.GetPath(), OmitEmpty: in.GetOmitEmptyValues()}
	if out.Path == "" {
		out.Path = stdout
	}
	switch f := in.GetLogFormat().GetLogFormat().(type) {
	case *meshapi.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider_LogFormat_Text:
		out.Text = p.textFormat(field+".logFormat.text", f.Text, "\n")
	case *meshapi.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider_LogFormat_Labels:
		out.JSON = p.structLabels(field+".logFormat.labels", f.Labels)
	}
	return out
}

func (p *problems) structLabels(field string, in *structpb.Struct) map[string]string {
	out := map[string]string{}
	p.labels(field, "", in.AsMap(), out)
	return out
}
