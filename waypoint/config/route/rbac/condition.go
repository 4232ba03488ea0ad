package rbac

import (
	"net/netip"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/route/match"
)

// Attributes that a condition can name (istio.io/docs/reference/config/security/conditions). The front end checks
// them; an unknown one here cannot be checked either.
const (
	whenSourceIP         = "source.ip"
	whenRemoteIP         = "remote.ip"
	whenSourceNamespace  = "source.namespace"
	whenSourcePrincipal  = "source.principal"
	whenSourceAccount    = "source.serviceAccount"
	whenSourceDomain     = "source.trustDomain"
	whenRequestPrincipal = "request.auth.principal"
	whenRequestAudiences = "request.auth.audiences"
	whenRequestPresenter = "request.auth.presenter"
	whenDestinationIP    = "destination.ip"
	whenDestinationPort  = "destination.port"
	whenSNI              = "connection.sni"
	// These are followed by a name in brackets.
	whenHeader = "request.headers["
	whenClaim  = "request.auth.claims["
	whenFilter = "experimental.envoy.filters."
)

// conditions are what must hold whatever the source and the operation.
type conditions struct {
	permissions []*rbacv3.Permission
	principals  []*rbacv3.Principal
}

func (w *writer) conditions(when []model.AuthzCondition) conditions {
	var out conditions
	for _, c := range when {
		if permissions, ok := w.permissionCondition(c); ok {
			out.permissions = append(out.permissions, permissions...)
			continue
		}
		out.principals = append(out.principals, w.principalCondition(c)...)
	}
	return out
}

// permissionCondition writes a condition on what is called, and tells whether it is one.
func (w *writer) permissionCondition(c model.AuthzCondition) ([]*rbacv3.Permission, bool) {
	switch {
	case c.Key == whenDestinationPort && !w.Waypoint:
		return eachPermission(c.Patterns, w.port), true
	case c.Key == whenDestinationIP && !w.Waypoint:
		return w.known(c.Patterns, destinationIP), true
	case c.Key == whenSNI:
		return eachPermission(c.Patterns, serverName), true
	case strings.HasPrefix(c.Key, whenFilter):
		// "experimental." and the name of the metadata, then its key.
		filter, key, ok := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(c.Key, "experimental."), "]"), "[")
		if !ok {
			w.drop()
			return nil, true
		}
		return eachPermission(c.Patterns, func(v string) *rbacv3.Permission { return filterMetadata(filter, key, v) }), true
	}
	return nil, false
}

// known is eachPermission for values that may be malformed.
func (w *writer) known(p model.Patterns, write func(string) *rbacv3.Permission) []*rbacv3.Permission {
	keep := func(in []string) []string {
		var out []string
		for _, v := range in {
			if write(v) == nil {
				w.drop()
				continue
			}
			out = append(out, v)
		}
		return out
	}
	return eachPermission(model.Patterns{In: keep(p.In), Not: keep(p.Not)}, write)
}

// principalCondition writes a condition on who calls, or on the request.
func (w *writer) principalCondition(c model.AuthzCondition) []*rbacv3.Principal {
	switch {
	case c.Key == whenSourceIP:
		return w.each(c.Patterns, block(w.sourceIP))
	case c.Key == whenRemoteIP:
		return w.each(c.Patterns, block(remoteIP))
	case c.Key == whenDestinationIP:
		return w.each(c.Patterns, block(authorityIP))
	case c.Key == whenDestinationPort:
		return w.each(c.Patterns, w.authorityPort)
	case c.Key == whenSourceNamespace:
		return w.each(c.Patterns, w.namespace)
	case c.Key == whenSourcePrincipal:
		return w.each(w.expand(c.Patterns), w.principal)
	case c.Key == whenSourceAccount:
		return w.each(c.Patterns, w.account)
	case c.Key == whenSourceDomain:
		return w.each(c.Patterns, w.trustDomain)
	case c.Key == whenRequestPrincipal:
		return w.request(c.Patterns, requestPrincipals)
	case c.Key == whenRequestAudiences:
		return w.request(c.Patterns, claim([]string{"aud"}))
	case c.Key == whenRequestPresenter:
		return w.request(c.Patterns, claim([]string{"azp"}))
	case strings.HasPrefix(c.Key, whenHeader):
		name := strings.TrimSuffix(strings.TrimPrefix(c.Key, whenHeader), "]")
		return w.request(c.Patterns, func(values []string) *rbacv3.Principal { return headers(name, values) })
	case strings.HasPrefix(c.Key, whenClaim):
		return w.request(c.Patterns, claim(strings.Split(strings.TrimSuffix(strings.TrimPrefix(c.Key, whenClaim), "]"), "][")))
	}
	w.drop()
	return nil
}

// block reads addresses or blocks for write.
func block(write func(netip.Prefix) *rbacv3.Principal) func(string) *rbacv3.Principal {
	return func(v string) *rbacv3.Principal {
		p, err := parseBlock(v)
		if err != nil {
			return nil
		}
		return write(p)
	}
}

func parseBlock(v string) (netip.Prefix, error) {
	if strings.Contains(v, "/") {
		return netip.ParsePrefix(v)
	}
	a, err := netip.ParseAddr(v)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// expand adds to principals of a known trust domain those of its aliases. The domain "cluster.local" always stands
// for the mesh's own (Istio, pilot/pkg/security/trustdomain).
func (w *writer) expand(p model.Patterns) model.Patterns {
	return model.Patterns{In: w.aliases(p.In), Not: w.aliases(p.Not)}
}

// ownDomain is what policies may call the mesh's trust domain, whatever it is.
const ownDomain = "cluster.local"

func (w *writer) aliases(in []string) []string {
	var out []string
	seen := map[string]bool{}
	add := func(s string) {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	domains := append([]string{w.TrustDomain}, w.Aliases...)
	for _, p := range in {
		domain, rest, ok := strings.Cut(strings.TrimPrefix(p, match.SPIFFEScheme), "/")
		if !ok || !w.ours(domain) {
			add(p)
			continue
		}
		for _, d := range domains {
			if strings.HasPrefix(domain, "*") && strings.HasSuffix(d, domain[1:]) {
				add(p)
				continue
			}
			add(d + "/" + rest)
		}
	}
	return out
}

// ours tells whether a principal's trust domain, which may begin with an asterisk, is the mesh's or an alias.
func (w *writer) ours(domain string) bool {
	if domain == "*" || domain == "" {
		return false
	}
	if domain == ownDomain || domain == w.TrustDomain {
		return true
	}
	for _, d := range append([]string{w.TrustDomain}, w.Aliases...) {
		if d == domain || strings.HasPrefix(domain, "*") && strings.HasSuffix(d, domain[1:]) {
			return true
		}
	}
	return false
}
