package istiopolicy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	meshapi "istio.io/api/mesh/v1alpha1"
	networkingapi "istio.io/api/networking/v1alpha3"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	// defaultSampling is the share of traced requests, in percent, if nobody says otherwise: Istio's.
	defaultSampling = 1
	// defaultConnectTimeout of Istio's mesh configuration.
	defaultConnectTimeout = 10 * time.Second
	// minConnectTimeout is the smallest that Istio allows.
	minConnectTimeout = time.Millisecond
	// maxMeshConfigBytes is what a ConfigMap can hold.
	maxMeshConfigBytes = 1 << 20
	// retryCodes is the condition that makes status codes count.
	retryCodes = "retriable-status-codes"
	// fieldOutbound says whether hosts that nothing declares are refused.
	fieldOutbound = "outboundTrafficPolicy"
)

// meshField says of a field of the mesh configuration whether this package reads it; others have no effect on layer 7,
// except those that istiod's settings read.
func meshField(name string) (read, elsewhere bool) {
	switch name {
	case "extensionProviders", "defaultProviders", "accessLogFile", "accessLogFormat", "accessLogEncoding",
		fieldOutbound, "defaultHttpRetryPolicy", "localityLbSetting", "connectTimeout", "trustDomainAliases",
		"enableTracing", "defaultConfig":
		return true, false
	case "trustDomain", "rootNamespace":
		return false, true
	}
	return false, false
}

// MeshConfig reads the YAML of Istio's mesh configuration (key mesh of the ConfigMap istio). The result is never nil: a
// field with an error has its default, an extension provider with one is missing, and fields that are unknown or have no
// effect are in its warnings.
func MeshConfig(b []byte) (*model.MeshConfig, error) {
	p := &problems{}
	out := &model.MeshConfig{
		Providers: map[string]*model.Provider{}, DefaultMetrics: []string{providerPrometheus},
		Sampling: defaultSampling, ConnectTimeout: defaultConnectTimeout,
	}
	in, err := p.decodeMesh(b)
	if err != nil {
		builtIn(out.Providers)
		return out, err
	}
	for i, x := range in.GetExtensionProviders() {
		p.provider(fmt.Sprintf("extensionProviders[%d]", i), x, out.Providers)
	}
	builtIn(out.Providers)
	d := in.GetDefaultProviders()
	out.DefaultLogs = p.defaults(out, "accessLogging", d.GetAccessLogging())
	out.DefaultTracing = p.defaults(out, "tracing", d.GetTracing())
	if out.DefaultMetrics = p.defaults(out, "metrics", d.GetMetrics()); len(d.GetMetrics()) == 0 {
		out.DefaultMetrics = []string{providerPrometheus}
	}
	if in.GetEnableTracing() && len(out.DefaultTracing) == 0 {
		p.warn("enableTracing: names no collector; set defaultProviders.tracing, or a Telemetry with a provider")
	}
	p.accessLog(in, out)
	if o := in.GetOutboundTrafficPolicy(); o != nil {
		// A mode that cannot be read refuses too: who set one did not mean that everything is open.
		out.RegistryOnly = o.GetMode() == meshapi.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY
		if o.GetMode() == meshapi.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY_DYNAMIC_DNS {
			p.warn("outboundTrafficPolicy.mode: ALLOW_ANY_DYNAMIC_DNS is read as ALLOW_ANY")
		}
	}
	out.Retry = p.retry("defaultHttpRetryPolicy", in.GetDefaultHttpRetryPolicy())
	out.LocalityLB = p.locality("localityLbSetting", in.GetLocalityLbSetting())
	if t := in.GetConnectTimeout(); t != nil {
		if t.CheckValid() == nil && t.AsDuration() >= minConnectTimeout {
			out.ConnectTimeout = t.AsDuration()
		} else {
			p.failValue("connectTimeout", t.AsDuration().String(), "is below "+minConnectTimeout.String())
		}
	}
	out.TrustDomainAliases = p.nonEmpty("trustDomainAliases", in.GetTrustDomainAliases())
	if s := in.GetDefaultConfig().GetTracing(); s != nil && s.GetSampling() != 0 {
		if v := s.GetSampling(); v > 0 && v <= 100 {
			out.Sampling = v
		} else {
			p.failValue("defaultConfig.tracing.sampling", fmt.Sprint(v), "is not between 0 and 100")
		}
	}
	out.Warnings = p.warnings
	return out, p.err()
}

// defaults reads names of providers, without those that do not exist.
func (p *problems) defaults(c *model.MeshConfig, kind string, in []string) []string {
	var out []string
	for _, name := range in {
		if c.Providers[name] == nil {
			p.failValue("defaultProviders."+kind, name, "no such extension provider")
			continue
		}
		out = append(out, name)
	}
	return out
}

