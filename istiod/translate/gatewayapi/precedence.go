package gatewayapi

import (
	"cmp"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Candidate is one alternative of one rule of one route, as it competes for a request.
type Candidate struct {
	// Match is nil for a rule without matches, which takes every request.
	Match *model.HTTPMatch
	// Route is where it comes from; Rule and Alternative are its places in there.
	Route             *model.Meta
	Rule, Alternative int
}

// Precedence orders candidates for the same hostname by the rules of the Gateway API (HTTPRouteRule.matches,
// GRPCRouteRule.matches): negative if a comes first. Candidates differ unless they are the same place of the same route.
func Precedence(a, b Candidate) int {
	x, y := matchOf(a), matchOf(b)
	var r int
	if x.GRPC && y.GRPC {
		r = grpcPrecedence(x, y)
	} else {
		r = httpPrecedence(x, y)
	}
	if r != 0 {
		return r
	}
	return cmp.Or(
		a.Route.Created.Compare(b.Route.Created),
		// "Alphabetical order by {namespace}/{name}": compared as that text.
		cmp.Compare(a.Route.Key.String(), b.Route.Key.String()),
		cmp.Compare(a.Route.Kind, b.Route.Kind),
		cmp.Compare(a.Rule, b.Rule),
		cmp.Compare(a.Alternative, b.Alternative),
	)
}

func matchOf(c Candidate) *model.HTTPMatch {
	if c.Match == nil {
		return &model.HTTPMatch{}
	}
	return c.Match
}

// httpPrecedence: exact paths, then prefixes by length, then a method, then the number of headers, then of parameters.
func httpPrecedence(x, y *model.HTTPMatch) int {
	return cmp.Or(
		cmp.Compare(pathRank(y.Path), pathRank(x.Path)),
		cmp.Compare(pathLength(y.Path), pathLength(x.Path)),
		cmp.Compare(set(y.Method), set(x.Method)),
		cmp.Compare(len(y.Headers), len(x.Headers)),
		cmp.Compare(len(y.Query), len(x.Query)),
	)
}

// pathRank: the API leaves the place of regular expressions open. Here as with Istio: behind every prefix but "/",
// which takes everything and would leave them nothing.
func pathRank(p *model.StringMatch) int {
	switch {
	case p == nil:
		return 0
	case p.Kind == model.MatchExact:
		return 3
	case p.Kind == model.MatchRegex:
		return 1
	case p.Value == "/":
		return 0
	}
	return 2
}

func pathLength(p *model.StringMatch) int {
	if p == nil {
		return len("/")
	}
	return len(p.Value)
}

func set(m *model.StringMatch) int {
	if m == nil {
		return 0
	}
	return 1
}

// grpcPrecedence: the longest service, then the longest method, then the number of headers. An expression has neither,
// and comes before what takes everything.
func grpcPrecedence(x, y *model.HTTPMatch) int {
	xs, xm := grpcLengths(x.Path)
	ys, ym := grpcLengths(y.Path)
	return cmp.Or(
		cmp.Compare(ys, xs),
		cmp.Compare(ym, xm),
		cmp.Compare(pathRank(y.Path), pathRank(x.Path)),
		cmp.Compare(pathLength(y.Path), pathLength(x.Path)),
		cmp.Compare(len(y.Headers), len(x.Headers)),
	)
}

// grpcLengths undoes what grpcPath does.
func grpcLengths(p *model.StringMatch) (service, method int) {
	if p == nil {
		return 0, 0
	}
	if p.Kind == model.MatchRegex {
		if rest, ok := strings.CutPrefix(p.Value, "/"+anyElement+"/"); ok && !strings.HasPrefix(rest, "(?:") {
			return 0, len(rest)
		}
		return 0, 0
	}
	s, m, _ := strings.Cut(strings.TrimPrefix(p.Value, "/"), "/")
	return len(s), len(m)
}
