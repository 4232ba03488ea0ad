package route

import (
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	dynamicv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	sessionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/stateful_session/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route/ratelimit"
)

// Filters that only this package names.
const (
	filterSanitize  = "ambit.filters.http.sanitize"
	filterRBACAudit = "envoy.filters.http.rbac.audit"
	// filterRBACCustom is followed by the provider; the filter notes which requests the provider is asked about.
	filterRBACCustom = "envoy.filters.http.rbac.custom."
	// filterOtherLimit counts limits that answer another status than 429, filterRuleLimit those of single rules.
	filterOtherLimit = names.FilterLocalLimit + ".status"
	filterRuleLimit  = names.FilterLocalLimit + ".rule"
)

// Prefixes of what RBAC filters note of rules that they do not enforce, in metadata and in counters. Those of dry runs
// are Istio's, with which dashboards look for them.
const (
	dryAllowPrefix  = "istio_dry_run_allow_"
	dryDenyPrefix   = "istio_dry_run_deny_"
	dryCustomPrefix = "istio_dry_run_custom_"
	// rbacMetadata is where the filters leave it, whatever they are called, under the prefix and matchedPolicy.
	rbacMetadata  = "envoy.filters.http.rbac"
	matchedPolicy = "shadow_effective_policy_id"
)

func filterCustom(provider string) string { return filterRBACCustom + provider }

func customPrefix(provider string) string { return "istio_ext_authz_" + provider + "_" }

// chain collects filters.
type chain struct {
	filters []*hcmv3.HttpFilter
	err     error
}

func (c *chain) add(name string, m proto.Message) {
	any, err := pack(m)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.filters = append(c.filters, &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: any}})
}

// HTTPFilters writes the chain that every request goes through. Most filters do nothing unless the route that was
// chosen configures them. The order is Istio's: who is it (token), what may it do (CUSTOM, AUDIT, DENY, ALLOW), how
// often, and then what is done with it.
func HTTPFilters(p *model.Proxy) ([]*hcmv3.HttpFilter, error) {
	c := &chain{}
	c.add(filterSanitize, sanitize(p.Waypoint))
	tokens, err := jwt(p)
	if err != nil {
		return nil, err
	}
	c.add(names.FilterJWT, tokens)
	seen := map[string]bool{}
	for i := range p.HTTP.ExtAuthz {
		e := &p.HTTP.ExtAuthz[i]
		if seen[e.Name] {
			continue
		}
		seen[e.Name] = true
		c.add(filterCustom(e.Name), &rbachttpv3.RBAC{ShadowRulesStatPrefix: customPrefix(e.Name)})
		c.add(names.FilterExtAuthz+"."+e.Name, provider(e))
	}
	c.add(filterRBACAudit, &rbachttpv3.RBAC{ShadowRulesStatPrefix: dryCustomPrefix})
	c.add(names.FilterRBACDeny, &rbachttpv3.RBAC{ShadowRulesStatPrefix: dryDenyPrefix})
	c.add(names.FilterRBACAllow, &rbachttpv3.RBAC{ShadowRulesStatPrefix: dryAllowPrefix})
	for _, name := range []string{names.FilterLocalLimit, filterOtherLimit, filterRuleLimit} {
		c.add(name, &localv3.LocalRateLimit{StatPrefix: ratelimit.StatPrefix})
	}
	for i := range p.HTTP.RateLimit {
		l := &p.HTTP.RateLimit[i]
		name := ratelimit.Name(l)
		if !seen[name] {
			seen[name] = true
			c.add(name, ratelimit.Server(l))
		}
	}
	c.add(names.FilterCORS, &corsv3.Cors{})
	c.add(names.FilterFault, &faultv3.HTTPFault{})
	c.add(names.FilterSession, &sessionv3.StatefulSession{})
	c.add(names.FilterDynamicProxy, &dynamicv3.FilterConfig{ImplementationSpecifier: &dynamicv3.FilterConfig_DnsCacheConfig{DnsCacheConfig: names.DynamicDNS()}})
	c.add(names.FilterRouter, &routerv3.Router{})
	return c.filters, c.err
}