// decodeMesh reads field by field, so that one with an error leaves the others in force.
func (p *problems) decodeMesh(b []byte) (*meshapi.MeshConfig, error) {
	if len(b) > maxMeshConfigBytes {
		return nil, fmt.Errorf("read mesh configuration: longer than %d bytes", maxMeshConfigBytes)
	}
	var top map[string]json.RawMessage
	if err := yaml.Unmarshal(b, &top); err != nil {
		return nil, fmt.Errorf("parse mesh configuration: %w", err)
	}
	out := &meshapi.MeshConfig{}
	fields := out.ProtoReflect().Descriptor().Fields()
	for _, key := range slices.Sorted(maps.Keys(top)) {
		fd := field(fields, key)
		if fd == nil {
			p.warn("%s: unknown field", key)
			continue
		}
		name := fd.JSONName()
		read, elsewhere := meshField(name)
		if !read {
			if !elsewhere {
				p.warn("%s: has no effect", key)
			}
			continue
		}
		parts := []json.RawMessage{top[key]}
		if fd.IsList() && json.Unmarshal(top[key], &parts) != nil {
			p.fail(key, "is not a list")
			continue
		}
		for i, part := range parts {
			at, raw := key, part
			if fd.IsList() {
				at, raw = fmt.Sprintf("%s[%d]", key, i), json.RawMessage("["+string(part)+"]")
			}
			p.merge(out, fd, at, raw)
		}
	}
	return out, nil
}

// merge adds one field, or one element of a list, to a message.
func (p *problems) merge(out *meshapi.MeshConfig, fd protoreflect.FieldDescriptor, at string, raw json.RawMessage) {
	one := &meshapi.MeshConfig{}
	doc := fmt.Sprintf("{%q:%s}", fd.JSONName(), raw)
	// The type's own decoder takes durations such as 500ms, which protojson does not, and passes over unknown fields.
	if err := one.UnmarshalJSON([]byte(doc)); err != nil {
		p.fail(at, "%w", plain(err))
		if fd.JSONName() == fieldOutbound {
			out.OutboundTrafficPolicy = &meshapi.MeshConfig_OutboundTrafficPolicy{Mode: meshapi.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY}
		}
		return
	}
	if fd.Kind() == protoreflect.MessageKind {
		var value any
		if json.Unmarshal(raw, &value) == nil {
			if list, ok := value.([]any); ok && len(list) == 1 {
				value = list[0]
			}
			p.unknown(at, fd.Message(), value)
		}
	}
	proto.Merge(out, one)
}

// plain takes position and library name off an error of protojson, whose spelling varies from build to build.
func plain(err error) error {
	s := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
	s = strings.TrimPrefix(s, "syntax error ")
	if strings.HasPrefix(s, "(line ") {
		_, s, _ = strings.Cut(s, "): ")
	}
	return errors.New(s)
}

// field finds a field by either of its names.
func field(fields protoreflect.FieldDescriptors, key string) protoreflect.FieldDescriptor {
	if fd := fields.ByJSONName(key); fd != nil {
		return fd
	}
	return fields.ByName(protoreflect.Name(key))
}

// unknown warns of fields that a message does not have, and of those of the proxies' default configuration that have no effect.
func (p *problems) unknown(at string, md protoreflect.MessageDescriptor, value any) {
	object, ok := value.(map[string]any)
	if !ok || md.FullName().Parent() == "google.protobuf" {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		path := at + "." + key
		fd := field(md.Fields(), key)
		switch {
		case fd == nil:
			p.warn("%s: unknown field", path)
		case at == "defaultConfig" && fd.JSONName() != "tracing", at == "defaultConfig.tracing" && fd.JSONName() != "sampling":
			p.warn("%s: has no effect", path)
		case fd.Kind() != protoreflect.MessageKind || fd.IsMap():
		case fd.IsList():
			list, _ := object[key].([]any)
			for i, v := range list {
				p.unknown(fmt.Sprintf("%s[%d]", path, i), fd.Message(), v)
			}
		default:
			p.unknown(path, fd.Message(), object[key])
		}
	}
}

// accessLog reads the log of every proxy, which is on if it has a file.
func (p *problems) accessLog(in *meshapi.MeshConfig, out *model.MeshConfig) {
	out.AccessLog = in.GetAccessLogFile()
	format := in.GetAccessLogFormat()
	if in.GetAccessLogEncoding() != meshapi.MeshConfig_JSON {
		out.AccessLogText = p.textFormat("accessLogFormat", format, "\n")
		return
	}
	out.AccessLogJSON = map[string]string{}
	if format == "" {
		return
	}
	var labels map[string]any
	if err := json.Unmarshal([]byte(format), &labels); err != nil {
		p.fail("accessLogFormat", "is not an object of JSON, which accessLogEncoding asks for: %w", err)
		return
	}
	p.labels("accessLogFormat", "", labels, out.AccessLogJSON)
}

