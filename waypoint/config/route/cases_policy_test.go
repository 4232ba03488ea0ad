package route

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/istiod/model"
)

var issuerA = model.JWTRule{
	Issuer: "https://a.example.com", Audiences: []string{"web"}, JWKSURI: "https://a.example.com/keys", Forward: true, OutputHeader: "x-payload",
	FromHeaders: []model.JWTHeader{{Name: "x-token", Prefix: "Token "}}, FromParams: []string{"token"}, FromCookies: []string{"session"},
	ClaimToHeaders: []model.ClaimHeader{{Header: "x-group", Claim: "realm.group"}}, SpaceDelimited: []string{"roles"},
}

// tokens adds sets of token rules to a proxy.
func tokens(p *model.Proxy) {
	known := issuerA
	known.JWKS = `{"keys":[{"kty":"EC","crv":"P-256","x":"a","y":"b"}]}`
	p.HTTP.JWT = []model.JWTRequirement{
		{Name: "shop/one", Rules: []model.JWTRule{known}},
		{Name: "shop/two", Rules: []model.JWTRule{known, {Issuer: "b"}}},
	}
}

// limiters adds limit servers to a proxy.
func limiters(p *model.Proxy) {
	p.HTTP.RateLimit = []model.RateLimitCluster{
		{Cluster: "outbound|8081||limits", GlobalLimit: model.GlobalLimit{Backend: model.Destination{Host: "limits", Port: 8081}, Domain: "shop"}},
	}
}

func global(g model.GlobalLimit) *model.RateLimit {
	return &model.RateLimit{Meta: model.Meta{Key: model.Key{Namespace: "shop", Name: "global"}}, Global: &g}
}

func policyGoldens() []golden {
	shop := model.GlobalLimit{Backend: model.Destination{Host: "limits"}, Domain: "shop", Descriptors: [][]model.LimitEntry{
		{{Key: "generic", Value: "v"}, {Key: "user", Header: "x-user"}},
		{{Path: true}, {Method: true}, {SourcePrincipal: true}, {SourceAddress: true}},
	}}
	return []golden{
		{name: "jwt-one", proxy: with(waypointProxy(), tokens), host: guarded(model.HTTPPolicy{JWT: []model.JWTRule{issuerA}, Requirement: "shop/one"}), filters: true},
		{name: "jwt-by-content", proxy: with(waypointProxy(), tokens), host: guarded(model.HTTPPolicy{JWT: []model.JWTRule{issuerA, {Issuer: "b"}}})},
		{name: "jwt-unknown", proxy: with(waypointProxy(), tokens), host: guarded(model.HTTPPolicy{JWT: []model.JWTRule{{Issuer: "c"}}}), problems: []string{
			`write host "web": require a token of issuer "c": no set of rules like that is in the filter chain`,
		}},
		{name: "jwt-rule", proxy: with(waypointProxy(), tokens), host: &model.VirtualHost{
			Policy: model.HTTPPolicy{JWT: []model.JWTRule{issuerA}},
			Rules:  []model.RouteRule{{Clusters: to(clusterA), Policy: &model.HTTPPolicy{JWT: []model.JWTRule{{Issuer: "b"}}}}},
		}},
		{name: "limit-plain", host: limited(limit("plain", model.LocalLimit{Requests: 10, Per: time.Minute, Burst: 20}))},
		{name: "limit-source", host: limited(limit("source", model.LocalLimit{PerSource: true, Requests: 1, Per: time.Second}))},
		{name: "limit-source-gateway", proxy: gatewayProxy(), host: limited(limit("source", model.LocalLimit{PerSource: true, Requests: 1, Per: time.Second}))},
		{name: "limit-header", host: limited(limit("header", model.LocalLimit{PerHeader: "x-user", PerSource: true, Requests: 5, Per: 10 * time.Millisecond, DryRun: true}))},
		{name: "limit-match", host: limited(limit("match", model.LocalLimit{
			Matches: []model.LimitMatch{{
				Path: segment("/api"), Method: exact("POST"), Headers: []model.NamedMatch{present("x-key"), not(named("x-vip", exact("yes")))},
				Sources: []string{"cluster.local/ns/shop/sa/front", "*/sa/batch", "cluster.local/ns/x/*"},
			}}, Requests: 1, Per: time.Second, Status: 503,
		}))},
		{name: "limit-matches", host: limited(limit("matches", model.LocalLimit{
			Matches: []model.LimitMatch{
				{Path: exact("/a"), Method: exact("GET")}, {Path: prefix("/b"), Headers: []model.NamedMatch{not(present("x-key"))}},
			}, Requests: 1, Per: time.Second,
		}), limit("other", model.LocalLimit{Requests: 1, Per: time.Hour, Status: 503}),
			limit("unknown status", model.LocalLimit{Requests: 1, Per: time.Hour, Status: 420}))},
		{name: "limit-matches-all", host: limited(limit("all", model.LocalLimit{
			Matches: []model.LimitMatch{{Path: exact("/a")}, {}}, Requests: 1, Per: time.Second,
		}))},
		{name: "limit-bad", host: limited(limit("nothing", model.LocalLimit{Per: time.Second}), limit("good", model.LocalLimit{Requests: 1, Per: time.Second})), problems: []string{
			`write host "shop/nothing": write limit "shop/nothing/0": allow 0 requests per 1s: nothing could ever pass`,
		}},
		{name: "limit-rule", host: &model.VirtualHost{
			Policy: model.HTTPPolicy{Limits: []*model.RateLimit{limit("host", model.LocalLimit{Requests: 10, Per: time.Second})}},
			Rules: []model.RouteRule{{Clusters: to(clusterA), Policy: &model.HTTPPolicy{Limits: []*model.RateLimit{
				limit("rule", model.LocalLimit{Requests: 1, Per: time.Second}), limit("status", model.LocalLimit{Requests: 2, Per: time.Second, Status: 503}),
			}}}},
		}},
		{name: "limit-global", proxy: with(waypointProxy(), limiters), host: limited(global(shop)), filters: true},
		{name: "limit-global-gateway", proxy: with(gatewayProxy(), limiters), host: limited(global(shop))},
		{name: "limit-global-missing", host: limited(global(shop)), problems: []string{
			`write host "web": ask limit server "limits" for shop/global: it is not in the filter chain`,
		}},
		{name: "limit-global-missing-open", host: limited(global(model.GlobalLimit{Backend: model.Destination{Host: "limits"}, FailOpen: true}))},
	}
}

