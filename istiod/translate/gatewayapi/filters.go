package gatewayapi

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	// defaultCORSMaxAge is what the API says for a filter that does not say it.
	defaultCORSMaxAge = 5 * time.Second
	// everyOrigin stands for all of them in a CORS filter.
	everyOrigin = "*"
	// everyHeader stands for all headers of an authorization server's answer.
	everyHeader = "*"
	// sessionNameBytes of a hash make the name of a session without one: enough to tell apart the routes of a cluster.
	sessionNameBytes = 6
	million          = 1_000_000
)

// filters reads a rule's filters. A filter that is not understood makes the rule answer 500: it "MUST NOT be skipped".
func (t *ruleTranslation) filters(in []gwv1.HTTPRouteFilter, field string) {
	seen := map[gwv1.HTTPRouteFilterType]bool{}
	for i := range in {
		f := &in[i]
		at := fmt.Sprintf("%s[%d]", field, i)
		if seen[f.Type] && f.Type != gwv1.HTTPRouteFilterRequestMirror {
			t.refuse(notAccepted(gwv1.RouteReasonIncompatibleFilters, fmt.Sprintf("%s: a second filter of type %s", at, f.Type)))
			continue
		}
		seen[f.Type] = true
		t.filter(f, at)
	}
	if seen[gwv1.HTTPRouteFilterRequestRedirect] && seen[gwv1.HTTPRouteFilterURLRewrite] {
		t.refuse(notAccepted(gwv1.RouteReasonIncompatibleFilters, field+": RequestRedirect and URLRewrite exclude each other"))
	}
}

func (t *ruleTranslation) filter(f *gwv1.HTTPRouteFilter, field string) {
	switch {
	case f.Type == gwv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
		t.out.Request = t.headers(f.RequestHeaderModifier, field+".requestHeaderModifier")
	case f.Type == gwv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
		t.out.Response = t.headers(f.ResponseHeaderModifier, field+".responseHeaderModifier")
	case f.Type == gwv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil:
		t.redirect(f.RequestRedirect, field+".requestRedirect")
	case f.Type == gwv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
		t.out.Authority = t.hostname(f.URLRewrite.Hostname, field+".urlRewrite.hostname")
		t.out.Rewrite = t.pathModifier(f.URLRewrite.Path, field+".urlRewrite.path")
	case f.Type == gwv1.HTTPRouteFilterRequestMirror && f.RequestMirror != nil:
		t.mirror(f.RequestMirror, field+".requestMirror")
	case f.Type == gwv1.HTTPRouteFilterCORS && f.CORS != nil:
		t.out.CORS = t.cors(f.CORS, field+".cors")
	case f.Type == gwv1.HTTPRouteFilterExternalAuth && f.ExternalAuth != nil:
		t.externalAuth(f.ExternalAuth, field+".externalAuth")
	default:
		t.refuse(unsupportedFilter(string(f.Type), field))
	}
}

// unsupportedFilter is the verdict on a type that we do not know, and on one without its settings.
func unsupportedFilter(kind, field string) *model.Condition {
	return unsupported(field+".type", "%q is not supported, or its settings are missing", kind)
}

// backendFilter reads a filter of one backend. Only headers are edited there; the rest is for the whole rule.
func backendFilter(b *model.Backend, f *gwv1.HTTPRouteFilter, field string) *model.Condition {
	t := &ruleTranslation{}
	switch {
	case f.Type == gwv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
		b.Request = t.headers(f.RequestHeaderModifier, field+".requestHeaderModifier")
	case f.Type == gwv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
		b.Response = t.headers(f.ResponseHeaderModifier, field+".responseHeaderModifier")
	default:
		return unsupported(field+".type", "%q is not supported for a single backend, or its settings are missing", f.Type)
	}
	return t.out.Invalid
}

