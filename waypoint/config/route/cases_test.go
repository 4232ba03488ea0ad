package route

import (
	"net/netip"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/istiod/model"
)

func ptr[T any](v T) *T { return &v }

func exact(v string) *model.StringMatch { return &model.StringMatch{Value: v} }
func prefix(v string) *model.StringMatch {
	return &model.StringMatch{Kind: model.MatchPrefix, Value: v}
}
func segment(v string) *model.StringMatch {
	return &model.StringMatch{Kind: model.MatchSegments, Value: v}
}
func regex(v string) *model.StringMatch { return &model.StringMatch{Kind: model.MatchRegex, Value: v} }
func anyCase(m *model.StringMatch) *model.StringMatch {
	m.IgnoreCase = true
	return m
}

func named(name string, m *model.StringMatch) model.NamedMatch {
	return model.NamedMatch{Name: name, StringMatch: *m}
}

func not(m model.NamedMatch) model.NamedMatch {
	m.Not = true
	return m
}

func present(name string) model.NamedMatch {
	return model.NamedMatch{Name: name, StringMatch: model.StringMatch{Kind: model.MatchPresent}}
}

// to sends everything to a cluster.
func to(cluster string) []model.RouteCluster { return share(cluster, 1) }

func share(cluster string, weight uint32) []model.RouteCluster {
	return []model.RouteCluster{{WeightedCluster: model.WeightedCluster{Cluster: cluster, Weight: weight}}}
}

const (
	clusterA = "outbound|8080||a.shop.svc.cluster.local"
	clusterB = "outbound|8080||b.shop.svc.cluster.local"
)

func waypointProxy() *model.Proxy {
	return &model.Proxy{
		Key: model.Key{Namespace: "shop", Name: "waypoint"}, Waypoint: true, TrustDomain: "cluster.local",
		Domain: "cluster.local", RootNamespace: "istio-system", ServiceAccount: "waypoint",
	}
}

func gatewayProxy(ports ...model.ProxyPort) *model.Proxy {
	p := waypointProxy()
	p.Name, p.Waypoint = "gateway", false
	if ports == nil {
		ports = []model.ProxyPort{{Port: 80, Bind: 80, Chains: []model.PortChain{{Routes: "http.80"}}}}
	}
	p.Ports = ports
	return p
}

// with changes a proxy.
func with(p *model.Proxy, f func(*model.Proxy)) *model.Proxy {
	f(p)
	return p
}

// one is a host with one rule for everything.
func one(f func(*model.RouteRule)) *model.VirtualHost {
	r := model.RouteRule{Name: "rule", Clusters: to(clusterA)}
	f(&r)
	return &model.VirtualHost{Rules: []model.RouteRule{r}}
}

// matching is a host with one rule.
func matching(m model.HTTPMatch) *model.VirtualHost {
	return one(func(r *model.RouteRule) { r.Match = m })
}

// acting is a host with one rule for a path.
func acting(path *model.StringMatch, f func(*model.HTTPRule)) *model.VirtualHost {
	return one(func(r *model.RouteRule) {
		r.Match.Path = path
		f(&r.Action)
	})
}

// guarded is a host with a policy.
func guarded(p model.HTTPPolicy) *model.VirtualHost {
	return &model.VirtualHost{Policy: p, Rules: []model.RouteRule{{Name: "rule", Match: model.HTTPMatch{Path: prefix("/api")}, Clusters: to(clusterA)}}}
}

func policy(name string, action model.AuthzAction, rules ...model.AuthzRule) *model.Authorization {
	return &model.Authorization{Meta: model.Meta{Key: model.Key{Namespace: "shop", Name: name}}, Action: action, Rules: rules}
}

func authz(p ...*model.Authorization) *model.VirtualHost { return guarded(model.HTTPPolicy{Authz: p}) }

func in(v ...string) model.Patterns  { return model.Patterns{In: v} }
func out(v ...string) model.Patterns { return model.Patterns{Not: v} }

