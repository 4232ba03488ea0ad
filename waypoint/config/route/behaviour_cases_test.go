package route

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// ruleTo sends what matches to a backend, and says in the answer which rule it was.
func ruleTo(name, cluster string, m model.HTTPMatch, f ...func(*model.RouteRule)) model.RouteRule {
	r := model.RouteRule{Name: name, Match: m, Clusters: to(cluster)}
	r.Action.Response.Set = []model.Header{{Name: "x-rule", Value: name}}
	for _, f := range f {
		f(&r)
	}
	return r
}

func on(path *model.StringMatch) model.HTTPMatch { return model.HTTPMatch{Path: path} }

func action(f func(*model.HTTPRule)) func(*model.RouteRule) {
	return func(r *model.RouteRule) { f(&r.Action) }
}

func host(name string, p model.HTTPPolicy, rules ...model.RouteRule) model.VirtualHost {
	return model.VirtualHost{Name: name, Domains: []string{name}, Policy: p, Rules: rules}
}

// table is what the waypoint under test serves.
func (w *world) table() *model.RouteTable {
	t := &model.RouteTable{Name: "shop/web.shop.svc.cluster.local:8080"}
	t.Hosts = append(t.Hosts, matchHost(), rewriteHost(), redirectHost("redirect.test"), trafficHosts()[0])
	t.Hosts = append(t.Hosts, trafficHosts()[1:]...)
	t.Hosts = append(t.Hosts, policyHosts()...)
	t.Hosts = append(t.Hosts, limitHosts()...)
	return t
}

func matchHost() model.VirtualHost {
	none := model.HTTPPolicy{}
	return host("match.test", none,
		ruleTo("both", "a", model.HTTPMatch{Path: exact("/order"), Headers: []model.NamedMatch{named("x-first", exact("1"))}}),
		ruleTo("order", "a", on(exact("/order"))),
		ruleTo("exact", "a", on(exact("/exact"))),
		ruleTo("exact any case", "a", on(anyCase(exact("/Case")))),
		ruleTo("segments", "a", on(segment("/seg/ments"))),
		ruleTo("prefix", "a", on(prefix("/pre"))),
		ruleTo("regex", "a", on(regex("/re/[0-9]+"))),
		ruleTo("suffix", "a", on(&model.StringMatch{Kind: model.MatchSuffix, Value: ".png"})),
		ruleTo("header exact", "a", model.HTTPMatch{Path: prefix("/header"), Headers: []model.NamedMatch{named("x-h", exact("v"))}}),
		ruleTo("header regex", "a", model.HTTPMatch{Path: prefix("/header"), Headers: []model.NamedMatch{named("x-h", regex("w+"))}}),
		ruleTo("header present", "a", model.HTTPMatch{Path: prefix("/header"), Headers: []model.NamedMatch{present("x-p")}}),
		ruleTo("header not", "a", model.HTTPMatch{Path: prefix("/header"), Headers: []model.NamedMatch{not(named("x-n", exact("v")))}}),
		ruleTo("header absent", "a", model.HTTPMatch{Path: prefix("/absent"), Headers: []model.NamedMatch{not(present("x-n"))}}),
		ruleTo("query", "a", model.HTTPMatch{Path: prefix("/query"), Query: []model.NamedMatch{named("q", exact("v")), present("p")}}),
		ruleTo("method", "a", model.HTTPMatch{Path: prefix("/method"), Method: exact("POST")}),
		ruleTo("authority", "a", model.HTTPMatch{Path: prefix("/authority"), Authority: exact("match.test:99")}),
		ruleTo("grpc", "a", model.HTTPMatch{Path: prefix("/pkg.Service"), GRPC: true}),
		ruleTo("port", "a", model.HTTPMatch{Path: prefix("/port"), Port: 8080}),
		ruleTo("other port", "a", model.HTTPMatch{Path: prefix("/other-port"), Port: 9090}),
		ruleTo("namespace", "a", model.HTTPMatch{Path: prefix("/namespace"), SourceNamespace: "shop"}),
		ruleTo("source", "a", on(prefix("/source")), func(r *model.RouteRule) {
			r.SourceAddresses = []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}
		}),
		ruleTo("nobody", "a", on(prefix("/source")), func(r *model.RouteRule) { r.SourceAddresses = []netip.Addr{} }),
		ruleTo("websocket", "a", on(exact("/ws"))),
	)
}

