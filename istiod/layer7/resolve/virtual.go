package resolve

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate/istionet"
)

// maxDelegates is how deep VirtualServices may delegate. Istio has one level; a chain this long is a mistake.
const maxDelegates = 8

// virtualServices finds those for a host of the mesh: the ones that only some namespaces see first, then the one that
// everybody sees. As with Istio, of several for one host only the first counts: the most specific host, the service's
// own namespace, the oldest.
func (b *builder) virtualServices(s *index.Service) []virtual {
	type match struct {
		route *model.Route
		host  string
	}
	var found []match
	add := func(routes []*model.Route) {
		for _, route := range routes {
			for _, p := range route.Parents {
				if p.Kind == model.ParentMesh && p.Invalid == nil && index.HostMatches(p.Host, s.Host) {
					found = append(found, match{route, p.Host})
					break
				}
			}
		}
	}
	add(b.r.RoutesOf(model.ParentMesh, model.Key{}, s.Host))
	add(b.r.WildcardRoutes())
	slices.SortStableFunc(found, func(x, y match) int {
		return cmp.Or(
			cmp.Compare(wildcardRank(x.host), wildcardRank(y.host)), cmp.Compare(len(y.host), len(x.host)),
			cmp.Compare(rank(x.route.Namespace != s.Namespace), rank(y.route.Namespace != s.Namespace)),
			index.Older(x.route.Meta, y.route.Meta))
	})
	var public *model.Route
	private := map[string]*model.Route{}
	for _, m := range found {
		audience := exportedTo(m.route)
		if audience == nil && public == nil {
			public = m.route
		}
		for _, ns := range audience {
			if private[ns] == nil {
				private[ns] = m.route
			}
		}
	}
	var out []virtual
	for _, ns := range sortedKeys(private) {
		out = append(out, virtual{private[ns], ns})
	}
	if public != nil {
		out = append(out, virtual{public, ""})
	}
	return out
}

func wildcardRank(host string) int { return rank(strings.HasPrefix(host, "*")) }

func rank(later bool) int {
	if later {
		return 1
	}
	return 0
}

// exportedTo lists the namespaces that see a route; nil is everybody.
func exportedTo(r *model.Route) []string {
	if len(r.ExportTo) == 0 || slices.Contains(r.ExportTo, "*") {
		return nil
	}
	out := []string{}
	for _, e := range r.ExportTo {
		switch e {
		case ".":
			out = append(out, r.Namespace)
		case "~":
		default:
			out = append(out, e)
		}
	}
	return out
}

// virtualRules are the rules of the VirtualServices of a service port, or the way straight to it.
func (b *builder) virtualRules(s *index.Service, p model.ServicePort, found []virtual) []model.RouteRule {
	var out []model.RouteRule
	c := call{port: p.Port, service: s.Host, gateway: model.MeshGateway}
	for _, v := range found {
		c := c
		c.source = v.source
		rules := b.virtualHTTP(v.route, c)
		if rules == nil {
			continue // it says nothing of requests to this port
		}
		out = append(out, closed(rules, c)...)
		if v.source == "" {
			return out
		}
	}
	return append(out, b.direct(s, p, c))
}

// virtualHTTP makes the rules of a VirtualService, in their order; nil if it has none for this call.
func (b *builder) virtualHTTP(v *model.Route, c call) []model.RouteRule {
	var out []model.RouteRule
	for i := range v.HTTP {
		for _, e := range Delegates(b.r, v, &v.HTTP[i]) {
			matches := e.Rule.Matches
			if len(matches) == 0 {
				matches = []model.HTTPMatch{{}}
			}
			for _, m := range matches {
				if r, ok := b.rule(e.Route, e.Rule, m, c); ok {
					out = append(out, r)
				}
			}
		}
	}
	return out
}

// Delegated is a rule as it stands in for another, with the route that it is written in.
type Delegated struct {
	Route *model.Route
	Rule  *model.HTTPRule
}

// Delegates expands a rule: itself, or the rules of the VirtualService that it delegates to, each narrowed by the
// matches of the rule. What cannot be expanded becomes a rule that answers 500.
func Delegates(r *index.Reader, v *model.Route, rule *model.HTTPRule) []Delegated {
	return expand(r, v, rule, []model.Key{v.Key})
}

func expand(r *index.Reader, v *model.Route, rule *model.HTTPRule, path []model.Key) []Delegated {
	if rule.Delegate == nil || rule.Invalid != nil {
		return []Delegated{{v, rule}}
	}
	to := *rule.Delegate
	refuse := func(format string, args ...any) []Delegated {
		c := condition(typeAccepted, reasonInvalidDelegate, fmt.Sprintf(format, args...), false)
		return []Delegated{{v, &model.HTTPRule{Name: rule.Name, Matches: rule.Matches, Invalid: &c}}}
	}
	if slices.Contains(path, to) || len(path) > maxDelegates {
		return refuse("rule %q delegates in a circle: %s", rule.Name, joinKeys(append(slices.Clone(path), to)))
	}
	d := r.Route(model.KindVirtualService, to)
	switch {
	case d == nil:
		return refuse("rule %q delegates to VirtualService %q, which does not exist", rule.Name, to)
	case !d.DelegateOnly:
		return refuse("rule %q delegates to VirtualService %q, which has hosts of its own", rule.Name, to)
	case !index.Exported(d.ExportTo, d.Namespace, v.Namespace):
		return refuse("rule %q delegates to VirtualService %q, which is not exported to namespace %q", rule.Name, to, v.Namespace)
	}
	var out []Delegated
	for i := range d.HTTP {
		for _, e := range expand(r, d, &d.HTTP[i], append(slices.Clone(path), to)) {
			for _, merged := range istionet.Delegate(*rule, []model.HTTPRule{*e.Rule}) {
				out = append(out, Delegated{e.Route, &merged})
			}
		}
	}
	return out
}

func joinKeys(keys []model.Key) string {
	var out []string
	for _, k := range keys {
		out = append(out, k.String())
	}
	return strings.Join(out, " → ")
}
