package resolve

import (
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// targeted is a policy that can name targets.
type targeted interface {
	*model.Authorization | *model.JWTPolicy | *model.RateLimit | *model.Telemetry
}

func targetsOf(o any) (model.Meta, []model.PolicyTarget, map[string]string) {
	switch o := o.(type) {
	case *model.Authorization:
		return o.Meta, o.Targets, o.Selector
	case *model.JWTPolicy:
		return o.Meta, o.Targets, o.Selector
	case *model.RateLimit:
		return o.Meta, o.Targets, nil
	case *model.Telemetry:
		return o.Meta, o.Targets, o.Selector
	}
	return model.Meta{}, nil, nil
}

// applying lists the policies of a type that apply at a proxy, ordered by name: those that name it or its class (from
// the root namespace), those of the mesh and of the namespace, for a gateway those that choose its pods; and of a
// service, if it is not nil, those that name it or are for its namespace.
func applying[T targeted](b *builder, s *index.Service, section string) []T {
	var out []T
	add := func(found []T, kind string, key model.Key, section string) {
		for _, p := range found {
			_, targets, _ := targetsOf(p)
			fits := kind == "" || slices.ContainsFunc(targets, func(t model.PolicyTarget) bool {
				return t.Kind == kind && t.Key == key && (t.Section == "" || t.Section == section)
			})
			if fits && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	namespace := b.t.Namespace
	if s != nil {
		namespace = s.Namespace
		add(index.Targeting[T](b.r, s.Kind(), s.Key), s.Kind(), s.Key, section)
	}
	if b.t.Gateway != nil {
		listener := ""
		if s == nil {
			listener = section
		}
		add(index.Targeting[T](b.r, "Gateway", b.t.Key), "Gateway", b.t.Key, listener)
		class := model.Key{Name: b.t.Gateway.Class}
		for _, p := range index.Targeting[T](b.r, "GatewayClass", class) {
			if meta, targets, _ := targetsOf(p); meta.Namespace == b.r.RootNamespace && slices.ContainsFunc(targets, func(t model.PolicyTarget) bool {
				return t.Kind == "GatewayClass" && t.Name == class.Name
			}) {
				add([]T{p}, "", model.Key{}, "")
			}
		}
	}
	for _, ns := range slices.Compact([]string{namespace, b.r.RootNamespace}) {
		add(index.WideIn[T](b.r, ns), "", model.Key{}, "")
		if !b.t.Waypoint {
			for _, p := range index.SelectedIn[T](b.r, ns) {
				if _, _, selector := targetsOf(p); labelled(selector, b.t.Labels) {
					add([]T{p}, "", model.Key{}, "")
				}
			}
		}
	}
	slices.SortFunc(out, func(x, y T) int {
		a, _, _ := targetsOf(x)
		c, _, _ := targetsOf(y)
		return strings.Compare(a.Key.String(), c.Key.String())
	})
	return out
}

// labelled tells whether labels have all that a selector asks for.
func labelled(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// httpPolicy is what is checked of requests to a service port, or to a gateway's listener if the service is nil.
func (b *builder) httpPolicy(s *index.Service, p model.ServicePort) model.HTTPPolicy {
	return b.policyAt(s, p.Name)
}

func (b *builder) policyAt(s *index.Service, section string) model.HTTPPolicy {
	out := model.HTTPPolicy{Authz: b.known(applying[*model.Authorization](b, s, section))}
	b.tokens(&out, applying[*model.JWTPolicy](b, s, section))
	out.Limits = b.limited(applying[*model.RateLimit](b, s, section))
	return out
}

// authorizations are those for connections, of which only what is known without reading them can be judged.
func (b *builder) authorizations(s *index.Service, p model.ServicePort) []*model.Authorization {
	return b.known(applying[*model.Authorization](b, s, p.Name))
}

// known registers the servers that policies ask. A policy that asks a server which nobody defined denies what it is
// for: asking was meant to close something.
func (b *builder) known(in []*model.Authorization) []*model.Authorization {
	for i, a := range in {
		if a.Action != model.AuthzCustom {
			continue
		}
		if p := b.r.Settings().Providers[a.Provider]; p != nil && p.ExtAuthz != nil {
			if name, _, bad := Destination(b.r, p.ExtAuthz.Backend, b.r.RootNamespace, 0); bad == nil {
				b.clusters[name] = true
				server := *p.ExtAuthz
				server.Name = a.Provider
				b.extAuthz[a.Provider] = model.ExtAuthzCluster{ExtAuthz: server, Cluster: name}
				continue
			}
		}
		denied := *a
		denied.Action = model.AuthzDeny
		in[i] = &denied
	}
	return in
}

// tokens merges the rules of the policies into one requirement, named after them.
func (b *builder) tokens(out *model.HTTPPolicy, policies []*model.JWTPolicy) {
	var names []string
	var resolved []model.JWTRule
	for _, p := range policies {
		if len(p.Rules) == 0 {
			continue
		}
		names = append(names, p.Key.String())
		for _, rule := range p.Rules {
			out.JWT = append(out.JWT, rule)
			if rule.JWKS == "" {
				rule.JWKS = b.r.KeysOf(rule.Issuer, rule.JWKSURI)
			}
			if rule.JWKS == "" {
				rule.JWKS = model.UnusableJWKS
			}
			resolved = append(resolved, rule)
		}
	}
	if len(resolved) == 0 {
		return
	}
	out.Requirement = strings.Join(names, ",")
	b.jwt[out.Requirement] = model.JWTRequirement{Name: out.Requirement, Rules: resolved}
}

// limited registers the servers that limits ask. A limit whose server does not exist lets requests through only if it
// is told to: that is for waypoint/config, which finds no cluster for it.
func (b *builder) limited(in []*model.RateLimit) []*model.RateLimit {
	for _, l := range in {
		if l.Global == nil {
			continue
		}
		name, _, bad := Destination(b.r, l.Global.Backend, l.Namespace, 0)
		if bad != nil {
			continue
		}
		b.clusters[name] = true
		b.limits[name+" "+l.Global.Domain] = model.RateLimitCluster{GlobalLimit: *l.Global, Cluster: name}
	}
	return in
}

// routePolicy is what policies that name the route itself add to its rules.
func (b *builder) routePolicy(route *model.Route, rule *model.HTTPRule) *model.HTTPPolicy {
	var out model.HTTPPolicy
	for _, l := range index.Targeting[*model.RateLimit](b.r, string(route.Kind), route.Key) {
		if slices.ContainsFunc(l.Targets, func(t model.PolicyTarget) bool {
			return t.Kind == string(route.Kind) && t.Key == route.Key && (t.Section == "" || t.Section == rule.Name)
		}) {
			out.Limits = append(out.Limits, l)
		}
	}
	if len(out.Limits) == 0 {
		return nil
	}
	out.Limits = b.limited(out.Limits)
	return &out
}