// textFormat checks a format. A line of a file ends with a line break, which Istio adds too.
func (p *problems) textFormat(field, s, end string) string {
	if s == "" {
		return ""
	}
	if err := CheckFormat(s); err != nil {
		p.fail(field, "%w", err)
		return ""
	}
	if !strings.HasSuffix(s, end) {
		s += end
	}
	return s
}

// labels flattens the labels of a JSON log: {a: {b: x}} is a.b.
func (p *problems) labels(field, prefix string, in map[string]any, out map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(in)) {
		name := prefix + key
		switch v := in[key].(type) {
		case string:
			if err := CheckFormat(v); err != nil {
				p.fail(field+"."+name, "%w", err)
				continue
			}
			out[name] = v
		case float64:
			out[name] = strconv.FormatFloat(v, 'g', -1, 64)
		case bool:
			out[name] = strconv.FormatBool(v)
		case map[string]any:
			p.labels(field, name+".", v, out)
		default:
			p.fail(field+"."+name, "is neither text, number, boolean nor object")
		}
	}
}

// retry reads retries by default. Numbers among the conditions are status codes, as Istio reads them.
func (p *problems) retry(field string, r *networkingapi.HTTPRetry) *model.Retry {
	if r == nil {
		return nil
	}
	out := &model.Retry{Attempts: int(r.GetAttempts()), OtherLocality: r.GetRetryRemoteLocalities().GetValue()}
	if out.Attempts <= 0 {
		if out.Attempts < 0 {
			p.failValue(field+".attempts", fmt.Sprint(out.Attempts), "is negative")
		}
		return &model.Retry{}
	}
	if ignore := r.GetRetryIgnorePreviousHosts(); ignore != nil {
		out.SameHost = !ignore.GetValue()
	}
	if t := r.GetPerTryTimeout(); t != nil {
		out.PerTry = max(t.AsDuration(), 0)
	}
	if t := r.GetBackoff(); t != nil {
		out.Backoff = max(t.AsDuration(), 0)
	}
	on := r.GetRetryOn()
	if on == "" {
		on = "connect-failure,refused-stream,unavailable,cancelled,503"
	}
	for _, term := range strings.Split(on, ",") {
		term = strings.TrimSpace(term)
		if code, err := strconv.Atoi(term); err == nil {
			if code < 100 || code > 599 {
				p.failValue(field+".retryOn", term, "is not a status code")
				continue
			}
			out.Codes = append(out.Codes, code)
			continue
		}
		if !retryTerm(term) {
			p.failValue(field+".retryOn", term, "is not a condition of retries")
			continue
		}
		out.On = append(out.On, term)
	}
	if len(out.Codes) > 0 && !slices.Contains(out.On, retryCodes) {
		out.On = append(out.On, retryCodes)
	}
	return out
}

// retryTerm knows Envoy's conditions (router filter, x-envoy-retry-on and x-envoy-retry-grpc-on).
func retryTerm(s string) bool {
	switch s {
	case "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx",
		"refused-stream", retryCodes, "retriable-headers", "http3-post-connect-failure",
		"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable":
		return true
	}
	return false
}

// locality reads the preference for places. What is inconsistent in itself has no effect at all.
func (p *problems) locality(field string, l *networkingapi.LocalityLoadBalancerSetting) *model.LocalityLB {
	if l == nil {
		return nil
	}
	out := &model.LocalityLB{Priority: l.GetFailoverPriority()}
	if e := l.GetEnabled(); e != nil {
		on := e.GetValue()
		out.Enabled = &on
	}
	if len(l.GetDistribute()) > 0 && len(l.GetFailover())+len(l.GetFailoverPriority()) > 0 {
		p.fail(field, "distribute stands beside failover or failoverPriority")
		return nil
	}
	for i, d := range l.GetDistribute() {
		sum := uint32(0)
		for _, w := range d.GetTo() {
			sum += min(w, 101) // so that nothing overflows into 100
		}
		if d.GetFrom() == "" || sum != 100 {
			p.fail(fmt.Sprintf("%s.distribute[%d]", field, i), "from is empty, or the weights in to do not add up to 100")
			return nil
		}
		out.Distribute = append(out.Distribute, model.LocalityShare{From: d.GetFrom(), To: maps.Clone(d.GetTo())})
	}
	for i, f := range l.GetFailover() {
		if f.GetFrom() == f.GetTo() || f.GetFrom() == "" || f.GetTo() == "" || strings.ContainsAny(f.GetFrom()+f.GetTo(), "/*") {
			p.fail(fmt.Sprintf("%s.failover[%d]", field, i), "from and to are not two regions")
			return nil
		}
		if out.Failover == nil {
			out.Failover = map[string]string{}
		}
		out.Failover[f.GetFrom()] = f.GetTo()
	}
	return out
}