func (t *ruleTranslation) headers(in *gwv1.HTTPHeaderFilter, field string) model.HeaderOps {
	out := model.HeaderOps{Set: t.headerList(in.Set, field+".set"), Add: t.headerList(in.Add, field+".add")}
	for i, name := range in.Remove {
		t.refuse(headerName(fmt.Sprintf("%s.remove[%d]", field, i), name))
		out.Remove = append(out.Remove, name)
	}
	return out
}

// headerList: "Subsequent entries with an equivalent header name MUST be ignored."
func (t *ruleTranslation) headerList(in []gwv1.HTTPHeader, field string) []model.Header {
	var out []model.Header
	for i, h := range in {
		if slices.ContainsFunc(out, func(o model.Header) bool { return strings.EqualFold(o.Name, string(h.Name)) }) {
			continue
		}
		at := fmt.Sprintf("%s[%d]", field, i)
		t.refuse(headerName(at+".name", string(h.Name)))
		t.refuse(text(at+".value", h.Value))
		// The API's values are literal; the model's are format strings.
		out = append(out, model.Header{Name: string(h.Name), Value: strings.ReplaceAll(h.Value, "%", "%%")})
	}
	return out
}

// headerName refuses what the proxy decides itself: a route must not become another one by its headers.
func headerName(field, name string) *model.Condition {
	if strings.HasPrefix(name, ":") || strings.EqualFold(name, "host") {
		return unsupported(field, "the header %q cannot be changed; URLRewrite changes host and path", name)
	}
	return token(field, name)
}

func (t *ruleTranslation) redirect(in *gwv1.HTTPRequestRedirectFilter, field string) {
	out := &model.Redirect{
		Scheme: or(in.Scheme, ""),
		Host:   t.hostname(in.Hostname, field+".hostname"),
		Path:   t.pathModifier(in.Path, field+".path"),
		Code:   or(in.StatusCode, http.StatusFound),
	}
	t.out.Redirect = out
	switch out.Scheme {
	case "", "http", "https":
	default:
		t.refuse(unsupported(field+".scheme", "%q is neither http nor https", out.Scheme))
	}
	switch out.Code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		t.refuse(unsupported(field+".statusCode", "%d is not a redirect that is supported", out.Code))
	}
	switch {
	case in.Port != nil && (*in.Port < 1 || *in.Port > maxPort):
		t.refuse(unsupported(field+".port", "%d is not a port", *in.Port))
	case in.Port != nil:
		out.Port = uint16(*in.Port)
	case out.Scheme == "":
		// "If redirect scheme is empty, the redirect port MUST be the Gateway Listener port."
		out.PortFromRequest = true
	}
}

// hostname reads a name without wildcard.
func (t *ruleTranslation) hostname(h *gwv1.PreciseHostname, field string) string {
	if h == nil {
		return ""
	}
	name := strings.ToLower(string(*h))
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		t.refuse(unsupported(field, "%q is not a DNS name", *h))
	}
	return name
}

func (t *ruleTranslation) pathModifier(in *gwv1.HTTPPathModifier, field string) *model.PathRewrite {
	if in == nil {
		return nil
	}
	switch {
	case in.Type == gwv1.FullPathHTTPPathModifier && in.ReplaceFullPath != nil:
		full := *in.ReplaceFullPath
		if full == "" {
			full = "/"
		}
		t.refuse(text(field+".replaceFullPath", full))
		if full[0] != '/' {
			t.refuse(unsupported(field+".replaceFullPath", "%q does not begin with a slash", full))
		}
		return &model.PathRewrite{Full: &full}
	case in.Type == gwv1.PrefixMatchHTTPPathModifier && in.ReplacePrefixMatch != nil:
		// A trailing slash is ignored, and nothing is left of "/": the match's prefix is cut off.
		prefix := strings.TrimRight(*in.ReplacePrefixMatch, "/")
		if prefix == "" {
			prefix = "/"
		}
		t.refuse(text(field+".replacePrefixMatch", prefix))
		return &model.PathRewrite{Prefix: &prefix}
	}
	t.refuse(unsupported(field+".type", "%q is unknown, or its value is missing", in.Type))
	return nil
}

