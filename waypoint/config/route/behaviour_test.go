package route

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	limitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// Listeners of the Envoy under test. front and batch lead to one waypoint under two identities, as the listener that
// ends tunnels does; gateway and its like are sockets of a gateway; tcp has policy for connections only.
const (
	front   = "front"
	batch   = "batch"
	gateway = "gateway"
	gw8080  = "gateway8080"
	tcp     = "tcp"
)

const (
	frontID   = "spiffe://cluster.local/ns/shop/sa/front"
	batchID   = "spiffe://cluster.local/ns/jobs/sa/batch"
	localID   = "spiffe://cluster.local/ns/shop/sa/waypoint"
	authority = "10.96.0.1:8080"
)

// tunnel is a socket whose connections come to the internal listener as if through a tunnel of an identity.
func tunnel(t *testing.T, name, identity, to string) object {
	state := func(key, factory, value string) object {
		return object{
			"object_key": key, "factory_key": factory, "shared_with_upstream": "ONCE",
			"format_string": object{"text_format_source": object{"inline_string": value}},
		}
	}
	l := socket(t, name)
	l["filter_chains"] = []object{{"filters": []object{
		{"name": "envoy.filters.network.set_filter_state", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config",
			"on_new_connection": []object{
				state(names.OriginalLocal, "", authority), state(names.OriginalRemote, "", "%DOWNSTREAM_REMOTE_ADDRESS%"),
				state(names.StateAuthority, names.HashableString, authority), state(names.StatePeer, names.HashableString, identity),
				state(names.StateLocal, names.HashableString, localID),
				state(names.StateSourceIP, names.HashableString, "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
			},
		}},
		{"name": "envoy.filters.network.tcp_proxy", "typed_config": object{
			"@type":       "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
			"stat_prefix": name, "cluster": to,
		}},
	}}}
	return l
}

// internal is a listener for connections from tunnels, and the cluster that leads there.
func internal(t *testing.T, name string, filters ...*listenerv3.Filter) (listener, cluster object) {
	l := socket(t, name, filters...)
	delete(l, "address")
	l["internal_listener"] = object{}
	l["listener_filters"] = []object{{"name": names.OriginalDst, "typed_config": object{
		"@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
	}}}
	return l, object{
		"name": name, "type": "STATIC",
		"load_assignment": object{"cluster_name": name, "endpoints": []object{{"lb_endpoints": []object{{"endpoint": object{
			"address": object{"envoy_internal_address": object{"server_listener_name": name}},
		}}}}}},
		"transport_socket": object{"name": "envoy.transport_sockets.internal_upstream", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
			"transport_socket": object{"name": "envoy.transport_sockets.raw_buffer", "typed_config": object{
				"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
			}},
		}},
	}
}

// world is Envoy with everything around it.
type world struct {
	*envoy
	a, b    *backend
	issuers map[string]*issuer
	counter *counter
}