func rewriteHost() model.VirtualHost {
	replace := func(path, by string) model.RouteRule {
		return ruleTo(path, "a", on(segment(path)), action(func(r *model.HTTPRule) { r.Rewrite = &model.PathRewrite{Prefix: &by} }))
	}
	return host("rewrite.test", model.HTTPPolicy{},
		replace("/foo", "/xyz"), replace("/slash/", "/xyz/"), replace("/empty", ""), replace("/one", "/"),
		ruleTo("full", "a", on(prefix("/full")), action(func(r *model.HTTPRule) { r.Rewrite = &model.PathRewrite{Full: ptr("/all/100%25")} })),
		ruleTo("regex", "a", on(prefix("/service")), action(func(r *model.HTTPRule) {
			r.Rewrite = &model.PathRewrite{Regex: "^/service/([^/]+)(/.*)$", Substitution: `\2/of/\1`}
		})),
		ruleTo("characters", "a", on(prefix("/char")), action(func(r *model.HTTPRule) { r.Rewrite = &model.PathRewrite{Prefix: ptr("/c/")} })),
		ruleTo("authority", "a", on(prefix("/authority")), action(func(r *model.HTTPRule) { r.Authority = "other.example.com" })),
		ruleTo("root", "a", on(segment("/")), action(func(r *model.HTTPRule) { r.Rewrite = &model.PathRewrite{Prefix: ptr("/root")} })),
	)
}

func redirectHost(name string) model.VirtualHost {
	redirect := func(path string, r model.Redirect) model.RouteRule {
		return model.RouteRule{Name: path, Match: on(segment(path)), Action: model.HTTPRule{Redirect: &r}}
	}
	return host(name, model.HTTPPolicy{},
		redirect("/host", model.Redirect{Code: 302, Host: "b.example.com"}),
		redirect("/https", model.Redirect{Code: 301, Scheme: "https"}),
		redirect("/port", model.Redirect{Code: 307, Port: 9443}),
		redirect("/well-known", model.Redirect{Code: 308, Scheme: "https", Port: 443}),
		redirect("/path", model.Redirect{Code: 303, Path: &model.PathRewrite{Full: ptr("/new")}}),
		redirect("/prefix", model.Redirect{Code: 302, Path: &model.PathRewrite{Prefix: ptr("/new")}}),
		redirect("/cut", model.Redirect{Code: 302, Path: &model.PathRewrite{Prefix: ptr("/")}}),
	)
}

// gatewayTable is what the gateways under test serve.
func gatewayTable() *model.RouteTable {
	tls := host("tls.test", model.HTTPPolicy{}, ruleTo("tls", "a", on(prefix("/"))))
	tls.RedirectTLS = true
	return &model.RouteTable{Hosts: []model.VirtualHost{redirectHost("redirect.test"), tls, host("authz.test", model.HTTPPolicy{Authz: []*model.Authorization{
		policy("ips", model.AuthzDeny, model.AuthzRule{From: []model.AuthzSource{{IPs: model.Blocks{In: []netip.Prefix{block("127.0.0.2/32")}}}}}),
	}}, ruleTo("gateway", "a", on(prefix("/"))))}}
}

