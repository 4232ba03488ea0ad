package istionet

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	// maxDirectBody is Istio's bound of a direct response in bytes.
	maxDirectBody = 1 << 20
	// Statuses that a proxy can answer with.
	minStatus = 200
	maxStatus = 599
	// termRetriableCodes makes Envoy look at the listed codes.
	termRetriableCodes = "retriable-status-codes"
)

// defaultRetryOn is what Istio retries on if a policy does not say.
func defaultRetryOn() []string {
	return []string{"connect-failure", "refused-stream", "unavailable", "cancelled"}
}

// isRetryTerm tells whether Envoy knows a term of retry_on (x-envoy-retry-on and x-envoy-retry-grpc-on).
func isRetryTerm(s string) bool {
	switch s {
	case "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx", "refused-stream",
		termRetriableCodes, "retriable-headers", "envoy-ratelimited", "http3-post-connect-failure",
		"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable":
		return true
	}
	return false
}

func (o *object) redirect(field string, r *networking.HTTPRoute) *model.Redirect {
	in := r.GetRedirect()
	if in == nil {
		return nil
	}
	out := &model.Redirect{Scheme: in.GetScheme(), Host: in.GetAuthority(), Code: int(in.GetRedirectCode())}
	switch out.Code {
	case 0:
		out.Code = http.StatusMovedPermanently
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		o.fail(field+".redirectCode", "%d is none of 301, 302, 303, 307 and 308", out.Code)
	}
	switch in.GetScheme() {
	case "", "http", "https":
	default:
		o.fail(field+".scheme", "%q is neither http nor https", in.GetScheme())
	}
	o.headerText(field+".authority", in.GetAuthority())
	o.headerText(field+".uri", in.GetUri())
	o.headerText(field+".prefixRewrite", in.GetPrefixRewrite())
	switch uri, prefix := in.GetUri(), in.GetPrefixRewrite(); {
	case uri != "" && prefix != "":
		o.fail(field+".uri", "excludes prefixRewrite")
	case uri != "":
		out.Path = &model.PathRewrite{Full: &uri}
	case prefix != "":
		out.Path = &model.PathRewrite{Prefix: &prefix}
		for i, m := range r.GetMatch() {
			if _, ok := m.GetUri().GetMatchType().(*networking.StringMatch_Prefix); !ok && m.GetUri() != nil {
				o.fail(field+".prefixRewrite", "match[%d].uri is not a prefix", i)
			}
		}
	}
	switch p := in.GetRedirectPort().(type) {
	case *networking.HTTPRedirect_Port:
		out.Port = o.port(field+".port", p.Port)
	case *networking.HTTPRedirect_DerivePort:
		out.PortFromRequest = p.DerivePort == networking.HTTPRedirect_FROM_REQUEST_PORT
	default:
		if out.Path == nil && out.Host == "" && out.Scheme == "" {
			o.fail(field, "uri, prefixRewrite, authority, scheme or port is required")
		}
	}
	return out
}

// headerText refuses control characters in what becomes a header.
func (o *object) headerText(field, s string) {
	for _, c := range []byte(s) {
		if c < ' ' || c == 0x7f {
			o.fail(field, "%q has a control character", s)
			return
		}
	}
}

func (o *object) direct(field string, in *networking.HTTPDirectResponse) *model.DirectResponse {
	if in == nil {
		return nil
	}
	out := &model.DirectResponse{Status: o.status(field+".status", int64(in.GetStatus()))}
	switch b := in.GetBody().GetSpecifier().(type) {
	case *networking.HTTPBody_String_:
		out.Body = []byte(b.String_)
	case *networking.HTTPBody_Bytes:
		out.Body = b.Bytes
	}
	if len(out.Body) > maxDirectBody {
		o.fail(field+".body", "is longer than %d bytes", maxDirectBody)
	}
	return out
}

func (o *object) status(field string, n int64) int {
	if n < minStatus || n > maxStatus {
		o.fail(field, "%d is not within %d and %d", n, minStatus, maxStatus)
		return 0
	}
	return int(n)
}

func (o *object) rewrite(field string, in *networking.HTTPRewrite) (*model.PathRewrite, string) {
	if in == nil {
		return nil, ""
	}
	uri, re := in.GetUri(), in.GetUriRegexRewrite()
	o.headerText(field+".uri", uri)
	o.headerText(field+".authority", in.GetAuthority())
	switch {
	case uri != "" && re != nil:
		o.fail(field+".uri", "excludes uriRegexRewrite")
	case uri == "" && re == nil && in.GetAuthority() == "":
		o.fail(field, "uri, uriRegexRewrite or authority is required")
	case uri != "":
		return &model.PathRewrite{Prefix: &uri}, in.GetAuthority()
	case re != nil:
		o.regex(field+".uriRegexRewrite.match", re.GetMatch())
		o.headerText(field+".uriRegexRewrite.rewrite", re.GetRewrite())
		o.substitution(field+".uriRegexRewrite.rewrite", re.GetMatch(), re.GetRewrite())
		return &model.PathRewrite{Regex: re.GetMatch(), Substitution: re.GetRewrite()}, in.GetAuthority()
	}
	return nil, in.GetAuthority()
}

