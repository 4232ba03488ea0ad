package config

import (
	"slices"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route/rbac"
)

// Envoy's network filters for policy judge a connection when the client has sent something. A server that speaks first
// has then already spoken, to whomever. So policy of TCP is enforced earlier as well:
//
//   - On a waypoint's TCP port, when the tunnel is asked for: the CONNECT is refused with 403.
//   - Where that cannot be judged yet (it is not known whether the connection speaks HTTP, an external server is to be
//     asked, or a rule looks at the connection itself), the server is only called once the client has spoken. Server-first
//     protocols with such a policy do not work there; Istio asks users to declare their ports, too.
//
// A gateway's TCP ports have neither: there the greeting of a server that speaks first is not protected.

// connectPolicy is what is enforced when a tunnel to a TCP port is asked for; nil if nothing is.
func (b *builder) connectPolicy(f *model.TCPForward) map[string]*anypb.Any {
	if f == nil || f.Refuse || len(f.Authz) == 0 {
		return nil
	}
	rules := b.tcpRules(f.Authz)
	out := map[string]*anypb.Any{}
	for name, r := range map[string]*rbacv3.RBAC{names.FilterRBACDeny: rules.Deny, names.FilterRBACAllow: rules.Allow} {
		if r != nil && !looksAtConnection(r) {
			out[name] = b.pack(&httprbacv3.RBACPerRoute{Rbac: &httprbacv3.RBAC{Rules: r}})
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// judgedLate tells whether a connection to a TCP port may still be refused once the tunnel is there.
func (b *builder) judgedLate(authz []*model.Authorization) bool {
	rules := b.tcpRules(authz)
	return len(rules.Custom) > 0 || looksAtConnection(rules.Deny) || looksAtConnection(rules.Allow)
}

func (b *builder) tcpRules(authz []*model.Authorization) rbac.Rules {
	o := rbac.Options{
		Waypoint: true, TCP: true, TrustDomain: b.proxy.TrustDomain, Aliases: b.proxy.TrustDomains, Providers: map[string]bool{},
	}
	for _, e := range b.proxy.HTTP.ExtAuthz {
		o.Providers[e.Name] = true
	}
	return rbac.Build(authz, o)
}

// looksAtConnection tells whether a rule needs to know what only the inner connection says: its address or server name.
func looksAtConnection(r *rbacv3.RBAC) bool {
	for _, p := range r.GetPolicies() {
		if slices.ContainsFunc(p.Permissions, innerPermission) {
			return true
		}
	}
	return false
}

func innerPermission(p *rbacv3.Permission) bool {
	switch r := p.GetRule().(type) {
	case *rbacv3.Permission_DestinationIp, *rbacv3.Permission_DestinationPort, *rbacv3.Permission_DestinationPortRange,
		*rbacv3.Permission_RequestedServerName:
		return true
	case *rbacv3.Permission_AndRules:
		return slices.ContainsFunc(r.AndRules.Rules, innerPermission)
	case *rbacv3.Permission_OrRules:
		return slices.ContainsFunc(r.OrRules.Rules, innerPermission)
	case *rbacv3.Permission_NotRule:
		return innerPermission(r.NotRule)
	}
	return false
}
