package rbac

import (
	"net/netip"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// addressMatcher matches addresses in a block.
func addressMatcher(p netip.Prefix) *matcherv3.AddressMatcher {
	return &matcherv3.AddressMatcher{Ranges: []*xdscorev3.CidrRange{{
		AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits())),
	}}}
}

// blocks writes addresses of which one must match and addresses of which none may.
func blocks(b model.Blocks, write func(netip.Prefix) *rbacv3.Principal) []*rbacv3.Principal {
	var in, not, out []*rbacv3.Principal
	for _, p := range b.In {
		in = append(in, write(p))
	}
	for _, p := range b.Not {
		not = append(not, write(p))
	}
	if len(in) > 0 {
		out = append(out, orPrincipals(in))
	}
	if len(not) > 0 {
		out = append(out, notPrincipal(orPrincipals(not)))
	}
	return out
}

func andPermissions(and []*rbacv3.Permission) *rbacv3.Permission {
	switch len(and) {
	case 0:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
	case 1:
		return and[0]
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: &rbacv3.Permission_Set{Rules: and}}}
}

func orPermissions(or []*rbacv3.Permission) *rbacv3.Permission {
	if len(or) == 1 {
		return or[0]
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: or}}}
}

func notPermission(p *rbacv3.Permission) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: p}}
}

func andPrincipals(and []*rbacv3.Principal) *rbacv3.Principal {
	switch len(and) {
	case 0:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Any{Any: true}}
	case 1:
		return and[0]
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{Ids: and}}}
}

func orPrincipals(or []*rbacv3.Principal) *rbacv3.Principal {
	if len(or) == 1 {
		return or[0]
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: &rbacv3.Principal_Set{Ids: or}}}
}

func notPrincipal(p *rbacv3.Principal) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: p}}
}