func (t *ruleTranslation) mirror(in *gwv1.HTTPRequestMirrorFilter, field string) {
	out := model.Mirror{Backend: t.backend(in.BackendRef, field+".backendRef"), Share: model.Fraction{Numerator: 100, Denominator: 100}}
	switch {
	case in.Percent != nil && in.Fraction != nil:
		t.refuse(unsupported(field+".fraction", "excludes percent"))
	case in.Percent != nil:
		out.Share = t.fraction(*in.Percent, 100, field+".percent")
	case in.Fraction != nil:
		out.Share = t.fraction(in.Fraction.Numerator, or(in.Fraction.Denominator, 100), field+".fraction")
	}
	t.out.Mirrors = append(t.out.Mirrors, out)
}

func (t *ruleTranslation) fraction(n, d int32, field string) model.Fraction {
	if d < 1 || n < 0 || n > d {
		t.refuse(unsupported(field, "%d of %d is not a share", n, d))
		return model.Fraction{Denominator: 100}
	}
	if d == 100 || d == million {
		return model.Fraction{Numerator: uint32(n), Denominator: uint32(d)}
	}
	// Proxies count in hundredths, ten-thousandths and millionths.
	return model.Fraction{Numerator: uint32((int64(n)*million + int64(d)/2) / int64(d)), Denominator: million}
}

func (t *ruleTranslation) cors(in *gwv1.HTTPCORSFilter, field string) *model.CORS {
	out := &model.CORS{Credentials: in.AllowCredentials}
	for i, o := range in.AllowOrigins {
		m, c := origin(fmt.Sprintf("%s.allowOrigins[%d]", field, i), string(o))
		t.refuse(c)
		out.Origins = append(out.Origins, m)
	}
	for i, m := range in.AllowMethods {
		t.refuse(token(fmt.Sprintf("%s.allowMethods[%d]", field, i), string(m)))
		out.Methods = append(out.Methods, string(m))
	}
	for i, h := range in.AllowHeaders {
		t.refuse(token(fmt.Sprintf("%s.allowHeaders[%d]", field, i), string(h)))
		out.AllowHeaders = append(out.AllowHeaders, string(h))
	}
	for i, h := range in.ExposeHeaders {
		t.refuse(token(fmt.Sprintf("%s.exposeHeaders[%d]", field, i), string(h)))
		out.ExposeHeaders = append(out.ExposeHeaders, string(h))
	}
	age := defaultCORSMaxAge
	if in.MaxAge > 0 {
		age = time.Duration(in.MaxAge) * time.Second
	} else if in.MaxAge < 0 {
		t.refuse(unsupported(field+".maxAge", "%d is negative", in.MaxAge))
	}
	out.MaxAge = &age
	return out
}

// origin reads scheme://host[:port], where an asterisk in the host stands for any number of labels (GEP-1767). A
// browser never writes the scheme's own port, so it is left out here too.
func origin(field, o string) (model.StringMatch, *model.Condition) {
	if o == everyOrigin {
		return model.StringMatch{Kind: model.MatchRegex, Value: ".+"}, nil
	}
	scheme, host, ok := strings.Cut(o, "://")
	if !ok || scheme == "" || host == "" || strings.Contains(scheme, "*") || strings.ContainsAny(host, "/?# ") {
		return model.StringMatch{Value: o}, unsupported(field, "%q is not scheme://host", o)
	}
	if name, port, ok := strings.Cut(host, ":"); ok && (scheme == "http" && port == "80" || scheme == "https" && port == "443") {
		host = name
	}
	if !strings.Contains(host, "*") {
		return model.StringMatch{Value: scheme + "://" + host}, nil
	}
	expr := strings.ReplaceAll(regexp.QuoteMeta(scheme+"://"+host), `\*`, `[^/:?#]+`)
	return model.StringMatch{Kind: model.MatchRegex, Value: expr}, regex(field, expr)
}