func trafficHosts() []model.VirtualHost {
	half := func(a, b model.RouteCluster) func(*model.RouteRule) {
		return func(r *model.RouteRule) { r.Clusters = []model.RouteCluster{a, b} }
	}
	everyone, never := model.Fraction{Numerator: 100, Denominator: 100}, model.Fraction{Denominator: 100}
	retry := func(f func(*model.Retry)) func(*model.RouteRule) {
		return func(r *model.RouteRule) {
			r.Retry = &model.Retry{Attempts: 2, On: []string{"connect-failure"}}
			f(r.Retry)
		}
	}
	none := model.HTTPPolicy{}
	headers := model.HeaderOps{
		Remove: []string{"x-gone", "x-again"}, Set: []model.Header{{Name: "x-set", Value: "rule"}, {Name: "x-again", Value: "new"}},
		Add: []model.Header{{Name: "x-add", Value: "100%% %REQ(x-in)% %NONSENSE(1)%"}},
	}
	return []model.VirtualHost{
		host("weights.test", none,
			ruleTo("split", "a", on(exact("/split")), half(share("a", 80)[0], share("b", 20)[0])),
			ruleTo("half", "a", on(exact("/half")), half(share("a", 1)[0], share("", 1)[0])),
			ruleTo("none", "", on(exact("/none"))),
			ruleTo("unknown", "no such cluster", on(exact("/unknown"))),
			ruleTo("status", "a", on(exact("/status")), func(r *model.RouteRule) { r.Status = 500 }),
			ruleTo("direct", "", on(exact("/direct")), action(func(r *model.HTTPRule) { r.Direct = &model.DirectResponse{Status: 418, Body: []byte("tea")} })),
		),
		host("mirror.test", none,
			ruleTo("mirror", "a", on(prefix("/mirrored")), func(r *model.RouteRule) { r.MirrorClusters = []model.MirrorCluster{{Cluster: "b"}} }),
			ruleTo("never", "a", on(prefix("/never")), func(r *model.RouteRule) { r.MirrorClusters = []model.MirrorCluster{{Cluster: "b", Share: never}} })),
		host("fault.test", none,
			ruleTo("abort", "a", on(exact("/abort")), action(func(r *model.HTTPRule) { r.Fault = &model.Fault{AbortHTTP: 418, AbortShare: everyone} })),
			ruleTo("grpc", "a", on(exact("/grpc")), action(func(r *model.HTTPRule) { r.Fault = &model.Fault{AbortGRPC: "UNAVAILABLE", AbortShare: everyone} })),
			ruleTo("delay", "a", on(exact("/delay")), action(func(r *model.HTTPRule) { r.Fault = &model.Fault{Delay: 50 * time.Millisecond, DelayShare: everyone} })),
			ruleTo("some", "a", on(exact("/some")), action(func(r *model.HTTPRule) {
				r.Fault = &model.Fault{AbortHTTP: 503, AbortShare: model.Fraction{Numerator: 3000, Denominator: 10_000}}
			}))),
		host("retry.test", none,
			ruleTo("codes", "a", on(exact("/codes")), retry(func(r *model.Retry) { r.Codes = []int{503} })),
			ruleTo("reset", "a", on(exact("/reset")), retry(func(*model.Retry) {})),
			ruleTo("other host", "pair", on(exact("/pair")), retry(func(*model.Retry) {})),
			ruleTo("refused", "refused", on(exact("/refused")), retry(func(*model.Retry) {})),
			ruleTo("off", "a", on(exact("/off")), retry(func(r *model.Retry) { r.Attempts, r.Codes = 0, []int{503} })),
			ruleTo("per try", "a", on(exact("/per-try")), action(func(r *model.HTTPRule) { r.BackendTimeout = ptr(100 * time.Millisecond) })),
			ruleTo("whole", "a", on(exact("/whole")), action(func(r *model.HTTPRule) { r.Timeout = ptr(100 * time.Millisecond) }))),
		host("headers.test", none,
			ruleTo("rule", "a", on(exact("/rule")), action(func(r *model.HTTPRule) { r.Request = headers })),
			ruleTo("backend", "a", on(exact("/backend")), func(r *model.RouteRule) {
				r.Action.Request = headers
				r.Clusters[0].Request = model.HeaderOps{Set: []model.Header{{Name: "x-set", Value: "backend"}}}
				r.Clusters[0].Response = model.HeaderOps{Add: []model.Header{{Name: "x-rule", Value: "and backend"}}}
				r.Clusters[0].Authority = "backend.example.com"
			}),
			ruleTo("shares", "a", on(exact("/shares")), half(share("a", 1)[0], share("a", 1)[0]), func(r *model.RouteRule) {
				r.Action.Request = headers
				for i := range r.Clusters {
					r.Clusters[i].Request = model.HeaderOps{Set: []model.Header{{Name: "x-set", Value: "share"}}, Remove: []string{"x-again"}}
				}
			})),
		host("cors.test", none, ruleTo("cors", "a", on(prefix("/")), action(func(r *model.HTTPRule) {
			r.CORS = &model.CORS{Origins: []model.StringMatch{*exact("https://good.example.com")}, Methods: []string{"GET", "PUT"},
				AllowHeaders: []string{"x-h"}, MaxAge: ptr(time.Hour), Credentials: ptr(true)}
		}))),
		host("session.test", none, ruleTo("session", "a", on(prefix("/")), half(share("a", 1)[0], share("a", 1)[0]), action(func(r *model.HTTPRule) {
			r.Session = &model.SessionPersistence{Name: "stay"}
		}))),
	}
}