func newWorld(t *testing.T) *world {
	w := &world{a: newBackend(t, "a"), b: newBackend(t, "b"), counter: &counter{}, issuers: map[string]*issuer{
		"one": newIssuer(t, "one"), "two": newIssuer(t, "two"), "broken": newIssuer(t, "broken"),
	}}
	auth := grpcServer(t, func(s *grpc.Server) { authv3.RegisterAuthorizationServer(s, asker{}) })
	limits := grpcServer(t, func(s *grpc.Server) { limitv3.RegisterRateLimitServiceServer(s, w.counter) })
	asked := newBackend(t, "auth")
	clusters := []object{
		cluster("a", w.a.addr, false), cluster("b", w.b.addr, false), cluster("auth", auth, true),
		cluster("limits", limits, true), cluster("ask", asked.addr, false),
		cluster("refused", refusedPort(t), false), pair(cluster("pair", refusedPort(t), false), w.a.addr),
	}

	wp := w.waypoint()
	build := func(p *model.Proxy, table *model.RouteTable) *routev3.RouteConfiguration {
		out, problems := Build(p, table)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		return out
	}
	filters, err := HTTPFilters(wp)
	if err != nil {
		t.Fatal(err)
	}
	main, toMain := internal(t, "main", manager(t, filters, build(wp, w.table())))
	network, err := NetworkAuthz(wp, []*model.Authorization{
		policy("tcp", model.AuthzAllow, model.AuthzRule{From: []model.AuthzSource{{
			Namespaces: in("shop"), IPs: model.Blocks{In: []netip.Prefix{block("127.0.0.0/8")}, Not: []netip.Prefix{block("127.0.0.9/32")}},
		}}, To: []model.AuthzOperation{{Ports: in("8080")}}}),
		policy("tcp-l7", model.AuthzAllow, model.AuthzRule{To: []model.AuthzOperation{{Methods: in("GET")}}}),
		policy("tcp-deny", model.AuthzDeny, model.AuthzRule{From: []model.AuthzSource{{IPs: model.Blocks{In: []netip.Prefix{block("127.0.0.8/32")}}}}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	everywhere := build(wp, &model.RouteTable{Hosts: []model.VirtualHost{{Domains: []string{"*"}, Rules: []model.RouteRule{{Clusters: to("a")}}}}})
	guarded, toTCP := internal(t, "tcp-main", append(network, manager(t, filters, everywhere))...)
	clusters = append(clusters, toMain, toTCP)

	listeners := []object{tunnel(t, front, frontID, "main"), tunnel(t, batch, batchID, "main"), main,
		tunnel(t, tcp, frontID, "tcp-main"), tunnel(t, tcp+"-batch", batchID, "tcp-main"), guarded}
	for name, port := range map[string]uint16{gateway: 80, gw8080: 8080} {
		p := gatewayProxy(model.ProxyPort{Port: port, Chains: []model.PortChain{{Routes: name}}})
		filters, err := HTTPFilters(p)
		if err != nil {
			t.Fatal(err)
		}
		table := gatewayTable()
		table.Name = name
		listeners = append(listeners, socket(t, name, manager(t, filters, build(p, table))))
	}
	w.envoy = start(t, bootstrap(t, listeners, clusters))
	return w
}

// refusedPort is an address that nobody listens on.
func refusedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// pair adds an endpoint.
func pair(c object, a netip.AddrPort) object {
	e := c["load_assignment"].(object)["endpoints"].([]object)[0]
	e["lb_endpoints"] = append(e["lb_endpoints"].([]object), endpoint(a))
	return c
}

func (w *world) waypoint() *model.Proxy {
	p := waypointProxy()
	rule := func(name string) model.JWTRule {
		return model.JWTRule{Issuer: name, Forward: true, ClaimToHeaders: []model.ClaimHeader{{Header: "x-group", Claim: "group"}}}
	}
	p.HTTP = model.HTTPFilters{
		JWT: []model.JWTRequirement{
			{Name: "one", Rules: []model.JWTRule{rule("one")}},
			{Name: "both", Rules: []model.JWTRule{rule("one"), rule("two")}},
			{Name: "broken", Rules: []model.JWTRule{rule("broken")}},
		},
		ExtAuthz: []model.ExtAuthzCluster{
			{Cluster: "auth", ExtAuthz: model.ExtAuthz{Name: "grpc", GRPC: true, Backend: model.Destination{Host: "auth"}, Timeout: 5 * time.Second}},
			{Cluster: "ask", ExtAuthz: model.ExtAuthz{
				Name: "http", Backend: model.Destination{Host: "ask"}, Timeout: 5 * time.Second, PathPrefix: "/ask",
				IncludeHeaders: []string{"x-status"}, ToUpstreamOnAllow: []string{"x-backend"}, AddHeaders: []model.Header{{Name: "x-from", Value: "mesh"}},
			}},
			{Cluster: "nobody", ExtAuthz: model.ExtAuthz{Name: "gone", Backend: model.Destination{Host: "gone"}, StatusOnError: 503, Timeout: time.Second}},
		},
		RateLimit: []model.RateLimitCluster{{Cluster: "limits", GlobalLimit: model.GlobalLimit{Backend: model.Destination{Host: "limits"}, Domain: "shop", Timeout: 5 * time.Second}}},
	}
	for i := range p.HTTP.JWT {
		for j := range p.HTTP.JWT[i].Rules {
			r := &p.HTTP.JWT[i].Rules[j]
			r.JWKS = `{"keys":[{"kty":"RSA","n":"!"}]}`
			if r.Issuer != "broken" {
				r.JWKS = w.issuers[r.Issuer].jwks(&testing.T{})
			}
		}
	}
	return p
}

// reply is what a client got, and what the backend saw if one was asked.
type reply struct {
	status int
	header http.Header
	body   string
	seen   seen
	err    error
}

// ask sends one request on a connection of its own. Headers are "name: value"; from is the source address.
func (w *world) ask(t *testing.T, listener, from, method, url string, headers ...string) reply {
	t.Helper()
	dialer := &net.Dialer{}
	if from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp", w.addrs[listener])
	}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if strings.EqualFold(name, "host") {
			req.Host = value
			continue
		}
		req.Header.Add(name, value)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	r := reply{status: resp.StatusCode, header: resp.Header, body: string(b), err: err}
	_ = json.Unmarshal(b, &r.seen)
	return r
}

// TestEnvoyBehaves runs one Envoy with what is written and asks it.
func TestEnvoyBehaves(t *testing.T) {
	w := newWorld(t)
	for _, c := range w.cases(t) {
		t.Run(c.name, func(t *testing.T) {
			r := w.ask(t, cmpOr(c.listener, front), c.from, cmpOr(c.method, "GET"), c.url, c.headers...)
			if r.err != nil && c.status != 0 {
				t.Fatal(r.err)
			}
			if r.status != c.status {
				t.Errorf("status %d, want %d; %v\n%s", r.status, c.status, r.header, r.body)
			}
			if c.rule != "" && r.header.Get("x-rule") != c.rule {
				t.Errorf("rule %q, want %q", r.header.Get("x-rule"), c.rule)
			}
			if c.path != "" && r.seen.Path != c.path {
				t.Errorf("backend saw path %q, want %q", r.seen.Path, c.path)
			}
			if c.location != "" && r.header.Get("location") != c.location {
				t.Errorf("location %q, want %q", r.header.Get("location"), c.location)
			}
			if c.check != nil {
				c.check(t, r)
			}
		})
	}
	for name, test := range map[string]func(*testing.T){
		"weights": w.weights, "missing share": w.missingShare, "mirror": w.mirrors, "fault share": w.faults, "limits": w.limits,
		"limit per source": w.limitSources, "limit per header": w.limitHeaders, "limit matches": w.limitMatches, "limit of a rule": w.limitRule,
		"dry limit": w.limitDry, "global limit": w.globalLimit, "session": w.session, "websocket": w.websocket, "connections": w.connections,
	} {
		t.Run(name, test)
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (w *world) weights(t *testing.T) {
	count := map[string]int{}
	for range 200 {
		count[w.ask(t, front, "", "GET", "weights.test/split").seen.Server]++
	}
	// 80 % of 200 is 160 with a standard deviation of 5.7.
	if n := count["a"]; n < 125 || n > 190 || count["a"]+count["b"] != 200 {
		t.Errorf("80 and 20 percent of 200 requests: %v", count)
	}
}

func (w *world) missingShare(t *testing.T) {
	count := map[int]int{}
	for range 200 {
		count[w.ask(t, front, "", "GET", "weights.test/half").status]++
	}
	if n := count[500]; n < 60 || n > 140 || count[200]+count[500] != 200 {
		t.Errorf("half of 200 requests have no backend: %v", count)
	}
}

func (w *world) mirrors(t *testing.T) {
	if r := w.ask(t, front, "", "GET", "mirror.test/mirrored"); r.seen.Server != "a" {
		t.Errorf("answered by %q, want a", r.seen.Server)
	}
	until(t, "the copy arrives", func() bool { return len(w.b.got("/mirrored")) == 1 })
	for range 40 {
		w.ask(t, front, "", "GET", "mirror.test/never")
	}
	if n := len(w.b.got("/never")); n != 0 {
		t.Errorf("%d copies of requests whose share is 0", n)
	}
}

func (w *world) faults(t *testing.T) {
	count := map[int]int{}
	for range 200 {
		count[w.ask(t, front, "", "GET", "fault.test/some").status]++
	}
	if n := count[503]; n < 25 || n > 95 || count[200]+count[503] != 200 {
		t.Errorf("30 percent of 200 requests fail: %v", count)
	}
}

// passed sends requests until one is refused and tells how many were not.
func (w *world) passed(t *testing.T, most int, ask func() reply) (passed int, last reply) {
	t.Helper()
	for passed < most {
		if last = ask(); last.status != 200 {
			return passed, last
		}
		passed++
	}
	return passed, last
}

func (w *world) limits(t *testing.T) {
	n, r := w.passed(t, 10, func() reply { return w.ask(t, front, "", "GET", "limit.test/plain") })
	if n != 3 || r.status != 429 {
		t.Errorf("%d requests passed and then status %d, want 3 and 429", n, r.status)
	}
	if r.header.Get("x-ratelimit-limit") == "" || r.header.Get("retry-after") == "" {
		t.Errorf("a refusal tells nothing of the limit: %v", r.header)
	}
	if r := w.ask(t, front, "", "GET", "limit.test/other"); r.status != 200 || r.header.Get("x-ratelimit-limit") != "" {
		t.Errorf("a request that no limit counts: status %d, %v", r.status, r.header)
	}
	if n, r := w.passed(t, 10, func() reply { return w.ask(t, front, "", "GET", "limit.test/status") }); n != 1 || r.status != 503 {
		t.Errorf("%d requests passed and then status %d, want 1 and 503", n, r.status)
	}
}

func (w *world) limitSources(t *testing.T) {
	for _, l := range []string{front, batch} {
		// Who calls is not what the request says.
		n, r := w.passed(t, 10, func() reply {
			return w.ask(t, l, "", "GET", "limit-source.test/", "x-forwarded-client-cert: URI=spiffe://a"+fmt.Sprint(time.Now().UnixNano()))
		})
		if n != 2 || r.status != 429 {
			t.Errorf("%s: %d requests passed and then status %d, want 2 and 429", l, n, r.status)
		}
	}
	if r := w.ask(t, batch, "", "GET", "limit-named.test/"); r.status != 200 {
		t.Errorf("first of batch: status %d", r.status)
	}
	if r := w.ask(t, batch, "", "GET", "limit-named.test/"); r.status != 429 {
		t.Errorf("second of batch: status %d, want 429", r.status)
	}
	for range 3 {
		if r := w.ask(t, front, "", "GET", "limit-named.test/"); r.status != 200 {
			t.Errorf("a limit of batch's counts front's: status %d", r.status)
		}
	}
}

func (w *world) limitHeaders(t *testing.T) {
	for _, header := range []string{"x-user: ann", "x-user: bob", "x-none: y"} {
		n, r := w.passed(t, 10, func() reply { return w.ask(t, front, "", "GET", "limit-header.test/", header) })
		if n != 2 || r.status != 429 {
			t.Errorf("%s: %d requests passed and then status %d, want 2 and 429", header, n, r.status)
		}
	}
}

func (w *world) limitMatches(t *testing.T) {
	// Both alternatives count into one bucket of 2.
	ask := func(method, url string, headers ...string) int {
		return w.ask(t, front, "", method, "limit-match.test"+url, headers...).status
	}
	got := []int{
		ask("GET", "/a?q=1"), ask("POST", "/a"), ask("GET", "/b/x"), ask("GET", "/b/x", "x-key: y"),
		ask("GET", "/a"), ask("GET", "/b/y"), ask("POST", "/a"), ask("GET", "/c"),
	}
	want := []int{200, 200, 200, 200, 429, 429, 200, 200}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("statuses %v, want %v", got, want)
	}
}

func (w *world) limitRule(t *testing.T) {
	ask := func(url string) int { return w.ask(t, front, "", "GET", "limit-rule.test"+url).status }
	// The rule's is 1, the host's 3 for all rules together.
	got := []int{ask("/rule"), ask("/rule"), ask("/x"), ask("/x")}
	if want := []int{200, 429, 200, 429}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("statuses %v, want %v", got, want)
	}
}

func (w *world) limitDry(t *testing.T) {
	if n, _ := w.passed(t, 5, func() reply { return w.ask(t, front, "", "GET", "limit-dry.test/") }); n != 5 {
		t.Errorf("a dry limit of 1 let %d of 5 through", n)
	}
}

func (w *world) globalLimit(t *testing.T) {
	if r := w.ask(t, batch, "127.0.0.3", "GET", "global.test/p?q=1", "x-user: modest"); r.status != 200 {
		t.Errorf("modest: status %d", r.status)
	}
	if r := w.ask(t, front, "", "GET", "global.test/p", "x-user: greedy"); r.status != 429 {
		t.Errorf("greedy: status %d, want 429", r.status)
	}
	asked := strings.Join(w.counter.asked(), "\n")
	for _, want := range []string{
		"shop: fixed=v user=modest",
		"shop: path=/p method=GET source_principal=" + batchID + " remote_address=127.0.0.3",
	} {
		if !strings.Contains(asked, want) {
			t.Errorf("the server was not asked %q, but\n%s", want, asked)
		}
	}
}

func (w *world) session(t *testing.T) {
	r := w.ask(t, front, "", "GET", "session.test/")
	cookie, _, _ := strings.Cut(r.header.Get("set-cookie"), ";")
	if !strings.HasPrefix(cookie, "stay=") {
		t.Fatalf("no cookie: %v", r.header)
	}
	for range 20 {
		if again := w.ask(t, front, "", "GET", "session.test/", "cookie: "+cookie); again.seen.Server != r.seen.Server {
			t.Fatalf("came to %q, with the cookie of %q", again.seen.Server, r.seen.Server)
		}
	}
}

func (w *world) websocket(t *testing.T) {
	c, err := net.Dial("tcp", w.addrs[front])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: match.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
}

// connections are judged by who opened them, from where and to which port.
func (w *world) connections(t *testing.T) {
	for _, c := range []struct {
		listener, from string
		ok             bool
	}{{tcp, "", true}, {tcp, "127.0.0.9", false}, {tcp, "127.0.0.8", false}, {tcp + "-batch", "", false}} {
		r := w.ask(t, c.listener, c.from, "GET", "any.test/")
		if ok := r.err == nil && r.status == 200; ok != c.ok {
			t.Errorf("%s from %q: %v, %v; want allowed %v", c.listener, c.from, r.status, r.err, c.ok)
		}
	}
}