// everything is a rule with every field.
func everything() model.AuthzRule {
	return model.AuthzRule{
		From: []model.AuthzSource{
			{
				Principals: in("cluster.local/ns/shop/sa/a", "*/sa/b", "td.example.com/*", "*"), Namespaces: model.Patterns{In: []string{"shop", "fr*"}, Not: []string{"bad"}},
				ServiceAccounts: in("shop/front"), RequestPrincipals: in("https://issuer/sub", "*", "iss*", "*/sub", "iss/*"),
				IPs:       model.Blocks{In: []netip.Prefix{block("10.0.0.0/8")}, Not: []netip.Prefix{block("10.1.0.0/16"), block("2001:db8::/32")}},
				RemoteIPs: model.Blocks{In: []netip.Prefix{block("1.2.3.4/32")}},
			},
			{Principals: out("cluster.local/ns/shop/sa/c")},
		},
		To: []model.AuthzOperation{
			{
				Hosts: in("Web.example.com", "*.example.org", "web.*", "*"), Methods: model.Patterns{In: []string{"GET"}, Not: []string{"HEAD"}},
				Paths: model.Patterns{In: []string{"/api", "/v1/*", "*.png", "/users/{*}/posts/{**}"}, Not: []string{"/api/admin*"}}, Ports: in("80", "8080"),
			},
			{Ports: out("9090")},
		},
		When: []model.AuthzCondition{
			{Key: "source.ip", Patterns: in("10.0.0.0/8")}, {Key: "remote.ip", Patterns: out("1.2.3.0/24")},
			{Key: "source.namespace", Patterns: in("shop")}, {Key: "source.principal", Patterns: in("cluster.local/ns/shop/sa/a")},
			{Key: "request.auth.principal", Patterns: in("iss/sub")}, {Key: "request.auth.audiences", Patterns: in("web", "app*")},
			{Key: "request.auth.presenter", Patterns: in("client")}, {Key: "request.auth.claims[realm][roles]", Patterns: model.Patterns{In: []string{"admin"}, Not: []string{"guest"}}},
			{Key: "request.headers[X-Team]", Patterns: in("red", "*")}, {Key: "destination.ip", Patterns: in("10.96.0.0/12")},
			{Key: "destination.port", Patterns: in("80")}, {Key: "connection.sni", Patterns: in("web.example.com")},
			{Key: "experimental.envoy.filters.a.b[c]", Patterns: in("v", "[w]")},
		},
	}
}