func policyHosts() []model.VirtualHost {
	rule := func(name string) model.JWTRule {
		return model.JWTRule{Issuer: name, Forward: true, ClaimToHeaders: []model.ClaimHeader{{Header: "x-group", Claim: "group"}}}
	}
	custom := func(provider string, paths ...string) *model.Authorization {
		p := policy(provider, model.AuthzCustom, model.AuthzRule{To: []model.AuthzOperation{{Paths: in(paths...)}}})
		p.Provider = provider
		return p
	}
	dry := policy("dry", model.AuthzDeny, model.AuthzRule{})
	dry.DryRun = true
	to := func(o model.AuthzOperation) []model.AuthzOperation { return []model.AuthzOperation{o} }
	from := func(s model.AuthzSource) []model.AuthzSource { return []model.AuthzSource{s} }
	claims := model.HTTPPolicy{JWT: []model.JWTRule{rule("one")}, Requirement: "one"}
	return []model.VirtualHost{
		host("jwt.test", model.HTTPPolicy{
			JWT: []model.JWTRule{rule("one")}, Requirement: "one",
			Authz: []*model.Authorization{policy("jwt", model.AuthzAllow,
				model.AuthzRule{To: to(model.AuthzOperation{Paths: in("/open*")})},
				model.AuthzRule{To: to(model.AuthzOperation{Paths: in("/needs-token")}), From: from(model.AuthzSource{RequestPrincipals: in("*")})},
				model.AuthzRule{To: to(model.AuthzOperation{Paths: in("/needs-sub")}), From: from(model.AuthzSource{RequestPrincipals: in("one/ann")})},
				model.AuthzRule{To: to(model.AuthzOperation{Paths: in("/needs-claim")}), When: []model.AuthzCondition{{Key: "request.auth.claims[realm][roles]", Patterns: in("admin")}}},
			)},
		}, ruleTo("jwt", "a", on(prefix("/")))),
		host("jwt-two.test", model.HTTPPolicy{JWT: []model.JWTRule{rule("one"), rule("two")}}, ruleTo("jwt", "a", on(prefix("/")))),
		host("jwt-broken.test", model.HTTPPolicy{JWT: []model.JWTRule{rule("broken")}, Requirement: "broken"}, ruleTo("jwt", "a", on(prefix("/")))),
		host("claims.test", claims,
			ruleTo("admin", "b", model.HTTPMatch{Claims: []model.NamedMatch{named("realm.roles", exact("admin"))}}),
			ruleTo("not admin", "a", model.HTTPMatch{Claims: []model.NamedMatch{not(named("realm.roles", exact("admin"))), present("sub")}})),
		host("authz.test", model.HTTPPolicy{Authz: []*model.Authorization{
			dry,
			policy("deny", model.AuthzDeny, model.AuthzRule{To: to(model.AuthzOperation{Paths: in("/admin*"), Methods: out("GET")})},
				model.AuthzRule{From: from(model.AuthzSource{IPs: model.Blocks{In: []netip.Prefix{block("127.0.0.7/32")}}})},
				model.AuthzRule{To: to(model.AuthzOperation{Ports: in("9090")})},
				model.AuthzRule{When: []model.AuthzCondition{{Key: "request.headers[x-evil]", Patterns: in("*")}}}),
			policy("allow", model.AuthzAllow,
				model.AuthzRule{From: from(model.AuthzSource{Principals: in("cluster.local/ns/shop/sa/front")}), To: to(model.AuthzOperation{Ports: in("8080")})},
				model.AuthzRule{From: from(model.AuthzSource{Namespaces: in("jobs")}), To: to(model.AuthzOperation{Paths: in("/jobs/{*}/log", "/files/{**}"), Hosts: in("AUTHZ.test")})}),
		}}, ruleTo("authz", "a", on(prefix("/")))),
		host("nothing.test", model.HTTPPolicy{Authz: []*model.Authorization{policy("nothing", model.AuthzAllow)}}, ruleTo("never", "a", on(prefix("/")))),
		host("hidden.test", model.HTTPPolicy{Authz: []*model.Authorization{policy("nothing", model.AuthzAllow)}}, ruleTo("never", "a", on(prefix("/there")))),
		host("custom.test", model.HTTPPolicy{Authz: []*model.Authorization{
			custom("grpc", "/grpc*", "/both"), custom("http", "/http*", "/both"), custom("gone", "/gone"), custom("unknown", "/unknown"),
		}}, ruleTo("route", "a", on(prefix("/route")), func(r *model.RouteRule) {
			r.Action.ExternalAuth, r.ExtAuthz = &model.ExtAuthz{GRPC: true, Backend: model.Destination{Host: "auth"}}, "auth"
		}), ruleTo("custom", "a", on(prefix("/")))),
	}
}

