package route

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route/match"
)

// noCluster is never configured: a share of it is answered as a cluster that does not exist, with 500.
const noCluster = "ambit_no_backend"

// forward sends requests to clusters. It gives the edits of headers that remain for the route.
func (w hostWriter) forward(r *model.RouteRule, own edits) (*routev3.Route_Route, *edits, error) {
	a := &routev3.RouteAction{ClusterNotFoundResponseCode: routev3.RouteAction_INTERNAL_SERVER_ERROR}
	ofRoute := clusters(a, r, own)
	if ofRoute.request.authority != "" {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: ofRoute.request.authority}
	}
	if r.Action.Rewrite != nil {
		if err := rewrite(a, r.Match.Path, r.Action.Rewrite); err != nil {
			return nil, nil, err
		}
	}
	for _, m := range r.MirrorClusters {
		if p := mirror(m); p != nil {
			a.RequestMirrorPolicies = append(a.RequestMirrorPolicies, p)
		}
	}
	for _, h := range r.Hash {
		if p := w.hash(h); p != nil {
			a.HashPolicy = append(a.HashPolicy, p)
		}
	}
	timeouts(a, r)
	a.RetryPolicy = retry(r)
	return &routev3.Route_Route{Route: a}, &ofRoute, nil
}

// clusters writes the shares. A backend's edits come after the rule's, while Envoy makes a share's before its route's:
// so if a share has any, all shares get both, and none remain for the route.
func clusters(a *routev3.RouteAction, r *model.RouteRule, own edits) (ofRoute edits) {
	var shares []model.RouteCluster
	edited := false
	for _, c := range r.Clusters {
		if c.Weight > 0 {
			shares = append(shares, c)
			edited = edited || !c.Request.IsZero() || !c.Response.IsZero() || c.Authority != ""
		}
	}
	if len(shares) == 0 {
		shares = []model.RouteCluster{{}}
	}
	if len(shares) == 1 {
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: cmp.Or(shares[0].Cluster, noCluster)}
		return own.then(&shares[0])
	}
	out := &routev3.WeightedCluster{}
	scale := weightScale(shares)
	for i := range shares {
		c := &routev3.WeightedCluster_ClusterWeight{
			Name: cmp.Or(shares[i].Cluster, noCluster), Weight: wrapperspb.UInt32(max(1, uint32(uint64(shares[i].Weight)/scale))),
		}
		out.Clusters = append(out.Clusters, c)
		if !edited {
			continue
		}
		both := own.then(&shares[i])
		c.RequestHeadersToAdd, c.RequestHeadersToRemove = both.request.add, both.request.remove
		c.ResponseHeadersToAdd, c.ResponseHeadersToRemove = both.response.add, both.response.remove
		if both.request.authority != "" {
			c.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: both.request.authority}
		}
	}
	a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: out}
	if edited {
		return edits{}
	}
	return own
}

// weightScale is what weights are divided by so that their sum fits Envoy's 32 bits.
func weightScale(shares []model.RouteCluster) uint64 {
	var sum uint64
	for _, s := range shares {
		sum += uint64(s.Weight)
	}
	// Rounding up to 1 may add the number of shares.
	return sum/(math.MaxUint32-uint64(len(shares))) + 1
}

// rewrite changes the path.
func rewrite(a *routev3.RouteAction, path *model.StringMatch, r *model.PathRewrite) error {
	switch {
	case r.Full != nil:
		if !strings.HasPrefix(*r.Full, "/") {
			return fmt.Errorf("rewrite path to %q: it does not begin with a slash", *r.Full)
		}
		a.PathRewrite = literal(*r.Full)
	case r.Prefix != nil:
		prefix, re := replacePrefix(path, *r.Prefix)
		a.PrefixRewrite, a.RegexRewrite = prefix, re
	case r.Regex != "":
		if err := match.CheckRegex(r.Regex); err != nil {
			return fmt.Errorf("rewrite path: %w", err)
		}
		if err := checkSubstitution(r.Regex, r.Substitution); err != nil {
			return fmt.Errorf("rewrite path: %w", err)
		}
		a.RegexRewrite = substitute(r.Regex, r.Substitution)
	}
	return nil
}

func substitute(re, by string) *matcherv3.RegexMatchAndSubstitute {
	return &matcherv3.RegexMatchAndSubstitute{Pattern: &matcherv3.RegexMatcher{Regex: re}, Substitution: by}
}

var reference = regexp.MustCompile(`\\(.?)`)

