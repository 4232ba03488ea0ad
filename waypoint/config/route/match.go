package route

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route/match"
)

// match writes which requests a rule takes.
func (w hostWriter) match(r *model.RouteRule) (*routev3.RouteMatch, error) {
	m := &r.Match
	out := all()
	if m.Path != nil {
		if err := setPath(out, *m.Path); err != nil {
			return nil, err
		}
	}
	if err := setHeaders(out, m); err != nil {
		return nil, err
	}
	for _, q := range m.Query {
		matcher, err := match.Query(q)
		if err != nil {
			return nil, err
		}
		out.QueryParameters = append(out.QueryParameters, matcher)
	}
	for _, c := range m.Claims {
		matcher, err := match.RoutingClaim(c)
		if err != nil {
			return nil, fmt.Errorf("compare claim %q: %w", c.Name, err)
		}
		out.DynamicMetadata = append(out.DynamicMetadata, matcher)
	}
	if m.GRPC {
		out.Grpc = &routev3.RouteMatch_GrpcRouteMatchOptions{}
	}
	if err := w.setPort(out, m.Port); err != nil {
		return nil, err
	}
	return out, w.setSource(out, r)
}

// setPath writes the path, without query.
func setPath(out *routev3.RouteMatch, m model.StringMatch) error {
	if m.IgnoreCase && m.Kind != model.MatchRegex && m.Kind != model.MatchSuffix {
		out.CaseSensitive = wrapperspb.Bool(false)
	}
	switch m.Kind {
	case model.MatchExact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: m.Value}
	case model.MatchPrefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: m.Value}
	case model.MatchSegments:
		if p := segments(m.Value); p != "" {
			out.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: p}
		}
	case model.MatchRegex, model.MatchSuffix:
		s, err := match.String(model.StringMatch{Kind: model.MatchRegex, Value: pathExpression(m), IgnoreCase: m.IgnoreCase})
		if err != nil {
			return fmt.Errorf("compare path: %w", err)
		}
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: s.GetSafeRegex()}
	case model.MatchPresent:
	default:
		return fmt.Errorf("compare path: unknown kind %d", m.Kind)
	}
	return nil
}

func pathExpression(m model.StringMatch) string {
	if m.Kind == model.MatchSuffix {
		return ".*" + regexp.QuoteMeta(m.Value)
	}
	return m.Value
}

// segments is a prefix of whole path elements, without the slash at its end, which does not count (Gateway API,
// PathMatchPathPrefix); "" is every path.
func segments(prefix string) string { return strings.TrimRight(prefix, "/") }

// setHeaders writes headers, and what HTTP/2 has as headers.
func setHeaders(out *routev3.RouteMatch, m *model.HTTPMatch) error {
	for _, h := range m.Headers {
		matcher, err := match.Header(h)
		if err != nil {
			return err
		}
		out.Headers = append(out.Headers, matcher)
	}
	for _, h := range []struct {
		name string
		*model.StringMatch
	}{{":method", m.Method}, {":scheme", m.Scheme}, {":authority", m.Authority}} {
		if h.StringMatch == nil {
			continue
		}
		matcher, err := match.Header(model.NamedMatch{Name: h.name, StringMatch: *h.StringMatch})
		if err != nil {
			return err
		}
		out.Headers = append(out.Headers, matcher)
	}
	return nil
}

// setPort writes the port that the client called. On a gateway it is known for the whole table.
func (w hostWriter) setPort(out *routev3.RouteMatch, port uint16) error {
	switch {
	case port == 0 || w.port() == port:
	case w.proxy.Waypoint:
		if len(w.ports) > 0 {
			return errNever
		}
		out.FilterState = append(out.FilterState, match.FilterState(names.StateAuthority, match.Suffix(fmt.Sprintf(":%d", port), false)))
	case !slices.Contains(w.ports, port):
		return errNever
	default:
		return fmt.Errorf("match port %d: the table serves several ports, which Envoy cannot tell apart", port)
	}
	return nil
}

// setSource writes who calls. Clients of a gateway come from outside: the source is the gateway itself, as in Istio.
func (w hostWriter) setSource(out *routev3.RouteMatch, r *model.RouteRule) error {
	if ns := r.Match.SourceNamespace; ns != "" {
		switch {
		case w.proxy.Waypoint:
			out.FilterState = append(out.FilterState, match.FilterState(names.StatePeer, match.Namespace(ns)))
		case w.proxy.Namespace != ns:
			return errNever
		}
	}
	if r.SourceAddresses == nil {
		return nil
	}
	if len(r.SourceAddresses) == 0 {
		return errNever
	}
	out.FilterState = append(out.FilterState, match.FilterState(names.StateSourceIP, addresses(r.SourceAddresses)))
	return nil
}

// addresses matches one of them. Envoy's matcher for addresses wants blocks, and takes filter state of another type.
func addresses(in []netip.Addr) *matcherv3.StringMatcher {
	if len(in) == 1 {
		return match.Exact(in[0].Unmap().String(), false)
	}
	or := make([]string, 0, len(in))
	for _, a := range in {
		or = append(or, regexp.QuoteMeta(a.Unmap().String()))
	}
	slices.Sort(or)
	return match.Regex(strings.Join(slices.Compact(or), "|"))
}