func limitHosts() []model.VirtualHost {
	few := func(n uint32, f func(*model.LocalLimit)) *model.RateLimit {
		l := model.LocalLimit{Requests: n, Burst: n, Per: time.Hour}
		f(&l)
		return limit("limit", l)
	}
	on := func(path string) []model.LimitMatch { return []model.LimitMatch{{Path: exact(path)}} }
	everything := model.HTTPMatch{}
	limits := func(l ...*model.RateLimit) model.HTTPPolicy { return model.HTTPPolicy{Limits: l} }
	status := few(1, func(l *model.LocalLimit) { l.Matches, l.Status = on("/status"), 503 })
	status.Name = "status"
	return []model.VirtualHost{
		host("limit.test", limits(few(3, func(l *model.LocalLimit) { l.Matches = on("/plain") }), status), ruleTo("r", "a", everything)),
		host("limit-source.test", limits(few(2, func(l *model.LocalLimit) { l.PerSource = true })), ruleTo("r", "a", everything)),
		host("limit-named.test", limits(few(1, func(l *model.LocalLimit) {
			l.Matches = []model.LimitMatch{{Sources: []string{"cluster.local/ns/jobs/*"}}}
		})), ruleTo("r", "a", everything)),
		host("limit-header.test", limits(few(2, func(l *model.LocalLimit) { l.PerHeader = "x-user" })), ruleTo("r", "a", everything)),
		host("limit-match.test", limits(few(2, func(l *model.LocalLimit) {
			l.Matches = []model.LimitMatch{
				{Path: exact("/a"), Method: exact("GET")}, {Path: segment("/b"), Headers: []model.NamedMatch{not(present("x-key"))}},
			}
		})), ruleTo("r", "a", everything)),
		host("limit-rule.test", limits(few(3, func(*model.LocalLimit) {})),
			ruleTo("rule", "a", model.HTTPMatch{Path: exact("/rule")}, func(r *model.RouteRule) {
				p := limits(few(1, func(*model.LocalLimit) {}))
				r.Policy = &p
			}), ruleTo("r", "a", everything)),
		host("limit-dry.test", limits(few(1, func(l *model.LocalLimit) { l.DryRun = true })), ruleTo("r", "a", everything)),
		host("global.test", limits(global(model.GlobalLimit{Backend: model.Destination{Host: "limits"}, Domain: "shop", Descriptors: [][]model.LimitEntry{
			{{Key: "fixed", Value: "v"}, {Key: "user", Header: "x-user"}},
			{{Path: true}, {Method: true}, {SourcePrincipal: true}, {SourceAddress: true}},
		}})), ruleTo("r", "a", everything)),
	}
}

// request is one case of TestEnvoyBehaves.
type request struct {
	name                        string
	listener, from, method, url string
	headers                     []string
	status                      int
	rule, path, location        string
	check                       func(*testing.T, reply)
}

// cases are requests that need no others.
func (w *world) cases(t *testing.T) []request {
	return slices.Concat(matchCases(), rewriteCases(), redirectCases(), trafficCases(), w.tokenCases(t), policyCases())
}

func matchCases() []request {
	m := func(name, url string, status int, rule string, headers ...string) request {
		return request{name: name, url: "match.test" + url, headers: headers, status: status, rule: rule}
	}
	return []request{
		m("first rule wins", "/order", 200, "both", "x-first: 1"), m("next rule", "/order", 200, "order"),
		m("path exact", "/exact?q=1", 200, "exact"), m("path exact, more", "/exact/", 404, ""),
		m("path any case", "/cASE", 200, "exact any case"),
		m("path segments", "/seg/ments", 200, "segments"), m("path segments below", "/seg/ments/x", 200, "segments"), m("path half a segment", "/seg/mentsx", 404, ""),
		m("path prefix", "/prefix", 200, "prefix"), m("path regex", "/re/12", 200, "regex"), m("path regex, more", "/re/12x", 404, ""),
		m("path suffix", "/any/x.png", 200, "suffix"),
		m("header exact", "/header", 200, "header exact", "x-h: v"), m("header regex", "/header", 200, "header regex", "x-h: ww", "x-n: v"),
		m("header present", "/header", 200, "header present", "x-p: anything", "x-n: v"), m("header differs", "/header", 200, "header not", "x-n: w"),
		m("header missing does not match", "/header", 200, "header not"), m("no header matches", "/header", 404, "", "x-n: v"),
		m("header absent", "/absent", 200, "header absent"), m("header not absent", "/absent", 404, "", "x-n: v"),
		m("query", "/query?q=v&p=", 200, "query"), m("query differs", "/query?q=w&p=1", 404, ""), m("query missing", "/query?q=v", 404, ""),
		{name: "method", method: "POST", url: "match.test/method", status: 200, rule: "method"}, m("method differs", "/method", 404, ""),
		m("authority", "/authority", 200, "authority", "host: match.test:99"), m("authority differs", "/authority", 404, ""),
		{name: "grpc", method: "POST", url: "match.test/pkg.Service/Call", headers: []string{"content-type: application/grpc+proto"}, status: 200, rule: "grpc"},
		{name: "not grpc", method: "POST", url: "match.test/pkg.Service/Call", status: 404},
		m("port", "/port", 200, "port"), m("other port", "/other-port", 404, ""),
		m("source namespace", "/namespace", 200, "namespace"), {name: "other namespace", listener: batch, url: "match.test/namespace", status: 404},
		{name: "source address", from: "127.0.0.3", url: "match.test/source", status: 200, rule: "source"}, m("other address", "/source", 404, ""),
		{name: "no host", url: "nowhere.test/", status: 404},
	}
}

