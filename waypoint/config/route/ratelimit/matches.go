package ratelimit

import (
	"fmt"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route/match"
)

// A clause is one condition of several that must all hold. Negated, it holds unless all its headers match: with
// inverted headers that is "one of them matches", which Envoy has no other form for.
type clause struct {
	headers []*routev3.HeaderMatcher
	negated bool
}

// matches writes which requests a limit selects. Alternatives of several conditions each are multiplied out, so that
// all of them give a request the same descriptor and share a bucket: (a and b) or c is (a or c) and (b or c).
func (w *writer) matches() ([]clause, error) {
	var all [][]*routev3.HeaderMatcher
	for _, m := range w.limit.Matches {
		and, err := w.conditions(m)
		if err != nil {
			return nil, err
		}
		if len(and) == 0 {
			return nil, nil // selects every request
		}
		all = append(all, and)
	}
	switch len(all) {
	case 0:
		return nil, nil
	case 1:
		return []clause{{headers: all[0]}}, nil
	}
	clauses := []clause{{negated: true}}
	for _, and := range all {
		var next []clause
		for _, c := range clauses {
			for _, h := range and {
				next = append(next, clause{negated: true, headers: plus(c.headers, inverse(h))})
			}
		}
		if len(next) > maxClauses {
			return nil, fmt.Errorf("multiply out %d matches: more than %d combinations", len(all), maxClauses)
		}
		clauses = next
	}
	return clauses, nil
}

// inverse holds where h does not. An absent header, which matches nothing, is then a match.
func inverse(h *routev3.HeaderMatcher) *routev3.HeaderMatcher {
	out := proto.CloneOf(h)
	out.InvertMatch = !h.InvertMatch
	if _, present := h.HeaderMatchSpecifier.(*routev3.HeaderMatcher_PresentMatch); !present {
		out.TreatMissingHeaderAsEmpty = true
	}
	return out
}

// conditions writes what must all hold of a request, as conditions on headers, which is all that Envoy looks at.
func (w *writer) conditions(m model.LimitMatch) ([]*routev3.HeaderMatcher, error) {
	var out []*routev3.HeaderMatcher
	if m.Path != nil && m.Path.Kind != model.MatchPresent {
		s, err := match.PathAndQuery(*m.Path)
		if err != nil {
			return nil, fmt.Errorf("compare path: %w", err)
		}
		out = append(out, match.HeaderString(":path", s, false))
	}
	if m.Method != nil {
		s, err := match.String(*m.Method)
		if err != nil {
			return nil, fmt.Errorf("compare method: %w", err)
		}
		out = append(out, match.HeaderString(":method", s, false))
	}
	for _, h := range m.Headers {
		matcher, err := match.Header(h)
		if err != nil {
			return nil, err
		}
		out = append(out, matcher)
	}
	if len(m.Sources) > 0 {
		out = append(out, match.HeaderString(names.HeaderXFCC, match.Regex(sources(m.Sources)), false))
	}
	return out, nil
}

// sources finds one of several principals in x-forwarded-client-cert, which names the caller's identity as URI. No
// identity holds the semicolon that divides its fields.
func sources(principals []string) string {
	var or []string
	for _, p := range principals {
		or = append(or, match.PrincipalExpression(p))
	}
	return "(.*;)?URI=(" + strings.Join(or, "|") + ")(;.*)?"
}
