// Package rbac writes AuthorizationPolicies as Envoy's RBAC rules, for HTTP and
// for TCP, on waypoints and on gateways. waypoint/config/route calls it and puts
// the rules into filters. The logic is Istio's (pilot/pkg/security/authz): CUSTOM,
// then DENY, then ALLOW, with AUDIT beside; a policy of ALLOW without rules denies
// everything; what cannot be checked makes an ALLOW smaller and everything else
// wider, so that a mistake refuses rather than lets through.
//
// On a waypoint the source is known from the filter state that the tunnel left,
// and the port that was asked for is that of the CONNECT's authority; on a gateway
// they are those of the connection. It is pure and its result depends on nothing
// but its input. It does not enforce, log or order filters.
package rbac

import (
	"fmt"
	"slices"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// badProvider ends the names of rules that deny because nobody can be asked (as Istio's do).
const badProvider = "-deny-due-to-bad-CUSTOM-action"

// Options say for what rules are written.
type Options struct {
	// Waypoint takes source and port from filter state, else from the connection.
	Waypoint bool
	// TCP knows no requests.
	TCP bool
	// TrustDomain is the mesh's, Aliases are those that stand for the same.
	TrustDomain string
	Aliases     []string
	// Providers are the external servers that can be asked.
	Providers map[string]bool
	// Ports maps a port that clients call to the ports that the proxy binds for it, where they differ.
	Ports map[uint16][]uint16
}

// Rules are what filters evaluate. A nil field needs no filter; Allow that is empty denies everything.
type Rules struct {
	Audit, Deny, Allow *rbacv3.RBAC
	// Dry rules are evaluated and told about, not enforced.
	DryCustom, DryDeny, DryAllow *rbacv3.RBAC
	// Custom holds for each provider which requests it is asked about, ordered by name.
	Custom []Custom
}

// Custom is what one external server is asked about.
type Custom struct {
	Provider string
	Rules    *rbacv3.RBAC
}

// Build writes policies. Their order does not matter.
func Build(policies []*model.Authorization, o Options) Rules {
	b := &builder{Options: o, custom: map[string]*rbacv3.RBAC{}}
	for _, p := range policies {
		b.policy(p)
	}
	for provider, rules := range b.custom {
		b.out.Custom = append(b.out.Custom, Custom{Provider: provider, Rules: rules})
	}
	slices.SortFunc(b.out.Custom, func(x, y Custom) int {
		if x.Provider < y.Provider {
			return -1
		}
		return 1
	})
	return b.out
}

type builder struct {
	Options
	out    Rules
	custom map[string]*rbacv3.RBAC
}

// policy adds the rules of one policy to where they belong.
func (b *builder) policy(p *model.Authorization) {
	set, suffix := b.set(p)
	for i, r := range p.Rules {
		name := fmt.Sprintf("ns[%s]-policy[%s]-rule[%d]", p.Namespace, p.Name, i)
		w := writer{Options: b.Options, allow: p.Action == model.AuthzAllow}
		for k, v := range w.rule(r) {
			if len(w.split) > 0 {
				set.Policies[fmt.Sprintf("%s-to[%d]%s", name, k, suffix)] = v
				continue
			}
			set.Policies[name+suffix] = v
		}
	}
}

// set is the group of rules that a policy's belong to.
func (b *builder) set(p *model.Authorization) (set *rbacv3.RBAC, suffix string) {
	o := &b.out
	switch p.Action {
	case model.AuthzAllow:
		if p.DryRun {
			return group(&o.DryAllow, rbacv3.RBAC_ALLOW), ""
		}
		return group(&o.Allow, rbacv3.RBAC_ALLOW), ""
	case model.AuthzAudit:
		return group(&o.Audit, rbacv3.RBAC_LOG), ""
	case model.AuthzCustom:
		switch {
		case p.DryRun:
			return group(&o.DryCustom, rbacv3.RBAC_DENY), ""
		case !b.Providers[p.Provider]:
			return group(&o.Deny, rbacv3.RBAC_DENY), badProvider
		}
		rules := b.custom[p.Provider]
		set := group(&rules, rbacv3.RBAC_DENY)
		b.custom[p.Provider] = rules
		return set, ""
	}
	if p.DryRun {
		return group(&o.DryDeny, rbacv3.RBAC_DENY), ""
	}
	return group(&o.Deny, rbacv3.RBAC_DENY), ""
}

func group(set **rbacv3.RBAC, action rbacv3.RBAC_Action) *rbacv3.RBAC {
	if *set == nil {
		*set = &rbacv3.RBAC{Action: action, Policies: map[string]*rbacv3.Policy{}}
	}
	return *set
}