func rewriteCases() []request {
	var out []request
	for in, want := range map[string]string{
		"/foo/bar": "/xyz/bar", "/foo/": "/xyz/", "/foo": "/xyz", "/foo?q=1": "/xyz?q=1", "/foobar": "/root/foobar",
		"/slash/bar": "/xyz/bar", "/slash": "/xyz", "/empty/bar": "/bar", "/empty": "/", "/empty/": "/", "/empty?q": "/?q", "/one": "/", "/one/two?q=1": "/two?q=1",
		"/full/any?q=1": "/all/100%25?q=1", "/service/a/b": "/b/of/a", "/characters": "/c/acters", "/": "/root/",
	} {
		out = append(out, request{name: "rewrite " + in, url: "rewrite.test" + in, status: 200, path: want})
	}
	return append(out, request{name: "rewrite authority", url: "rewrite.test/authority", status: 200, path: "/authority", check: func(t *testing.T, r reply) {
		if r.seen.Host != "other.example.com" {
			t.Errorf("backend saw host %q", r.seen.Host)
		}
	}})
}

func redirectCases() []request {
	r := func(listener, host, path string, status int, location string) request {
		return request{name: "redirect " + listener + " " + host + path, listener: listener, url: "redirect.test" + path,
			headers: []string{"host: " + host}, status: status, location: location}
	}
	return []request{
		r(gateway, "redirect.test", "/host/a?q=1", 302, "http://b.example.com/host/a?q=1"), r(gw8080, "redirect.test", "/host", 302, "http://b.example.com:8080/host"),
		r(gateway, "redirect.test", "/https", 301, "https://redirect.test/https"), r(gw8080, "redirect.test:8080", "/https", 301, "https://redirect.test:443/https"),
		r(gateway, "redirect.test", "/port", 307, "http://redirect.test:9443/port"), r(gateway, "redirect.test", "/well-known", 308, "https://redirect.test/well-known"),
		r(gateway, "redirect.test", "/path/x?q=1", 303, "http://redirect.test/new?q=1"), r(gateway, "redirect.test", "/prefix/x", 302, "http://redirect.test/new/x"),
		r(gateway, "redirect.test", "/cut/x", 302, "http://redirect.test/x"), r(gateway, "redirect.test", "/cut", 302, "http://redirect.test/"),
		r(gw8080, "redirect.test", "/path", 303, "http://redirect.test:8080/new"), r(front, "redirect.test:8080", "/path", 303, "http://redirect.test:8080/new"),
		{name: "redirect to TLS", listener: gateway, url: "tls.test/x?q=1", status: 301, location: "https://tls.test/x?q=1"},
		{name: "gateway denies an address", listener: gateway, from: "127.0.0.2", url: "authz.test/", status: 403},
		{name: "gateway allows another", listener: gateway, from: "127.0.0.3", url: "authz.test/", status: 200},
	}
}

