package istiopolicy

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/ambit-mesh/ambit/api/ratelimit/v1alpha1"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

const (
	// minPer is the shortest interval that Envoy's local rate limit takes.
	minPer = 50 * time.Millisecond
	// maxPer keeps a bucket's refill within what anybody waits for.
	maxPer = 24 * time.Hour
	// statusTooMany is what refused requests get by default (RFC 6585 section 4).
	statusTooMany = 429
	// limitTimeout is how long a server may take by default. Envoy's own 20 ms suit a server that is allowed to be missed;
	// ours refuses without an answer, and is asked through a tunnel.
	limitTimeout = 100 * time.Millisecond
	// maxRegexBytes bounds a regular expression.
	maxRegexBytes = 1024
	// maxCombinations bounds what matches with several conditions each multiply out to: Envoy has no "or" of "ands" here,
	// so that a proxy gets one condition for each choice of one condition out of every match.
	maxCombinations = 64
)

// RateLimit translates Ambit's own kind. The result is never nil. A limit that holds an error is left out: with the broken
// part dropped it would refuse requests that nobody meant.
func RateLimit(cfg translate.Config, r *v1alpha1.RateLimit) (*model.RateLimit, error) {
	p := &problems{}
	out := &model.RateLimit{Meta: meta(model.KindRateLimit, r.ObjectMeta)}
	var refs []target
	for i, t := range r.Spec.TargetRefs {
		group := t.Group
		if group == "" {
			group = groupOf(t.Kind)
		}
		refs = append(refs, target{fmt.Sprintf("spec.targetRefs[%d]", i), group, t.Kind, "", t.Name})
	}
	out.Targets = p.targets(cfg, r.Namespace, refs)
	if len(r.Spec.Local) == 0 && r.Spec.Global == nil {
		p.fail("spec", "has neither local nor global limits")
	}
	names := map[string]bool{}
	for i := range r.Spec.Local {
		field := fmt.Sprintf("spec.local[%d]", i)
		before := len(p.errs)
		l := p.local(cfg, field, &r.Spec.Local[i])
		if names[l.Name] {
			p.failValue(field+".name", l.Name, "an earlier limit has the same name")
		}
		if len(p.errs) == before {
			names[l.Name] = true
			out.Local = append(out.Local, l)
		}
	}
	if g := r.Spec.Global; g != nil {
		before := len(p.errs)
		if global := p.global("spec.global", g); len(p.errs) == before {
			out.Global = global
		}
	}
	return out, p.err()
}

func groupOf(kind string) string {
	switch kind {
	case targetGateway, targetGatewayClass:
		return groupGateway
	case targetServiceEntry:
		return groupIstio
	}
	return ""
}

func (p *problems) local(cfg translate.Config, field string, l *v1alpha1.LocalLimit) model.LocalLimit {
	out := model.LocalLimit{
		Name: l.Name, PerSource: l.PerSource, PerHeader: p.header(field+".perHeader", l.PerHeader), DryRun: l.DryRun,
		Requests: uint32(max(l.Requests, 0)), Burst: uint32(max(l.Requests, 0)), Per: l.Per.Duration, Status: statusTooMany,
	}
	p.labelOf(field+".name", l.Name)
	if l.Requests < 1 {
		p.failValue(field+".requests", fmt.Sprint(l.Requests), "is not positive")
	}
	if out.Per < minPer || out.Per > maxPer {
		p.failValue(field+".per", out.Per.String(), fmt.Sprintf("is not between %s and %s", minPer, maxPer))
	}
	if l.Burst != nil {
		if out.Burst = uint32(max(*l.Burst, 0)); *l.Burst < 1 {
			p.failValue(field+".burst", fmt.Sprint(*l.Burst), "is not positive")
		}
	}
	if l.Status != nil {
		out.Status = int(*l.Status)
		// A proxy takes the codes that Envoy names.
		if _, ok := envoytype.StatusCode_name[*l.Status]; !ok || out.Status < 400 {
			p.failValue(field+".status", fmt.Sprint(*l.Status), "is not the status of an error")
		}
	}
	combinations := 1
	for i := range l.Match {
		m := p.match(cfg, fmt.Sprintf("%s.match[%d]", field, i), &l.Match[i])
		combinations = min(combinations*max(conditions(m), 1), maxCombinations+1)
		out.Matches = append(out.Matches, m)
	}
	if len(out.Matches) > 1 && combinations > maxCombinations {
		p.fail(field+".match", "has too many conditions: their numbers, multiplied, are above %d; write several limits", maxCombinations)
	}
	return out
}

// conditions counts what must hold at once.
func conditions(m model.LimitMatch) int {
	n := len(m.Headers)
	if m.Path != nil {
		n++
	}
	if m.Method != nil {
		n++
	}
	if len(m.Sources) > 0 {
		n++
	}
	return n
}

// labelOf checks a name that becomes part of metrics and of names in the proxy.
func (p *problems) labelOf(field, s string) {
	if !dnsName(s) || strings.ContainsAny(s, "._") || strings.ToLower(s) != s {
		p.failValue(field, s, "wants at most 63 lower-case letters, digits and hyphens between them")
	}
}