// externalAuth is fail-closed: whatever is wrong with the filter, or its server, nobody gets through.
func (t *ruleTranslation) externalAuth(in *gwv1.HTTPExternalAuthFilter, field string) {
	b := t.backend(in.BackendRef, field+".backendRef")
	t.refuse(b.Invalid)
	out := &model.ExtAuthz{
		Name:    fmt.Sprintf("%s/%s/%d", strings.ToLower(t.kind), t.meta.Key, t.index),
		Backend: b.Destination,
		Grant:   b.Grant,
	}
	t.out.ExternalAuth = out
	switch in.ExternalAuthProtocol {
	case gwv1.HTTPRouteExternalAuthGRPCProtocol:
		out.GRPC = true
		if in.GRPCAuthConfig != nil {
			out.IncludeHeaders = t.tokens(in.GRPCAuthConfig.AllowedRequestHeaders, field+".grpc.allowedHeaders")
		}
	case gwv1.HTTPRouteExternalAuthHTTPProtocol:
		out.ToUpstreamOnAllow = []string{everyHeader}
		if h := in.HTTPAuthConfig; h != nil {
			if out.PathPrefix = h.Path; h.Path != "" {
				t.refuse(plainPath(field+".http.path", h.Path))
			}
			out.IncludeHeaders = t.tokens(h.AllowedRequestHeaders, field+".http.allowedHeaders")
			if len(h.AllowedResponseHeaders) > 0 {
				out.ToUpstreamOnAllow = t.tokens(h.AllowedResponseHeaders, field+".http.allowedResponseHeaders")
			}
		}
	default:
		t.refuse(unsupported(field+".protocol", "%q is neither GRPC nor HTTP", in.ExternalAuthProtocol))
	}
	if in.ForwardBody != nil {
		out.Body = uint32(in.ForwardBody.MaxSize)
	}
}

func (t *ruleTranslation) tokens(in []string, field string) []string {
	for i, s := range in {
		t.refuse(token(fmt.Sprintf("%s[%d]", field, i), s))
	}
	return in
}

// session reads session persistence (GEP-1619).
func (t *ruleTranslation) session(in *gwv1.SessionPersistence) {
	if in == nil {
		return
	}
	field := t.field + ".sessionPersistence"
	out := &model.SessionPersistence{Name: or(in.SessionName, ""), Path: "/"}
	t.out.Session = out
	if out.Name != "" {
		t.refuse(token(field+".sessionName", out.Name))
	} else {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", t.kind, t.meta.Key, t.index))
		out.Name = "session-" + hex.EncodeToString(sum[:sessionNameBytes])
	}
	var permanent bool
	switch kind := or(in.Type, gwv1.CookieBasedSessionPersistence); kind {
	case gwv1.CookieBasedSessionPersistence:
		permanent = in.CookieConfig != nil && or(in.CookieConfig.LifetimeType, gwv1.SessionCookieLifetimeType) == gwv1.PermanentCookieLifetimeType
	case gwv1.HeaderBasedSessionPersistence:
		out.Header, out.Path = true, ""
	default:
		t.refuse(unsupported(field+".type", "%q is neither Cookie nor Header", kind))
	}
	switch {
	case permanent && in.AbsoluteTimeout == nil:
		t.refuse(unsupported(field+".absoluteTimeout", "is required for a permanent cookie"))
	case permanent:
		d, c := parseDuration(field+".absoluteTimeout", *in.AbsoluteTimeout)
		t.refuse(c)
		out.TTL = d
	case in.AbsoluteTimeout != nil:
		t.refuse(unsupported(field+".absoluteTimeout", "is supported for permanent cookies only: proxies keep no record of sessions"))
	}
}