func trafficCases() []request {
	has := func(name, want string) func(*testing.T, reply) {
		return func(t *testing.T, r reply) {
			if got := strings.Join(r.header.Values(name), ","); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	}
	edited := func(set string, rule ...string) func(*testing.T, reply) {
		return func(t *testing.T, r reply) {
			got := map[string][]string{"set": r.seen.Header["X-Set"], "gone": r.seen.Header["X-Gone"], "again": r.seen.Header["X-Again"], "add": r.seen.Header["X-Add"], "rule": r.header.Values("x-rule")}
			want := map[string][]string{"set": {set}, "gone": nil, "again": {"new"}, "add": {"there", "100% in %NONSENSE(1)%"}, "rule": rule}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		}
	}
	sent := []string{"x-set: old", "x-gone: old", "x-again: old", "x-add: there", "x-in: in"}
	preflight := func(origin string) []string {
		return []string{"origin: " + origin, "access-control-request-method: PUT"}
	}
	return []request{
		{name: "no backend", url: "weights.test/none", status: 500}, {name: "unknown cluster", url: "weights.test/unknown", status: 500},
		{name: "status", url: "weights.test/status", status: 500}, {name: "direct", url: "weights.test/direct", status: 418, check: func(t *testing.T, r reply) {
			if r.body != "tea" {
				t.Errorf("body %q", r.body)
			}
		}},
		{name: "abort", url: "fault.test/abort", status: 418},
		{name: "abort gRPC", method: "POST", url: "fault.test/grpc", headers: []string{"content-type: application/grpc"}, status: 200, check: has("grpc-status", "14")},
		{name: "delay", url: "fault.test/delay", status: 200},
		{name: "retry on status", url: "retry.test/codes", headers: []string{"x-fail-first: codes"}, status: 200},
		{name: "retry is off", url: "retry.test/off", headers: []string{"x-fail-first: off"}, status: 503},
		{name: "retry of GET after reset", url: "retry.test/reset", headers: []string{"x-reset-first: get"}, status: 200},
		{name: "no retry of POST after reset", method: "POST", url: "retry.test/reset", headers: []string{"x-reset-first: post"}, status: 503},
		{name: "retry elsewhere", url: "retry.test/pair", status: 200}, {name: "retry elsewhere again", method: "POST", url: "retry.test/pair", status: 200},
		{name: "nobody to retry", url: "retry.test/refused", status: 503},
		{name: "timeout of a try", url: "retry.test/per-try", headers: []string{"x-hang: y"}, status: 504},
		{name: "timeout of the request", url: "retry.test/whole", headers: []string{"x-hang: y"}, status: 504},
		{name: "headers of a rule", url: "headers.test/rule", headers: sent, status: 200, check: edited("rule", "rule")},
		{name: "headers of a backend", url: "headers.test/backend", headers: sent, status: 200, check: func(t *testing.T, r reply) {
			edited("backend", "backend", "and backend")(t, r)
			if r.seen.Host != "backend.example.com" {
				t.Errorf("backend saw host %q", r.seen.Host)
			}
		}},
		{name: "headers of shares", url: "headers.test/shares", headers: sent, status: 200, rule: "shares", check: func(t *testing.T, r reply) {
			if r.seen.Header.Get("x-set") != "share" || r.seen.Header["X-Again"] != nil || r.seen.Header["X-Gone"] != nil {
				t.Errorf("backend saw %v", r.seen.Header)
			}
		}},
		{name: "preflight", method: "OPTIONS", url: "cors.test/", headers: preflight("https://good.example.com"), status: 200, check: func(t *testing.T, r reply) {
			has("access-control-allow-origin", "https://good.example.com")(t, r)
			has("access-control-allow-methods", "GET,PUT")(t, r)
			has("access-control-max-age", "3600")(t, r)
		}},
		{name: "preflight of a stranger", method: "OPTIONS", url: "cors.test/", headers: preflight("https://evil.example.com"), status: 200, check: has("access-control-allow-origin", "")},
		{name: "cross origin", url: "cors.test/", headers: []string{"origin: https://good.example.com"}, status: 200, check: has("access-control-allow-credentials", "true")},
		{name: "who calls is overwritten", url: "match.test/exact", headers: []string{"x-forwarded-client-cert: URI=spiffe://cluster.local/ns/kube-system/sa/root", "x-ambit-authority: evil"}, status: 200,
			check: func(t *testing.T, r reply) {
				want := map[string][]string{"xfcc": {"By=" + localID + ";URI=" + frontID}, "authority": nil}
				got := map[string][]string{"xfcc": r.seen.Header["X-Forwarded-Client-Cert"], "authority": r.seen.Header["X-Ambit-Authority"]}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("headers (-want +got):\n%s", diff)
				}
			}},
	}
}