func (p *problems) match(cfg translate.Config, field string, m *v1alpha1.Match) model.LimitMatch {
	out := model.LimitMatch{}
	if m.Path != nil {
		s, ok := p.compare(field+".path", *m.Path)
		if !ok {
			p.fail(field+".path", "wants one of exact, prefix and regex")
		}
		out.Path = &s
	}
	if m.Method != "" {
		if !headerName(m.Method) || strings.HasPrefix(m.Method, ":") {
			p.failValue(field+".method", m.Method, "is not a method")
		}
		out.Method = &model.StringMatch{Value: m.Method}
	}
	for i, h := range m.Headers {
		at := fmt.Sprintf("%s.headers[%d]", field, i)
		if h.Name == "" {
			p.fail(at+".name", "empty")
		}
		s, ok := p.compare(at, h.StringMatch)
		if !ok {
			s.Kind = model.MatchPresent
		}
		out.Headers = append(out.Headers, model.NamedMatch{Name: p.header(at+".name", h.Name), StringMatch: s, Not: h.Not})
	}
	for i, s := range m.Sources {
		out.Sources = append(out.Sources, p.principal(cfg, fmt.Sprintf("%s.sources[%d]", field, i), s))
	}
	if m.Path == nil && m.Method == "" && len(m.Headers)+len(m.Sources) == 0 {
		p.fail(field, "empty; leave out match for every request")
	}
	return out
}

// compare reports false if no way to compare is set, and fails if several are.
func (p *problems) compare(field string, s v1alpha1.StringMatch) (out model.StringMatch, ok bool) {
	n := 0
	set := func(kind model.MatchKind, value string) {
		if value != "" {
			out = model.StringMatch{Kind: kind, Value: value}
			n++
		}
	}
	set(model.MatchExact, s.Exact)
	set(model.MatchPrefix, s.Prefix)
	set(model.MatchRegex, s.Regex)
	if n > 1 {
		p.fail(field, "sets more than one of exact, prefix and regex")
	}
	if s.Regex == "" {
		return out, n > 0
	}
	if len(s.Regex) > maxRegexBytes {
		p.fail(field+".regex", "is longer than %d bytes", maxRegexBytes)
	} else if _, err := regexp.Compile(s.Regex); err != nil { // Go's and Envoy's RE2 have one syntax
		p.fail(field+".regex", "%w", err)
	}
	return out, true
}

// principal reads a source in any of its forms as a pattern of principals.
func (p *problems) principal(cfg translate.Config, field, s string) string {
	rest := strings.TrimPrefix(s, spiffeScheme)
	ns, account, _ := strings.Cut(rest, "/")
	// Two parts are a namespace, which has no dot, and an account, in the mesh's own trust domain.
	if rest == s && strings.Count(rest, "/") == 1 && ns != "" && account != "" && !strings.Contains(ns, ".") {
		if ns != "*" && strings.Contains(ns, "*") || account != "*" && strings.Contains(account, "*") {
			p.failValue(field, s, "an asterisk stands for a whole namespace or account")
		}
		switch {
		case ns == "*" && account == "*":
			return cfg.TrustDomain + "/*"
		case ns == "*":
			return "*/sa/" + account
		}
		return cfg.TrustDomain + "/ns/" + ns + "/sa/" + account
	}
	if rest == "" || rest != "*" && !strings.Contains(rest, "/") || !oneAsterisk(rest) {
		p.failValue(field, s, "is neither a SPIFFE id, nor a pattern of one, nor namespace/account")
	}
	return rest
}

func (p *problems) global(field string, g *v1alpha1.GlobalLimit) *model.GlobalLimit {
	out := &model.GlobalLimit{
		Backend: p.server(field+".service", g.Service), Domain: g.Domain, Timeout: limitTimeout, FailOpen: g.FailOpen,
	}
	if g.Domain == "" {
		p.fail(field+".domain", "empty")
	}
	if g.Timeout != nil {
		if out.Timeout = g.Timeout.Duration; out.Timeout <= 0 {
			p.failValue(field+".timeout", out.Timeout.String(), "is not positive")
		}
	}
	if len(g.Descriptors) == 0 {
		p.fail(field+".descriptors", "empty, so that the server would never be asked")
	}
	for i, d := range g.Descriptors {
		var entries []model.LimitEntry
		at := fmt.Sprintf("%s.descriptors[%d].entries", field, i)
		if len(d.Entries) == 0 {
			p.fail(at, "empty")
		}
		for j, e := range d.Entries {
			entries = append(entries, p.entry(fmt.Sprintf("%s[%d]", at, j), e))
		}
		out.Descriptors = append(out.Descriptors, entries)
	}
	return out
}

func (p *problems) server(field string, s v1alpha1.ServerReference) model.Destination {
	if !dnsName(s.Host) {
		p.failValue(field+".host", s.Host, "is not a host")
	}
	if s.Port < 1 || s.Port > 65535 {
		p.failValue(field+".port", fmt.Sprint(s.Port), "is not a port")
		return model.Destination{Host: s.Host}
	}
	return model.Destination{Host: s.Host, Port: uint16(s.Port)}
}

func (p *problems) entry(field string, e v1alpha1.Entry) model.LimitEntry {
	out := model.LimitEntry{Key: e.Key, Value: e.Value, Header: p.header(field+".header", e.Header)}
	if e.Key == "" {
		p.fail(field+".key", "empty")
	}
	n := 0
	for _, s := range []string{e.Value, e.Header, string(e.From)} {
		if s != "" {
			n++
		}
	}
	if n != 1 {
		p.fail(field, "sets %d of value, header and from, not one", n)
	}
	switch e.From {
	case "":
	case v1alpha1.FromPath:
		out.Path = true
	case v1alpha1.FromMethod:
		out.Method = true
	case v1alpha1.FromSourcePrincipal:
		out.SourcePrincipal = true
	case v1alpha1.FromSourceAddress:
		out.SourceAddress = true
	default:
		p.failValue(field+".from", string(e.From), "is none of Path, Method, SourcePrincipal and SourceAddress")
	}
	return out
}