// checkSubstitution refuses references to groups that the expression does not have: Envoy would refuse the table.
func checkSubstitution(re, by string) error {
	groups := 0
	if c, err := regexp.Compile(re); err == nil {
		groups = c.NumSubexp()
	}
	for _, m := range reference.FindAllStringSubmatch(by, -1) {
		switch {
		case m[1] == `\`:
		case len(m[1]) == 1 && m[1][0] >= '0' && m[1][0] <= '9' && int(m[1][0]-'0') <= groups:
		default:
			return fmt.Errorf("substitute %q: %q is no group of the expression", by, m[0])
		}
	}
	return nil
}

// replacePrefix replaces what the match's prefix matched: by a prefix, or where Envoy's way of doing that would join
// wrongly, by an expression. The table of Gateway API's HTTPPathModifier.replacePrefixMatch is the test of it.
func replacePrefix(path *model.StringMatch, by string) (prefix string, re *matcherv3.RegexMatchAndSubstitute) {
	if path != nil && path.Kind != model.MatchSegments && path.Kind != model.MatchPresent {
		// As Istio defines it: the characters that were compared, whole elements or not.
		if by != "" {
			return by, nil
		}
		if path.Kind == model.MatchPrefix {
			return "", substitute("^"+ignoreCase(path)+regexp.QuoteMeta(path.Value)+"/?", "/")
		}
		return "/", nil
	}
	by = strings.TrimRight(by, "/")
	matched := ""
	if path != nil && path.Kind == model.MatchSegments {
		matched = segments(path.Value)
	}
	switch {
	case matched == "" && by == "":
		return "", nil
	case matched == "":
		return by + "/", nil
	case by == "":
		return "", substitute("^"+ignoreCase(path)+regexp.QuoteMeta(matched)+"/?", "/")
	}
	return by, nil
}

func ignoreCase(m *model.StringMatch) string {
	if m.IgnoreCase {
		return "(?i)"
	}
	return ""
}

// mirror copies requests to another cluster. Envoy appends "-shadow" to their host, as Istio documents.
func mirror(m model.MirrorCluster) *routev3.RouteAction_RequestMirrorPolicy {
	if m.Cluster == "" || m.Share.Numerator == 0 && m.Share.Denominator != 0 {
		return nil
	}
	out := &routev3.RouteAction_RequestMirrorPolicy{Cluster: m.Cluster, TraceSampled: wrapperspb.Bool(false)}
	// No share at all is every request.
	if m.Share.Denominator != 0 && m.Share.Numerator < m.Share.Denominator {
		out.RuntimeFraction = &corev3.RuntimeFractionalPercent{DefaultValue: fraction(m.Share)}
	}
	return out
}

// million is Envoy's finest denominator.
const million = 1_000_000

// fraction writes a share; none at all is 0.
func fraction(f model.Fraction) *typev3.FractionalPercent {
	n := min(f.Numerator, f.Denominator)
	switch f.Denominator {
	case 0:
		return &typev3.FractionalPercent{}
	case 100:
		return &typev3.FractionalPercent{Numerator: n}
	case 10_000:
		return &typev3.FractionalPercent{Numerator: n, Denominator: typev3.FractionalPercent_TEN_THOUSAND}
	}
	return &typev3.FractionalPercent{
		Numerator: uint32(uint64(n) * million / uint64(f.Denominator)), Denominator: typev3.FractionalPercent_MILLION,
	}
}

// hash writes what load balancers hash. A waypoint's connections are internal: the source's address is in filter state.
func (w hostWriter) hash(h model.HashPolicy) *routev3.RouteAction_HashPolicy {
	out := &routev3.RouteAction_HashPolicy{}
	switch {
	case h.Header != "":
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: h.Header}}
	case h.Query != "":
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: h.Query}}
	case h.Cookie != nil:
		c := &routev3.RouteAction_HashPolicy_Cookie{Name: h.Cookie.Name, Path: h.Cookie.Path}
		if h.Cookie.TTL != nil {
			c.Ttl = durationpb.New(*h.Cookie.TTL)
		}
		for _, a := range h.Cookie.Attributes {
			c.Attributes = append(c.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: a.Name, Value: a.Value})
		}
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: c}
	case h.SourceIP && w.proxy.Waypoint:
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_FilterState_{FilterState: &routev3.RouteAction_HashPolicy_FilterState{Key: names.StateSourceIP}}
	case h.SourceIP:
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
		}
	default:
		return nil
	}
	return out
}

// timeouts bounds the whole request. Without a bound of the rule's, a gRPC request may bring its own; Envoy would not
// look at the rule's beside it.
func timeouts(a *routev3.RouteAction, r *model.RouteRule) {
	var whole time.Duration
	if r.Action.Timeout != nil {
		whole = max(0, *r.Action.Timeout)
	}
	a.Timeout = durationpb.New(whole)
	if whole == 0 {
		a.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{GrpcTimeoutHeaderMax: durationpb.New(0)}
	}
}
