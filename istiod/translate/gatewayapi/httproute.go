package gatewayapi

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// Status codes that a rule may be retried on (Gateway API, HTTPRouteRetryStatusCode).
const (
	minRetryCode = 400
	maxRetryCode = 599
	// defaultAttempts is how often is tried again if the route does not say: Istio's default.
	defaultAttempts = 2
)

// termRetriableCodes makes Envoy look at the listed codes.
const termRetriableCodes = "retriable-status-codes"

// HTTPRoute reads an HTTPRoute.
func HTTPRoute(cfg translate.Config, r *gwv1.HTTPRoute) *model.Route {
	t, out := newRoute(model.KindHTTPRoute, cfg, r, &r.Spec.CommonRouteSpec, r.Spec.Hostnames)
	for i := range r.Spec.Rules {
		rt := &ruleTranslation{routeTranslation: t, index: i, field: fmt.Sprintf("spec.rules[%d]", i)}
		rt.http(&r.Spec.Rules[i])
		out.HTTP = append(out.HTTP, rt.out)
	}
	return out
}

// ruleTranslation is one rule while it is read. The first thing that is wrong is the rule's condition.
type ruleTranslation struct {
	*routeTranslation
	index int
	field string
	out   model.HTTPRule
	// bad is set by a match that cannot be read, until it is left out; unread, if none was read yet.
	bad, unread bool
}

func (t *ruleTranslation) refuse(c *model.Condition) {
	if c != nil && t.out.Invalid == nil {
		t.out.Invalid = c
	}
}

// refuseMatch is refuse for what stands in a match.
func (t *ruleTranslation) refuseMatch(c *model.Condition) {
	if c != nil {
		t.bad = true
		t.refuse(c)
	}
}

func (t *ruleTranslation) http(r *gwv1.HTTPRouteRule) {
	t.out.Name = string(or(r.Name, ""))
	for i := range r.Matches {
		t.alternative(t.match(&r.Matches[i], fmt.Sprintf("%s.matches[%d]", t.field, i)))
	}
	t.filters(r.Filters, t.field+".filters")
	for i, b := range r.BackendRefs {
		field := fmt.Sprintf("%s.backendRefs[%d]", t.field, i)
		backend := t.weighted(b.BackendRef, field)
		for j := range b.Filters {
			t.refuse(backendFilter(&backend, &b.Filters[j], fmt.Sprintf("%s.filters[%d]", field, j)))
		}
		t.out.Backends = append(t.out.Backends, backend)
	}
	if t.out.Redirect != nil && len(t.out.Backends) > 0 {
		t.refuse(notAccepted(gwv1.RouteReasonIncompatibleFilters, t.field+".backendRefs: a rule that redirects has no backends"))
	}
	t.timeouts(r.Timeouts)
	t.retry(r.Retry)
	t.session(r.SessionPersistence)
	t.prefixReplacement()
	t.finish()
}

// alternative adds a match, or leaves it out if it could not be read. A rule of which none is left takes nothing:
// without matches it would take every request.
func (t *ruleTranslation) alternative(m model.HTTPMatch) {
	takesNothing := model.HTTPMatch{Headers: []model.NamedMatch{{Name: ":method", StringMatch: model.StringMatch{Kind: model.MatchPresent}, Not: true}}}
	none := len(t.out.Matches) == 1 && t.unread
	switch {
	case t.bad && len(t.out.Matches) == 0:
		t.out.Matches, t.unread = []model.HTTPMatch{takesNothing}, true
	case !t.bad && none:
		t.out.Matches, t.unread = []model.HTTPMatch{m}, false
	case !t.bad:
		t.out.Matches = append(t.out.Matches, m)
	}
	t.bad = false
}

// finish keeps of an invalid rule what status and routing need, so that no bad value gets as far as a proxy.
func (t *ruleTranslation) finish() {
	if t.out.Invalid == nil {
		return
	}
	for i := range t.out.Backends {
		t.out.Backends[i].Request, t.out.Backends[i].Response = model.HeaderOps{}, model.HeaderOps{}
	}
	t.out = model.HTTPRule{Name: t.out.Name, Matches: t.out.Matches, Backends: t.out.Backends, Invalid: t.out.Invalid}
}

// prefixReplacement: only what a prefix match took can be replaced (Gateway API, HTTPPathModifier.replacePrefixMatch).
func (t *ruleTranslation) prefixReplacement() {
	replaces := t.out.Rewrite != nil && t.out.Rewrite.Prefix != nil ||
		t.out.Redirect != nil && t.out.Redirect.Path != nil && t.out.Redirect.Path.Prefix != nil
	if !replaces {
		return
	}
	for i, m := range t.out.Matches {
		if m.Path != nil && m.Path.Kind != model.MatchSegments {
			t.refuse(unsupported(fmt.Sprintf("%s.matches[%d].path.type", t.field, i), "ReplacePrefixMatch needs PathPrefix"))
		}
	}
}