// substitution holds a replacement to RE2's form: \1 for a group that the expression has, and \\ for a backslash.
func (o *object) substitution(field, expr, s string) {
	if s == "" {
		o.fail(field, "is required")
	}
	groups := 0
	if re, err := regexp.Compile(expr); err == nil {
		groups = re.NumSubexp()
	}
	for rest := s; ; {
		_, after, found := strings.Cut(rest, `\`)
		if !found {
			return
		}
		if after == "" || after[0] != '\\' && (after[0] < '0' || int(after[0]-'0') > groups) {
			o.fail(field, "%q: a backslash is followed by another, or by the number of one of the %d groups", s, groups)
			return
		}
		rest = after[1:]
	}
}

// mirrors reads mirror, with its percentage beside it, or mirrors. A share of 0 mirrors nothing.
func (o *object) mirrors(field string, r *networking.HTTPRoute) []model.Mirror {
	var out []model.Mirror
	add := func(at string, d *networking.Destination, share model.Fraction) {
		b := model.Backend{Destination: o.destination(at, d), Weight: loneWeight}
		if share.Numerator > 0 {
			out = append(out, model.Mirror{Backend: b, Share: share})
		}
	}
	share := all()
	//lint:ignore SA1019 The old field is still in use.
	if old := r.GetMirrorPercent(); old != nil {
		if share.Numerator = old.GetValue(); share.Numerator > 100 {
			o.fail(field+".mirrorPercent", "%d is more than 100", old.GetValue())
		}
	}
	share = o.percent(field+".mirrorPercentage", r.GetMirrorPercentage(), share)
	if m := r.GetMirror(); m != nil {
		if len(r.GetMirrors()) > 0 {
			o.fail(field+".mirror", "excludes mirrors")
		}
		add(field+".mirror", m, share)
	}
	for i, m := range r.GetMirrors() {
		at := fmt.Sprintf("%s.mirrors[%d]", field, i)
		if m.GetDestination() == nil {
			o.fail(at+".destination", "is required")
			continue
		}
		add(at+".destination", m.GetDestination(), o.percent(at+".percentage", m.GetPercentage(), all()))
	}
	return out
}

func (o *object) fault(field string, in *networking.HTTPFaultInjection) *model.Fault {
	if in == nil {
		return nil
	}
	out := &model.Fault{}
	if in.GetDelay() == nil && in.GetAbort() == nil {
		o.fail(field, "delay or abort is required")
	}
	if d := in.GetDelay(); d != nil {
		out.Delay, out.DelayShare = o.delay(field+".delay", d)
	}
	if a := in.GetAbort(); a != nil {
		// "If left unspecified, no request will be aborted."
		out.AbortShare = o.percent(field+".abort.percentage", a.GetPercentage(), none())
		switch e := a.GetErrorType().(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			out.AbortHTTP = o.status(field+".abort.httpStatus", int64(e.HttpStatus))
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			out.AbortGRPC = o.grpcStatus(field+".abort.grpcStatus", e.GrpcStatus)
		case *networking.HTTPFaultInjection_Abort_Http2Error:
			o.fail(field+".abort.http2Error", "is not supported")
		default:
			out.AbortShare = model.Fraction{}
		}
	}
	return out
}

func (o *object) grpcStatus(field, s string) string {
	var c codes.Code
	if err := c.UnmarshalJSON([]byte(strconv.Quote(s))); err != nil {
		o.fail(field, "%q is not a status of gRPC", s)
	}
	return s
}

func (o *object) retry(field string, in *networking.HTTPRetry) *model.Retry {
	if in == nil {
		return nil
	}
	out := &model.Retry{
		Attempts:      int(in.GetAttempts()),
		PerTry:        o.duration(field+".perTryTimeout", in.GetPerTryTimeout()),
		Backoff:       o.duration(field+".backoff", in.GetBackoff()),
		OtherLocality: in.GetRetryRemoteLocalities().GetValue(),
		// Istio leaves out endpoints that were tried already, unless told not to.
		SameHost: in.GetRetryIgnorePreviousHosts() != nil && !in.GetRetryIgnorePreviousHosts().GetValue(),
	}
	switch {
	case in.GetAttempts() < 0:
		o.fail(field+".attempts", "%d is negative", in.GetAttempts())
	case in.GetAttempts() == 0 && (in.GetPerTryTimeout() != nil || in.GetRetryOn() != "" || in.GetRetryRemoteLocalities() != nil):
		o.fail(field+".attempts", "is 0, which turns retries off, while other fields set them up")
	case in.GetAttempts() == 0:
		return out
	}
	if in.GetRetryOn() == "" {
		out.On = defaultRetryOn()
		return out
	}
	for _, term := range strings.Split(in.GetRetryOn(), ",") {
		term = strings.TrimSpace(term)
		code, err := strconv.Atoi(term)
		switch {
		case err == nil && http.StatusText(code) != "":
			out.Codes = append(out.Codes, code)
		case isRetryTerm(term):
			out.On = append(out.On, term)
		default:
			o.fail(field+".retryOn", "%q is not a condition to retry on", term)
		}
	}
	if len(out.Codes) > 0 && !slices.Contains(out.On, termRetriableCodes) {
		out.On = append(out.On, termRetriableCodes)
	}
	return out
}

// delay reads a delay. "If left unspecified, no request will be delayed", unless by the old whole percentage.
func (o *object) delay(field string, d *networking.HTTPFaultInjection_Delay) (time.Duration, model.Fraction) {
	share := none()
	//lint:ignore SA1019 The old field is still in use.
	if old := d.GetPercent(); old < 0 || old > 100 {
		o.fail(field+".percent", "%d is not within 0 and 100", old)
	} else {
		share.Numerator = uint32(old)
	}
	share = o.percent(field+".percentage", d.GetPercentage(), share)
	switch k := d.GetHttpDelayType().(type) {
	case *networking.HTTPFaultInjection_Delay_FixedDelay:
		return o.duration(field+".fixedDelay", k.FixedDelay), share
	case *networking.HTTPFaultInjection_Delay_ExponentialDelay:
		o.fail(field+".exponentialDelay", "is not supported")
	}
	return 0, model.Fraction{}
}

func (o *object) cors(field string, in *networking.CorsPolicy) *model.CORS {
	if in == nil {
		return nil
	}
	out := &model.CORS{
		Methods: in.GetAllowMethods(), AllowHeaders: in.GetAllowHeaders(), ExposeHeaders: in.GetExposeHeaders(),
		ForwardUnmatched: in.GetUnmatchedPreflights() != networking.CorsPolicy_IGNORE,
	}
	for i, m := range in.GetAllowOrigins() {
		out.Origins = append(out.Origins, o.origin(fmt.Sprintf("%s.allowOrigins[%d]", field, i), m))
	}
	if len(out.Origins) == 0 {
		//lint:ignore SA1019 The old field is still in use.
		for _, s := range in.GetAllowOrigin() {
			out.Origins = append(out.Origins, exactOrigin(s))
		}
	}
	for i, m := range out.Methods {
		o.corsName(fmt.Sprintf("%s.allowMethods[%d]", field, i), m)
	}
	for i, h := range out.AllowHeaders {
		o.corsName(fmt.Sprintf("%s.allowHeaders[%d]", field, i), h)
	}
	for i, h := range out.ExposeHeaders {
		o.corsName(fmt.Sprintf("%s.exposeHeaders[%d]", field, i), h)
	}
	if in.GetMaxAge() != nil {
		age := o.duration(field+".maxAge", in.GetMaxAge())
		if age%time.Second != 0 {
			o.fail(field+".maxAge", "%s is not a whole number of seconds", age)
		}
		out.MaxAge = &age
	}
	if in.GetAllowCredentials() != nil {
		v := in.GetAllowCredentials().GetValue()
		out.Credentials = &v
	}
	return out
}

// corsName is a name, or * for all of them.
func (o *object) corsName(field, s string) {
	if s != "*" {
		o.token(field, s)
	}
}

func (o *object) origin(field string, m *networking.StringMatch) model.StringMatch {
	switch k := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		if k.Exact != "" {
			return exactOrigin(k.Exact)
		}
	case *networking.StringMatch_Prefix, *networking.StringMatch_Regex:
		return o.text(field, m)
	}
	o.fail(field, "exact, prefix or regex is required")
	return model.StringMatch{}
}

// exactOrigin: an exact * is every origin, as with Istio.
func exactOrigin(s string) model.StringMatch {
	if s == "*" {
		return model.StringMatch{Kind: model.MatchRegex, Value: ".*"}
	}
	return model.StringMatch{Value: s}
}
