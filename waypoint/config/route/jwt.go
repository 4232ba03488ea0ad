package route

import (
	"fmt"
	"reflect"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route/match"
)

// spaceDelimited are claims whose value is a list, written with spaces (RFC 8693 section 4.2, and Istio).
var spaceDelimited = []string{"permission", "scope"}

// requirement finds a set of rules in the filter chain, by name or else by what it holds, where the keys may have been
// filled in.
func requirement(p *model.Proxy, name string, rules []model.JWTRule) *model.JWTRequirement {
	for i := range p.HTTP.JWT {
		r := &p.HTTP.JWT[i]
		if r.Name == name && len(r.Rules) > 0 || name == "" && slices.EqualFunc(rules, r.Rules, sameRule) {
			return r
		}
	}
	return nil
}

func sameRule(wanted, there model.JWTRule) bool {
	if wanted.JWKS == "" {
		there.JWKS = ""
	}
	return reflect.DeepEqual(wanted, there)
}

// jwt verifies tokens. What is verified is left in metadata for authorization and for choosing a route.
func jwt(proxy *model.Proxy) (*jwtv3.JwtAuthentication, error) {
	out := &jwtv3.JwtAuthentication{
		Providers:      map[string]*jwtv3.JwtProvider{},
		RequirementMap: map[string]*jwtv3.JwtRequirement{},
		// Browsers send no token with the question of CORS.
		BypassCorsPreflight: true,
	}
	for _, r := range proxy.HTTP.JWT {
		var providers []string
		for i := range r.Rules {
			name := fmt.Sprintf("%s/%d", r.Name, i)
			provider, err := jwtProvider(&r.Rules[i])
			if err != nil {
				return nil, fmt.Errorf("write keys of issuer %q: %w", r.Rules[i].Issuer, err)
			}
			out.Providers[name] = provider
			providers = append(providers, name)
		}
		if len(providers) > 0 {
			out.RequirementMap[r.Name] = oneOf(providers)
		}
	}
	out.FilterStateRules = byAuthority(proxy, out.RequirementMap)
	return out, nil
}

// byAuthority says what the services of a waypoint require, by what the client called. It is in the filter and not in
// the service's route table, because a change of the filter replaces the filter chain: connections on the one from
// before go on for a while with tables of now, which must not name what their chain does not have.
func byAuthority(p *model.Proxy, requirements map[string]*jwtv3.JwtRequirement) *jwtv3.FilterStateRule {
	authorities := map[string][]string{}
	for i := range p.Scopes {
		authorities[p.Scopes[i].Name] = p.Scopes[i].Authorities
	}
	requires := map[string]*jwtv3.JwtRequirement{}
	for _, r := range p.HTTP.JWT {
		for _, scope := range r.Scopes {
			for _, a := range authorities[scope] {
				if required := requirements[r.Name]; required != nil {
					requires[a] = required
				}
			}
		}
	}
	if len(requires) == 0 {
		return nil
	}
	return &jwtv3.FilterStateRule{Name: names.StateAuthority, Requires: requires}
}

// oneOf accepts a request with a good token of one issuer, or without any. With several issuers that look for tokens
// in the same place each finds the others' tokens bad; with different places, a good token must not excuse a bad one:
// so any of them is good, or each is good or missing (Istio, pilot/pkg/security/authn).
func oneOf(providers []string) *jwtv3.JwtRequirement {
	var good, goodOrMissing []*jwtv3.JwtRequirement
	for _, name := range providers {
		p := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: name}}
		missing := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}}}
		good = append(good, p)
		goodOrMissing = append(goodOrMissing, anyOf(p, missing))
	}
	if len(providers) == 1 {
		return goodOrMissing[0]
	}
	each := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAll{RequiresAll: &jwtv3.JwtRequirementAndList{Requirements: goodOrMissing}}}
	return anyOf(append(good, each)...)
}

func anyOf(r ...*jwtv3.JwtRequirement) *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAny{RequiresAny: &jwtv3.JwtRequirementOrList{Requirements: r}}}
}

func jwtProvider(r *model.JWTRule) (*jwtv3.JwtProvider, error) {
	keys, err := keySet(r.JWKS)
	if err != nil {
		return nil, err
	}
	claims := slices.Concat(spaceDelimited, r.SpaceDelimited)
	slices.Sort(claims)
	out := &jwtv3.JwtProvider{
		Issuer:               r.Issuer,
		Audiences:            r.Audiences,
		Forward:              r.Forward,
		ForwardPayloadHeader: r.OutputHeader,
		FromParams:           r.FromParams,
		FromCookies:          r.FromCookies,
		PayloadInMetadata:    match.JWTPayload,
		NormalizePayloadInMetadata: &jwtv3.JwtProvider_NormalizePayload{
			SpaceDelimitedClaims: slices.Compact(claims),
		},
		JwksSourceSpecifier: &jwtv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: keys}}},
		// Rules may choose by claims, which are known only now.
		ClearRouteCache: true,
	}
	for _, h := range r.FromHeaders {
		out.FromHeaders = append(out.FromHeaders, &jwtv3.JwtHeader{Name: h.Name, ValuePrefix: h.Prefix})
	}
	for _, c := range r.ClaimToHeaders {
		out.ClaimToHeaders = append(out.ClaimToHeaders, &jwtv3.JwtClaimToHeader{HeaderName: c.Header, ClaimName: c.Claim})
	}
	return out, nil
}