func authzGoldens() []golden {
	from := func(p ...string) model.AuthzRule {
		return model.AuthzRule{From: []model.AuthzSource{{Principals: in(p...)}}}
	}
	dry := policy("dry", model.AuthzAllow, from("cluster.local/ns/shop/sa/a"))
	dry.DryRun = true
	dryDeny := policy("dry-deny", model.AuthzDeny, model.AuthzRule{})
	dryDeny.DryRun = true
	custom := policy("ask", model.AuthzCustom, model.AuthzRule{To: []model.AuthzOperation{{Paths: in("/admin*")}}})
	custom.Provider = "http-auth"
	unknown := policy("nobody", model.AuthzCustom, model.AuthzRule{To: []model.AuthzOperation{{Paths: in("/x")}}})
	unknown.Provider = "missing"
	dryCustom := policy("dry-ask", model.AuthzCustom, model.AuthzRule{})
	dryCustom.Provider, dryCustom.DryRun = "http-auth", true
	bound := gatewayProxy(model.ProxyPort{Port: 80, Bind: 8080, Chains: []model.PortChain{{Routes: "http.80"}}})
	return []golden{
		{name: "authz-everything", host: authz(policy("everything", model.AuthzAllow, everything()))},
		{name: "authz-everything-gateway", proxy: bound, host: authz(policy("everything", model.AuthzDeny, everything()))},
		{name: "authz-allow-nothing", host: authz(policy("nothing", model.AuthzAllow))},
		{name: "authz-allow-all", host: authz(policy("all", model.AuthzAllow, model.AuthzRule{}))},
		{name: "authz-deny-nothing", host: authz(policy("nothing", model.AuthzDeny))},
		{name: "authz-order", host: authz(
			policy("b", model.AuthzAllow, from("cluster.local/ns/shop/sa/a")), policy("a", model.AuthzDeny, from("*")),
			policy("c", model.AuthzAudit, model.AuthzRule{}), policy("d", model.AuthzAllow, from("x/ns/y/sa/z")),
		)},
		{name: "authz-dry-run", host: authz(dry, dryDeny)},
		{name: "authz-custom", proxy: with(waypointProxy(), asked), host: authz(custom, dryCustom), filters: true},
		{name: "authz-custom-unknown", host: authz(unknown)},
		{name: "authz-unknown-condition", host: authz(
			policy("allow", model.AuthzAllow, model.AuthzRule{When: []model.AuthzCondition{{Key: "no.such", Patterns: in("v")}}}),
			policy("deny", model.AuthzDeny, model.AuthzRule{When: []model.AuthzCondition{{Key: "no.such", Patterns: in("v")}, {Key: "source.ip", Patterns: in("none", "10.0.0.1")}}}),
		)},
		{name: "authz-trust-domains", proxy: with(waypointProxy(), func(p *model.Proxy) {
			p.TrustDomain, p.TrustDomains = "new.example.com", []string{"old.example.com"}
		}), host: authz(policy("aliases", model.AuthzAllow, from(
			"cluster.local/ns/a/sa/b", "old.example.com/ns/c/sa/d", "*.example.com/ns/e/sa/f", "foreign/ns/g/sa/h", "*/ns/i/sa/j", "*",
		)))},
		{name: "authz-rule", host: &model.VirtualHost{
			Policy: model.HTTPPolicy{Authz: []*model.Authorization{policy("host", model.AuthzDeny, from("a/ns/b/sa/c"))}},
			Rules:  []model.RouteRule{{Clusters: to(clusterA), Policy: &model.HTTPPolicy{Authz: []*model.Authorization{policy("rule", model.AuthzAllow, from("d/ns/e/sa/f"))}}}},
		}},
	}
}

func networkGoldens() []golden {
	ask := policy("ask", model.AuthzCustom, model.AuthzRule{To: []model.AuthzOperation{{Ports: in("3306")}}})
	ask.Provider = "grpc-auth"
	askHTTP := policy("ask-http", model.AuthzCustom, model.AuthzRule{})
	askHTTP.Provider = "http-auth"
	l4 := model.AuthzRule{
		From: []model.AuthzSource{{Namespaces: in("shop")}, {IPs: model.Blocks{In: []netip.Prefix{block("10.0.0.0/8")}}}},
		To:   []model.AuthzOperation{{Ports: in("3306")}},
	}
	return []golden{
		{name: "network-allow", network: []*model.Authorization{policy("allow", model.AuthzAllow, l4)}},
		{name: "network-allow-l7", network: []*model.Authorization{policy("allow", model.AuthzAllow, everything(), l4)}},
		{name: "network-deny-l7", network: []*model.Authorization{policy("deny", model.AuthzDeny, everything())}},
		{name: "network-gateway", proxy: gatewayProxy(), network: []*model.Authorization{policy("allow", model.AuthzAllow, l4), policy("audit", model.AuthzAudit, l4)}},
		{name: "network-custom", proxy: with(waypointProxy(), asked), network: []*model.Authorization{ask, askHTTP}},
		{name: "network-none", network: []*model.Authorization{}},
	}
}
