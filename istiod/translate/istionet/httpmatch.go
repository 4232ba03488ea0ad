package istionet

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// claimPrefix begins the name of a header that stands for a claim of a validated token.
const claimPrefix = "@request.auth.claims"

// presentRegex is no expression: Istio takes it for "present".
const presentRegex = "*"

func (o *object) httpMatches(field string, in []*networking.HTTPMatchRequest) []model.HTTPMatch {
	var out []model.HTTPMatch
	for i, m := range in {
		at := fmt.Sprintf("%s[%d]", field, i)
		if m == nil {
			o.fail(at, "is null")
			continue
		}
		out = append(out, o.httpMatch(at, m))
	}
	return out
}

func (o *object) httpMatch(field string, m *networking.HTTPMatchRequest) model.HTTPMatch {
	out := model.HTTPMatch{
		Path:            o.uri(field+".uri", m.GetUri(), m.GetIgnoreUriCase()),
		Method:          o.optional(field+".method", m.GetMethod()),
		Scheme:          o.optional(field+".scheme", m.GetScheme()),
		Authority:       o.optional(field+".authority", m.GetAuthority()),
		SourceLabels:    o.labels(field+".sourceLabels", m.GetSourceLabels()),
		SourceNamespace: o.namespace(field+".sourceNamespace", m.GetSourceNamespace()),
		Gateways:        o.gateways(field+".gateways", m.GetGateways()),
	}
	if m.GetPort() != 0 {
		out.Port = o.port(field+".port", m.GetPort())
	}
	o.headerMatches(field+".headers", m.GetHeaders(), false, &out)
	o.headerMatches(field+".withoutHeaders", m.GetWithoutHeaders(), true, &out)
	for _, name := range slices.Sorted(maps.Keys(m.GetQueryParams())) {
		at := field + ".queryParams[" + name + "]"
		if name == "" {
			o.fail(at, "has no name")
		}
		out.Query = append(out.Query, model.NamedMatch{Name: name, StringMatch: o.named(at, m.GetQueryParams()[name])})
	}
	return out
}

// headerMatches reads a map of headers, in order of name; those for claims are kept apart.
func (o *object) headerMatches(field string, in map[string]*networking.StringMatch, not bool, out *model.HTTPMatch) {
	for _, name := range slices.Sorted(maps.Keys(in)) {
		at := field + "[" + name + "]"
		m := model.NamedMatch{Name: strings.ToLower(name), Not: not}
		if in[name] == nil && !not {
			// A null value is a mistake in writing "{}", says Istio.
			o.fail(at, "is null")
			continue
		}
		m.StringMatch = o.named(at, in[name])
		if path, ok := claim(name); ok {
			m.Name = path
			out.Claims = append(out.Claims, m)
			continue
		}
		switch m.Name {
		case ":method", ":scheme", ":authority", ":path", ":status":
		default:
			o.token(at, name)
		}
		out.Headers = append(out.Headers, m)
	}
}

// claim reads the name of a header that stands for a claim: its elements are separated by dots or in brackets.
func claim(name string) (string, bool) {
	if len(name) < len(claimPrefix) || !strings.EqualFold(name[:len(claimPrefix)], claimPrefix) {
		return "", false
	}
	rest := name[len(claimPrefix):]
	switch {
	case len(rest) > 1 && rest[0] == '.':
		return rest[1:], true
	case len(rest) > 2 && rest[0] == '[' && rest[len(rest)-1] == ']':
		if strings.Contains(rest, ".") {
			return rest, true
		}
		return strings.ReplaceAll(rest[1:len(rest)-1], "][", "."), true
	}
	return "", false
}

func (o *object) uri(field string, m *networking.StringMatch, ignoreCase bool) *model.StringMatch {
	out := &model.StringMatch{IgnoreCase: ignoreCase}
	switch k := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		out.Value = k.Exact
	case *networking.StringMatch_Prefix:
		// An empty prefix is allowed here alone, and every path begins with a slash.
		out.Kind, out.Value = model.MatchPrefix, k.Prefix
		if k.Prefix == "" {
			out.Value = "/"
		}
	case *networking.StringMatch_Regex:
		o.regex(field+".regex", k.Regex)
		out.Kind, out.Value = model.MatchRegex, k.Regex
	default:
		return nil
	}
	return out
}

// optional reads a match of what every request has: no condition matches everything.
func (o *object) optional(field string, m *networking.StringMatch) *model.StringMatch {
	if m.GetMatchType() == nil {
		return nil
	}
	out := o.text(field, m)
	return &out
}

// named reads a match of what a request may lack: no condition asks for its presence.
func (o *object) named(field string, m *networking.StringMatch) model.StringMatch {
	if m.GetMatchType() == nil || m.GetRegex() == presentRegex {
		return model.StringMatch{Kind: model.MatchPresent}
	}
	return o.text(field, m)
}

func (o *object) text(field string, m *networking.StringMatch) model.StringMatch {
	switch k := m.GetMatchType().(type) {
	case *networking.StringMatch_Prefix:
		if k.Prefix == "" {
			o.fail(field+".prefix", "is empty")
		}
		return model.StringMatch{Kind: model.MatchPrefix, Value: k.Prefix}
	case *networking.StringMatch_Regex:
		o.regex(field+".regex", k.Regex)
		return model.StringMatch{Kind: model.MatchRegex, Value: k.Regex}
	}
	return model.StringMatch{Value: m.GetExact()}
}

func (o *object) namespace(field, ns string) string {
	if ns != "" && !isLabel(ns) {
		o.fail(field, "%q is not a namespace", ns)
	}
	return ns
}

// token holds a header's or method's name to the form of RFC 9110, section 5.6.2.
func (o *object) token(field, s string) {
	const special = "!#$%&'*+-.^_`|~"
	if s == "" {
		o.fail(field, "has no name")
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && strings.IndexByte(special, c) < 0 {
			o.fail(field, "%q has a character that such names have not", s)
			return
		}
	}
}