func block(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// limit is a policy of one local limit.
func limit(name string, l model.LocalLimit) *model.RateLimit {
	return &model.RateLimit{Meta: model.Meta{Key: model.Key{Namespace: "shop", Name: name}}, Local: []model.LocalLimit{l}}
}

func limited(l ...*model.RateLimit) *model.VirtualHost { return guarded(model.HTTPPolicy{Limits: l}) }

var retryDefault = &model.Retry{Attempts: 2, On: []string{"connect-failure", "refused-stream", "unavailable", "cancelled"}}

// goldens are all inputs.
func goldens() []golden {
	var all []golden
	all = append(all, tableGoldens()...)
	all = append(all, matchGoldens()...)
	all = append(all, actionGoldens()...)
	all = append(all, policyGoldens()...)
	all = append(all, authzGoldens()...)
	return append(all, networkGoldens()...)
}

func tableGoldens() []golden {
	return []golden{
		{name: "table-empty"},
		{name: "table-hosts", table: &model.RouteTable{Name: "shop/web.shop.svc.cluster.local:80", Hosts: []model.VirtualHost{
			{Name: "a", Domains: []string{"A.example.com", "a.example.com:8080", "*.example.org"}, Rules: []model.RouteRule{{Clusters: to(clusterA)}}},
			{Name: "a", Domains: []string{"a.example.com", "b.example.com", "[2001:db8::1]:80"}, Rules: []model.RouteRule{{Clusters: to(clusterB)}}},
			{Name: "taken", Domains: []string{"b.example.com"}},
			{Name: "strange", Domains: []string{"", "**", "a*b", "*a*", "c.example.com\r\n"}},
			{Domains: []string{"*"}},
		}}},
		{name: "table-redirect-tls", proxy: gatewayProxy(), host: &model.VirtualHost{RedirectTLS: true}},
		{name: "table-filters-waypoint", filters: true},
		{name: "table-filters-gateway", proxy: gatewayProxy(), filters: true},
		{name: "table-service", proxy: with(waypointProxy(), func(p *model.Proxy) { p.HTTP.Tracing = &model.Tracing{} }),
			host: one(func(r *model.RouteRule) { r.Service = "web.shop.svc.cluster.local" })},
	}
}

func matchGoldens() []golden {
	source := func(a []netip.Addr, m model.HTTPMatch) *model.VirtualHost {
		return one(func(r *model.RouteRule) { r.Match, r.SourceAddresses = m, a })
	}
	return []golden{
		{name: "match-path-exact", host: matching(model.HTTPMatch{Path: anyCase(exact("/Exact"))})},
		{name: "match-path-prefix", host: matching(model.HTTPMatch{Path: prefix("/pre")})},
		{name: "match-path-segments", host: &model.VirtualHost{Rules: []model.RouteRule{
			{Match: model.HTTPMatch{Path: segment("/a/b/")}, Clusters: to(clusterA)},
			{Match: model.HTTPMatch{Path: segment("/")}, Clusters: to(clusterB)},
		}}},
		{name: "match-path-regex", host: matching(model.HTTPMatch{Path: anyCase(regex("/v[0-9]+/.*"))})},
		{name: "match-path-suffix", host: matching(model.HTTPMatch{Path: &model.StringMatch{Kind: model.MatchSuffix, Value: ".png"}})},
		{name: "match-path-bad-regex", host: matching(model.HTTPMatch{Path: regex("/(")}), problems: []string{
			"write rule \"rule\" of host \"web\": compare path: compile expression: error parsing regexp: missing closing ): `/(`",
		}},
		{name: "match-path-bad-segments", host: matching(model.HTTPMatch{Path: segment("/a?b")}), problems: []string{
			`write rule "rule" of host "web": invalid RouteMatch.PathSeparatedPrefix: value does not match regex pattern "^[^?#]+[^?#/]$"`,
		}},
		{name: "match-headers", host: matching(model.HTTPMatch{Headers: []model.NamedMatch{
			named("x-exact", exact("v")), named("x-prefix", prefix("v")), named("x-regex", regex("v.*")), present("x-present"),
			not(named("x-not", exact("v"))), not(present("x-absent")), named("x-case", anyCase(exact("V"))), named("x-empty", prefix("")),
			named("x-segments", segment("/a")),
		}})},
		{name: "match-query", host: matching(model.HTTPMatch{Query: []model.NamedMatch{named("q", exact("v")), named("r", regex("[0-9]+")), present("p")}})},
		{name: "match-query-not", host: matching(model.HTTPMatch{Query: []model.NamedMatch{not(named("q", exact("v")))}}), problems: []string{
			`write rule "rule" of host "web": compare query parameter "q": a parameter that must not match cannot be expressed`,
		}},
		{name: "match-request-line", host: matching(model.HTTPMatch{Method: exact("GET"), Scheme: exact("http"), Authority: anyCase(prefix("web."))})},
		{name: "match-grpc", host: matching(model.HTTPMatch{GRPC: true, Path: exact("/pkg.Service/Method")})},
		{name: "match-claims", host: matching(model.HTTPMatch{Claims: []model.NamedMatch{
			named("group", exact("admin")), named("[https://a.b/roles][x]", exact("dev")), not(named("realm.name", regex("x.*"))), present("sub"),
		}})},
		{name: "match-port-here", host: matching(model.HTTPMatch{Port: 8080})},
		{name: "match-port-elsewhere", host: matching(model.HTTPMatch{Port: 9090})},
		{name: "match-port-unknown", table: &model.RouteTable{Name: "direct", Hosts: []model.VirtualHost{*matching(model.HTTPMatch{Port: 9090})}}},
		{name: "match-port-gateway", proxy: gatewayProxy(
			model.ProxyPort{Port: 80, Chains: []model.PortChain{{Routes: "http.80"}}},
			model.ProxyPort{Port: 8080, Chains: []model.PortChain{{Routes: "http.80"}}},
		), host: matching(model.HTTPMatch{Port: 80}), problems: []string{
			`write rule "rule" of host "web": match port 80: the table serves several ports, which Envoy cannot tell apart`,
		}},
		{name: "match-source-namespace", host: matching(model.HTTPMatch{SourceNamespace: "fro.nt"})},
		{name: "match-source-namespace-gateway", proxy: gatewayProxy(), host: &model.VirtualHost{Rules: []model.RouteRule{
			{Name: "own", Match: model.HTTPMatch{SourceNamespace: "shop"}, Clusters: to(clusterA)},
			{Name: "other", Match: model.HTTPMatch{SourceNamespace: "other"}, Clusters: to(clusterB)},
		}}},
		{name: "match-source-addresses", host: source([]netip.Addr{
			netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("10.0.0.1"),
		}, model.HTTPMatch{})},
		{name: "match-source-address", host: source([]netip.Addr{netip.MustParseAddr("10.0.0.1")}, model.HTTPMatch{SourceNamespace: "shop"})},
		{name: "match-source-nobody", host: source([]netip.Addr{}, model.HTTPMatch{})},
	}
}

func actionGoldens() []golden {
	edits := model.HeaderOps{
		Set:    []model.Header{{Name: "x-set", Value: "a"}, {Name: "Host", Value: "set.example.com"}, {Name: ":path", Value: "/x"}, {Name: "x-empty"}},
		Add:    []model.Header{{Name: "x-add", Value: "100%% of %REQ(x-in)% and %UNKNOWN(x)%"}, {Name: "x bad", Value: "v"}, {Name: "x-bad", Value: "a\r\nb: c"}},
		Remove: []string{"x-remove", "host", ":method", ""},
	}
	minute := time.Minute
	none := time.Duration(0)
	long := strings.Repeat("x", 5000)
	return []golden{
		{name: "action-weights", host: one(func(r *model.RouteRule) {
			r.Clusters = append(append(share(clusterA, 90), share(clusterB, 9)...), append(share("", 1), share("never", 0)...)...)
		})},
		{name: "action-weights-huge", host: one(func(r *model.RouteRule) {
			r.Clusters = append(append(share(clusterA, 1<<32-1), share(clusterB, 1<<32-1)...), share("small", 1)...)
		})},
		{name: "action-no-backend", host: one(func(r *model.RouteRule) { r.Clusters = share("", 1) })},
		{name: "action-zero-weights", host: one(func(r *model.RouteRule) { r.Clusters = share(clusterA, 0) })},
		{name: "action-status", host: &model.VirtualHost{Rules: []model.RouteRule{
			{Match: model.HTTPMatch{Path: prefix("/bad")}, Status: 500}, {Status: 404},
		}}},
		{name: "action-headers", host: one(func(r *model.RouteRule) { r.Action.Request, r.Action.Response = edits, edits })},
		{name: "action-headers-backend", host: one(func(r *model.RouteRule) {
			r.Action.Request = edits
			r.Action.Request.Set = edits.Set[:1]
			r.Clusters[0].Request, r.Clusters[0].Response = edits, edits
		})},
		{name: "action-authority", host: acting(nil, func(r *model.HTTPRule) { r.Authority = "other.example.com" })},
		{name: "action-authority-backend", host: one(func(r *model.RouteRule) { r.Clusters[0].Authority = "backend.example.com" })},
		{name: "action-rewrite-full", host: acting(prefix("/a"), func(r *model.HTTPRule) { r.Rewrite = &model.PathRewrite{Full: ptr("/100%")} })},
		{name: "action-rewrite-full-bad", host: acting(prefix("/a"), func(r *model.HTTPRule) { r.Rewrite = &model.PathRewrite{Full: ptr("a")} }), problems: []string{
			`write rule "rule" of host "web": rewrite path to "a": it does not begin with a slash`,
		}},
		{name: "action-rewrite-segments", host: acting(segment("/a"), func(r *model.HTTPRule) { r.Rewrite = &model.PathRewrite{Prefix: ptr("/b/")} })},
		{name: "action-rewrite-segments-nothing", host: acting(anyCase(segment("/a.b")), func(r *model.HTTPRule) { r.Rewrite = &model.PathRewrite{Prefix: ptr("/")} })},
		{name: "action-rewrite-root", host: acting(segment("/"), func(r *model.HTTPRule) { r.Rewrite = &model.PathRewrite{Prefix: ptr("/b")} })},
		{name: "action-rewrite-characters", host: acting(prefix("/a"), func(r *model.HTTPRule) { r.Rewrite = &model.PathRewrite{Prefix: ptr("/b")} })},
		{name: "action-rewrite-regex", host: acting(prefix("/"), func(r *model.HTTPRule) {
			r.Rewrite = &model.PathRewrite{Regex: "^/service/([^/]+)(/.*)$", Substitution: `\2/instance/\1`}
		})},
		{name: "action-rewrite-regex-bad", host: acting(prefix("/"), func(r *model.HTTPRule) {
			r.Rewrite = &model.PathRewrite{Regex: "^/(a)", Substitution: `/\2`}
		}), problems: []string{`write rule "rule" of host "web": rewrite path: substitute "/\\2": "\\2" is no group of the expression`}},
		{name: "action-redirect", proxy: gatewayProxy(), host: acting(segment("/a"), func(r *model.HTTPRule) {
			r.Redirect = &model.Redirect{Scheme: "https", Host: "b.example.com", Code: 308, Path: &model.PathRewrite{Prefix: ptr("/b")}}
		})},
		{name: "action-redirect-port", proxy: gatewayProxy(model.ProxyPort{Port: 8080, Chains: []model.PortChain{{Routes: "http.80"}}}),
			host: &model.VirtualHost{Rules: []model.RouteRule{
				{Name: "nothing", Match: model.HTTPMatch{Path: exact("/1")}, Action: model.HTTPRule{Redirect: &model.Redirect{Code: 302}}},
				{Name: "scheme", Match: model.HTTPMatch{Path: exact("/2")}, Action: model.HTTPRule{Redirect: &model.Redirect{Code: 302, Scheme: "https"}}},
				{Name: "scheme and host", Match: model.HTTPMatch{Path: exact("/3")}, Action: model.HTTPRule{Redirect: &model.Redirect{Code: 302, Scheme: "https", Host: "x"}}},
				{Name: "port", Match: model.HTTPMatch{Path: exact("/4")}, Action: model.HTTPRule{Redirect: &model.Redirect{Code: 302, Port: 9090}}},
				{Name: "port of scheme", Match: model.HTTPMatch{Path: exact("/5")}, Action: model.HTTPRule{Redirect: &model.Redirect{Code: 302, Port: 80, Host: "x"}}},
				{Name: "from request", Match: model.HTTPMatch{Path: exact("/6")}, Action: model.HTTPRule{Redirect: &model.Redirect{Code: 307, Scheme: "https", PortFromRequest: true}}},
				{Name: "full", Match: model.HTTPMatch{Path: exact("/7")}, Action: model.HTTPRule{Redirect: &model.Redirect{Code: 303, Path: &model.PathRewrite{Full: ptr("/new")}}}},
				{Name: "regex", Match: model.HTTPMatch{Path: prefix("/8")}, Action: model.HTTPRule{Redirect: &model.Redirect{Path: &model.PathRewrite{Regex: "/8/(.*)", Substitution: `/9/\1`}}}},
			}}},
		{name: "action-redirect-bad-code", host: acting(nil, func(r *model.HTTPRule) { r.Redirect = &model.Redirect{Code: 300} }), problems: []string{
			`write rule "rule" of host "web": redirect with status 300: Envoy knows 301, 302, 303, 307 and 308`,
		}},
		{name: "action-direct", host: acting(nil, func(r *model.HTTPRule) { r.Direct = &model.DirectResponse{Status: 418, Body: []byte("short")} })},
		{name: "action-direct-long", host: acting(nil, func(r *model.HTTPRule) { r.Direct = &model.DirectResponse{Status: 200, Body: []byte(long)} })},
		{name: "action-mirrors", host: one(func(r *model.RouteRule) {
			r.MirrorClusters = []model.MirrorCluster{
				{Cluster: clusterB}, {Cluster: "half", Share: model.Fraction{Numerator: 50, Denominator: 100}},
				{Cluster: "odd", Share: model.Fraction{Numerator: 1, Denominator: 3}}, {Cluster: "none", Share: model.Fraction{Denominator: 100}}, {},
			}
		})},
		{name: "action-fault", host: acting(nil, func(r *model.HTTPRule) {
			r.Fault = &model.Fault{
				Delay: 3 * time.Second, DelayShare: model.Fraction{Numerator: 1, Denominator: 10_000},
				AbortHTTP: 503, AbortShare: model.Fraction{Numerator: 20, Denominator: 100},
			}
		})},
		{name: "action-fault-grpc", host: acting(nil, func(r *model.HTTPRule) {
			r.Fault = &model.Fault{AbortGRPC: "UNAVAILABLE", AbortShare: model.Fraction{Numerator: 100, Denominator: 100}}
		})},
		{name: "action-fault-grpc-bad", host: acting(nil, func(r *model.HTTPRule) { r.Fault = &model.Fault{AbortGRPC: "SAD"} }), problems: []string{
			`write rule "rule" of host "web": read gRPC status "SAD": invalid code: "\"SAD\""`,
		}},
		{name: "action-timeouts", host: acting(nil, func(r *model.HTTPRule) { r.Timeout, r.BackendTimeout = &minute, ptr(10*time.Second) })},
		{name: "action-timeouts-none", host: acting(nil, func(r *model.HTTPRule) { r.Timeout, r.BackendTimeout = &none, &none })},
		{name: "action-retry", host: one(func(r *model.RouteRule) { r.Retry = retryDefault })},
		{name: "action-retry-method", host: &model.VirtualHost{Rules: []model.RouteRule{
			{Match: model.HTTPMatch{Method: exact("GET")}, Retry: retryDefault, Clusters: to(clusterA)},
			{Match: model.HTTPMatch{Method: exact("POST")}, Retry: retryDefault, Clusters: to(clusterA)},
			{Match: model.HTTPMatch{GRPC: true}, Retry: retryDefault, Clusters: to(clusterA)},
		}}},
		{name: "action-retry-everything", host: one(func(r *model.RouteRule) {
			r.Action.BackendTimeout = ptr(time.Second)
			r.Hash = []model.HashPolicy{{Header: "x-user"}}
			r.Retry = &model.Retry{Attempts: 3, PerTry: 2 * time.Second, On: []string{"5xx"}, Codes: []int{500, 503}, Backoff: 5 * time.Millisecond, OtherLocality: true}
		})},
		{name: "action-retry-off", host: one(func(r *model.RouteRule) { r.Retry = &model.Retry{PerTry: time.Second} })},
		{name: "action-cors", host: acting(nil, func(r *model.HTTPRule) {
			r.CORS = &model.CORS{
				Origins: []model.StringMatch{*exact("https://a.example.com"), *regex(`https://.*\.b\.example\.com`), {Kind: model.MatchPresent}},
				Methods: []string{"GET", "POST"}, AllowHeaders: []string{"x-a", "x-b"}, ExposeHeaders: []string{"x-c"},
				MaxAge: ptr(24 * time.Hour), Credentials: ptr(true), ForwardUnmatched: true,
			}
		})},
		{name: "action-hash", host: one(func(r *model.RouteRule) {
			r.Hash = []model.HashPolicy{
				{Header: "x-user"}, {Query: "user"}, {SourceIP: true}, {},
				{Cookie: &model.HashCookie{Name: "c", Path: "/", TTL: ptr(time.Hour), Attributes: []model.Header{{Name: "SameSite", Value: "Strict"}}}},
			}
		})},
		{name: "action-hash-gateway", proxy: gatewayProxy(), host: one(func(r *model.RouteRule) { r.Hash = []model.HashPolicy{{SourceIP: true}} })},
		{name: "action-session-cookie", host: acting(nil, func(r *model.HTTPRule) {
			r.Session = &model.SessionPersistence{Name: "s", TTL: time.Hour, Path: "/cart"}
		})},
		{name: "action-session-header", host: acting(nil, func(r *model.HTTPRule) { r.Session = &model.SessionPersistence{Header: true} })},
		{name: "action-ext-auth", proxy: with(waypointProxy(), asked), host: one(func(r *model.RouteRule) {
			r.Action.ExternalAuth, r.ExtAuthz = &model.ExtAuthz{Backend: model.Destination{Host: "auth"}}, "outbound|80||auth"
		}), filters: true},
		{name: "action-ext-auth-missing", host: one(func(r *model.RouteRule) {
			r.Action.ExternalAuth, r.ExtAuthz = &model.ExtAuthz{Backend: model.Destination{Host: "auth"}}, "outbound|80||auth"
		}), problems: []string{`write rule "rule" of host "web": ask authorization server "auth": it is not in the filter chain`}},
	}
}

// asked adds external servers to a proxy.
func asked(p *model.Proxy) {
	p.HTTP.ExtAuthz = []model.ExtAuthzCluster{
		{Cluster: "outbound|80||auth", ExtAuthz: model.ExtAuthz{
			Name: "http-auth", Backend: model.Destination{Host: "auth", Port: 80}, Timeout: time.Second, FailOpen: true, StatusOnError: 503,
			PathPrefix: "/check/", IncludeHeaders: []string{"x-a", "x-b*"}, ToUpstreamOnAllow: []string{"x-user"},
			ToDownstreamOnDeny: []string{"*-why"}, ToDownstreamOnAllow: []string{"set-cookie"},
			AddHeaders: []model.Header{{Name: "x-mesh", Value: "ambit"}}, Body: 1024, BodyPartial: true, BodyBytes: true, ClearRouteCache: true,
		}},
		{Cluster: "outbound|9000||auth", ExtAuthz: model.ExtAuthz{Name: "grpc-auth", GRPC: true, Backend: model.Destination{Host: "auth", Port: 9000}}},
	}
}