func (w *world) tokenCases(t *testing.T) []request {
	bearer := func(issuer string, claims object) string {
		return "authorization: Bearer " + w.issuers[issuer].token(t, claims)
	}
	ann := bearer("one", object{"sub": "ann", "group": "red", "realm": object{"roles": []string{"dev", "admin"}}})
	bob := bearer("one", object{"sub": "bob", "realm": object{"roles": "dev"}})
	old := bearer("one", object{"sub": "ann", "exp": 1})
	two, stranger := bearer("two", object{"sub": "eve"}), bearer("broken", object{"sub": "eve"})
	forged := ann[:len(ann)-4] + "AAAA"
	j := func(name, url string, status int, headers ...string) request {
		return request{name: "token: " + name, url: url, status: status, headers: headers}
	}
	return []request{
		j("none, and none needed", "jwt.test/open", 200), j("none, but needed", "jwt.test/needs-token", 403), j("good", "jwt.test/needs-token", 200, bob),
		j("subject", "jwt.test/needs-sub", 200, ann), j("wrong subject", "jwt.test/needs-sub", 403, bob),
		j("claim in a list", "jwt.test/needs-claim", 200, ann), j("claim differs", "jwt.test/needs-claim", 403, bob),
		j("forged", "jwt.test/open", 401, forged), j("expired", "jwt.test/open", 401, old), j("of a stranger", "jwt.test/open", 401, stranger),
		j("no token at all", "jwt.test/open", 401, "authorization: Bearer x"),
		j("one of two issuers", "jwt-two.test/", 200, ann), j("the other", "jwt-two.test/", 200, two), j("neither", "jwt-two.test/", 401, stranger), j("missing for both", "jwt-two.test/", 200),
		j("keys unknown", "jwt-broken.test/", 401, stranger), j("keys unknown, no token", "jwt-broken.test/", 200),
		{name: "token: claims to headers", url: "jwt.test/open", headers: []string{ann, "x-group: forged"}, status: 200, check: func(t *testing.T, r reply) {
			if diff := cmp.Diff([]string{"red"}, r.seen.Header["X-Group"]); diff != "" {
				t.Errorf("x-group (-want +got):\n%s", diff)
			}
		}},
		{name: "token: header without token", url: "jwt.test/open", headers: []string{"x-group: forged"}, status: 200, check: func(t *testing.T, r reply) {
			if got := r.seen.Header["X-Group"]; got != nil {
				t.Errorf("a client's own x-group reached the backend: %q", got)
			}
		}},
		{name: "token chooses the route", url: "claims.test/", headers: []string{ann}, status: 200, rule: "admin"},
		{name: "another token, another route", url: "claims.test/", headers: []string{bob}, status: 200, rule: "not admin"},
		{name: "no token, no route", url: "claims.test/", status: 404},
	}
}

func policyCases() []request {
	a := func(name, listener, method, url string, status int, headers ...string) request {
		return request{name: "policy: " + name, listener: listener, method: method, url: url, status: status, headers: headers}
	}
	denied := a("denied address", front, "GET", "authz.test/", 403)
	denied.from = "127.0.0.7"
	return []request{
		a("allowed principal and port", front, "GET", "authz.test/any", 200), a("deny wins", front, "POST", "authz.test/admin", 403),
		a("deny spares a method", front, "GET", "authz.test/admin", 200), a("deny by header", front, "GET", "authz.test/any", 403, "x-evil: 1"), denied,
		a("namespace, but not the path", batch, "GET", "authz.test/any", 403), a("template", batch, "GET", "authz.test/jobs/7/log", 200),
		a("template, two segments", batch, "GET", "authz.test/jobs/7/8/log", 403), a("template, any depth", batch, "GET", "authz.test/files/a/b/c", 200),
		a("forwarded-for does not help", batch, "GET", "authz.test/any", 403, "x-forwarded-for: 127.0.0.1"),
		a("allow nothing", front, "GET", "nothing.test/", 403), a("no rule, but denied first", front, "GET", "hidden.test/elsewhere", 403),
		a("custom: gRPC refuses", front, "GET", "custom.test/grpc", 401), a("custom: gRPC allows", front, "GET", "custom.test/grpc", 200, "x-please: yes"),
		a("custom: HTTP refuses", front, "GET", "custom.test/http", 418, "x-status: 418"),
		{name: "policy: custom: HTTP allows", url: "custom.test/http", status: 200, check: func(t *testing.T, r reply) {
			if r.seen.Header.Get("x-backend") != "auth" {
				t.Errorf("the server's header did not reach the backend: %v", r.seen.Header)
			}
		}},
		a("custom: both, one refuses", front, "GET", "custom.test/both", 401), a("custom: both allow", front, "GET", "custom.test/both", 200, "x-please: yes"),
		a("custom: not asked", front, "GET", "custom.test/free", 200), a("custom: server is gone", front, "GET", "custom.test/gone", 503),
		a("custom: server unknown", front, "GET", "custom.test/unknown", 403),
		a("rule's server refuses", front, "GET", "custom.test/route", 401), a("rule's server allows", front, "GET", "custom.test/route", 200, "x-please: yes"),
	}
}
