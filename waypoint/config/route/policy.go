package route

import (
	"fmt"
	"slices"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route/ratelimit"
	"github.com/ambit-mesh/ambit/waypoint/config/route/rbac"
)

// configs collects the configuration of filters.
type configs struct {
	byName map[string]*anypb.Any
	err    error
}

func (c *configs) put(name string, m proto.Message) {
	any, err := pack(m)
	if err != nil {
		if c.err == nil {
			c.err = fmt.Errorf("configure filter %q: %w", name, err)
		}
		return
	}
	c.byName[name] = any
}

// policy writes a host's policy, or that of a rule, which is the host's and its own: Envoy takes the most specific
// configuration of a filter and nothing else. Local limits are the exception: a rule's are counted by a filter of
// their own, since a host's limit has to count all its requests together.
func (b *builder) policy(host, rule *model.HTTPPolicy) (map[string]*anypb.Any, error) {
	all := *host
	if rule != nil {
		all.Authz = slices.Concat(host.Authz, rule.Authz)
		all.JWT = slices.Concat(host.JWT, rule.JWT)
		all.Requirement = rule.Requirement
		if len(host.JWT) > 0 {
			all.Requirement = "" // that of both has no name of its own
		}
		all.Limits = slices.Concat(host.Limits, rule.Limits)
	}
	out := &configs{byName: map[string]*anypb.Any{}}
	if rule == nil || len(rule.Authz) > 0 {
		putAuthz(out, rbac.Build(all.Authz, b.rbac))
	}
	if len(all.JWT) > 0 && (rule == nil || len(rule.JWT) > 0) {
		found := requirement(b.proxy, all.Requirement, all.JWT)
		if found == nil {
			return nil, fmt.Errorf("require a token of issuer %q: no set of rules like that is in the filter chain", all.JWT[0].Issuer)
		}
		if !slices.Contains(found.Scopes, b.table.Name) {
			out.put(names.FilterJWT, &jwtv3.PerRouteConfig{RequirementSpecifier: &jwtv3.PerRouteConfig_RequirementName{RequirementName: found.Name}})
		}
	}
	if rule == nil {
		b.localLimits(out, host.Limits)
	} else if l, err := ratelimit.All(b.writable(rule.Limits), b.proxy.Waypoint); err == nil && l != nil {
		out.put(filterRuleLimit, l)
	}
	if rule == nil || len(rule.Limits) > 0 {
		if err := b.globalLimits(out, all.Limits); err != nil {
			return nil, err
		}
	}
	return out.byName, out.err
}

func putAuthz(out *configs, r rbac.Rules) {
	filter := func(name string, rules, shadow *rbacv3.RBAC, prefix string) {
		if rules == nil && shadow == nil {
			return
		}
		out.put(name, &rbachttpv3.RBACPerRoute{Rbac: &rbachttpv3.RBAC{Rules: rules, ShadowRules: shadow, ShadowRulesStatPrefix: prefix}})
	}
	for _, c := range r.Custom {
		filter(filterCustom(c.Provider), nil, c.Rules, customPrefix(c.Provider))
	}
	filter(filterRBACAudit, r.Audit, r.DryCustom, dryCustomPrefix)
	filter(names.FilterRBACDeny, r.Deny, r.DryDeny, dryDenyPrefix)
	filter(names.FilterRBACAllow, r.Allow, r.DryAllow, dryAllowPrefix)
}

// writable leaves out limits that cannot be written. A limit is no guard: rather none than no service.
func (b *builder) writable(limits []*model.RateLimit) []*model.RateLimit {
	var out []*model.RateLimit
	for _, l := range limits {
		if _, err := ratelimit.Locals([]*model.RateLimit{l}, b.proxy.Waypoint); err != nil {
			b.problems = append(b.problems, Problem{Host: l.Key.String(), Err: err})
			continue
		}
		out = append(out, l)
	}
	return out
}

func (b *builder) localLimits(out *configs, limits []*model.RateLimit) {
	l, err := ratelimit.Locals(b.writable(limits), b.proxy.Waypoint)
	if err != nil {
		return // writable has left out what could fail
	}
	if l.Usual != nil {
		out.put(names.FilterLocalLimit, l.Usual)
	}
	if l.Other != nil {
		out.put(filterOtherLimit, l.Other)
	}
}

// globalLimits writes what each server is asked.
func (b *builder) globalLimits(out *configs, limits []*model.RateLimit) error {
	byServer := map[string][]*model.GlobalLimit{}
	var order []string
	for _, l := range limits {
		if l.Global == nil {
			continue
		}
		server := ratelimit.Find(b.proxy.HTTP.RateLimit, l.Global)
		switch {
		case server == nil && l.Global.FailOpen:
			continue
		case server == nil:
			return fmt.Errorf("ask limit server %q for %s: it is not in the filter chain", l.Global.Backend.Host, l.Key)
		}
		name := ratelimit.Name(server)
		if byServer[name] == nil {
			order = append(order, name)
		}
		byServer[name] = append(byServer[name], l.Global)
	}
	for _, name := range order {
		m, err := ratelimit.Global(byServer[name], b.proxy.Waypoint)
		if err != nil {
			return err
		}
		out.put(name, m)
	}
	return nil
}