func (t *ruleTranslation) match(m *gwv1.HTTPRouteMatch, field string) model.HTTPMatch {
	out := model.HTTPMatch{Path: t.path(m.Path, field+".path")}
	if m.Method != nil {
		if !isMethod(*m.Method) {
			t.refuseMatch(unsupported(field+".method", "%q is unknown", *m.Method))
		}
		out.Method = &model.StringMatch{Value: string(*m.Method)}
	}
	for i, h := range m.Headers {
		// "If multiple entries specify equivalent header names, only the first […] MUST be considered."
		name := strings.ToLower(string(h.Name))
		t.refuseMatch(token(fmt.Sprintf("%s.headers[%d].name", field, i), name))
		if slices.ContainsFunc(out.Headers, func(o model.NamedMatch) bool { return o.Name == name }) {
			continue
		}
		out.Headers = append(out.Headers, model.NamedMatch{Name: name,
			StringMatch: t.value(string(or(h.Type, gwv1.HeaderMatchExact)), h.Value, fmt.Sprintf("%s.headers[%d]", field, i))})
	}
	for i, q := range m.QueryParams {
		name := string(q.Name)
		if name == "" {
			t.refuseMatch(unsupported(fmt.Sprintf("%s.queryParams[%d].name", field, i), "is empty"))
		}
		if slices.ContainsFunc(out.Query, func(o model.NamedMatch) bool { return o.Name == name }) {
			continue
		}
		out.Query = append(out.Query, model.NamedMatch{Name: name,
			StringMatch: t.value(string(or(q.Type, gwv1.QueryParamMatchExact)), q.Value, fmt.Sprintf("%s.queryParams[%d]", field, i))})
	}
	return out
}

// value reads the two ways to compare that headers, parameters and gRPC's headers share.
func (t *ruleTranslation) value(kind, value, field string) model.StringMatch {
	switch kind {
	case string(gwv1.HeaderMatchExact):
		return model.StringMatch{Value: value}
	case string(gwv1.HeaderMatchRegularExpression):
		t.refuseMatch(regex(field+".value", value))
		return model.StringMatch{Kind: model.MatchRegex, Value: value}
	}
	t.refuseMatch(unsupported(field+".type", "%q is unknown", kind))
	return model.StringMatch{Value: value}
}

func (t *ruleTranslation) path(p *gwv1.HTTPPathMatch, field string) *model.StringMatch {
	if p == nil {
		return nil
	}
	value := or(p.Value, "/")
	switch kind := or(p.Type, gwv1.PathMatchPathPrefix); kind {
	case gwv1.PathMatchExact:
		t.refuseMatch(plainPath(field+".value", value))
		return &model.StringMatch{Value: value}
	case gwv1.PathMatchPathPrefix:
		t.refuseMatch(plainPath(field+".value", value))
		// A trailing slash is ignored: whole elements are compared.
		if value = strings.TrimRight(value, "/"); value == "" {
			value = "/"
		}
		return &model.StringMatch{Kind: model.MatchSegments, Value: value}
	case gwv1.PathMatchRegularExpression:
		t.refuseMatch(regex(field+".value", value))
		return &model.StringMatch{Kind: model.MatchRegex, Value: value}
	default:
		t.refuseMatch(unsupported(field+".type", "%q is unknown", kind))
		return &model.StringMatch{Value: value}
	}
}

// plainPath holds a path to the API's form: the proxy normalises what comes in, so that other forms would match nothing.
func plainPath(field, path string) *model.Condition {
	if !strings.HasPrefix(path, "/") {
		return unsupported(field, "%q does not begin with a slash", path)
	}
	for _, part := range []string{"//", "/./", "/../", "%2f", "%2F", "#", "?"} {
		if strings.Contains(path, part) {
			return unsupported(field, "%q contains %q", path, part)
		}
	}
	if strings.HasSuffix(path, "/.") || strings.HasSuffix(path, "/..") {
		return unsupported(field, "%q ends in a relative element", path)
	}
	return nil
}

func isMethod(m gwv1.HTTPMethod) bool {
	switch string(m) {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodConnect,
		http.MethodOptions, http.MethodTrace, http.MethodPatch:
		return true
	}
	return false
}

func (t *ruleTranslation) timeouts(in *gwv1.HTTPRouteTimeouts) {
	if in == nil {
		return
	}
	if in.Request != nil {
		d, c := parseDuration(t.field+".timeouts.request", *in.Request)
		t.refuse(c)
		t.out.Timeout = &d
	}
	if in.BackendRequest != nil {
		d, c := parseDuration(t.field+".timeouts.backendRequest", *in.BackendRequest)
		t.refuse(c)
		t.out.BackendTimeout = &d
	}
	// Zero is no timeout and longer than every other (GEP-1742).
	if t.out.Timeout != nil && t.out.BackendTimeout != nil && *t.out.Timeout > 0 && *t.out.BackendTimeout > *t.out.Timeout {
		t.refuse(unsupported(t.field+".timeouts.backendRequest", "is longer than the whole request's"))
	}
}

func (t *ruleTranslation) retry(in *gwv1.HTTPRouteRetry) {
	if in == nil {
		return
	}
	field := t.field + ".retry"
	out := &model.Retry{Attempts: or(in.Attempts, defaultAttempts)}
	t.out.Retry = out
	if out.Attempts < 0 {
		t.refuse(unsupported(field+".attempts", "%d is negative", out.Attempts))
	}
	// "Implementations SHOULD retry on connection errors (disconnect, reset, timeout, TCP failure)" if a rule has retries.
	out.On = []string{"connect-failure", "refused-stream", "reset", "unavailable", "cancelled"}
	for i, c := range in.Codes {
		if c < minRetryCode || c > maxRetryCode {
			t.refuse(unsupported(fmt.Sprintf("%s.codes[%d]", field, i), "%d is not within %d and %d", c, minRetryCode, maxRetryCode))
			continue
		}
		out.Codes = append(out.Codes, int(c))
	}
	if len(out.Codes) > 0 {
		out.On = append(out.On, termRetriableCodes)
	}
	if in.Backoff != nil {
		d, c := parseDuration(field+".backoff", *in.Backoff)
		t.refuse(c)
		out.Backoff = d
	}
}
