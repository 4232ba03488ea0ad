package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// testCase is one input: a proxy, and what else it is told.
type testCase struct {
	name      string
	proxy     *model.Proxy
	clusters  []*model.Cluster
	endpoints []*model.Endpoints
	tables    []*model.RouteTable
	// partOnly leaves the proxy's own resources out of the golden file: they are another case's matter.
	partOnly bool
}

func ptr[T any](v T) *T { return &v }

func tlsFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "tls", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func certificate(t testing.TB, name string) model.Certificate {
	return model.Certificate{Name: name, Chain: tlsFile(t, "server.pem"), Key: tlsFile(t, "server.key")}
}

func waypoint(change ...func(*model.Proxy)) *model.Proxy {
	p := &model.Proxy{
		Key: model.Key{Namespace: "shop", Name: "waypoint"}, Waypoint: true, ServiceAccount: "waypoint",
		TrustDomain: "cluster.local", Domain: "cluster.local", RootNamespace: "istio-system",
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func gateway(ports ...model.ProxyPort) *model.Proxy {
	return &model.Proxy{
		Key: model.Key{Namespace: "edge", Name: "front"}, ServiceAccount: "front-istio",
		TrustDomain: "cluster.local", Domain: "cluster.local", RootNamespace: "istio-system", Ports: ports,
	}
}

func scopes(s ...model.Scope) func(*model.Proxy) {
	return func(p *model.Proxy) { p.Scopes = append(p.Scopes, s...) }
}

func httpScope() model.Scope {
	return model.Scope{
		Name: "shop/web.shop.svc.cluster.local:80", Kind: model.ScopeHTTP,
		Authorities: []string{"10.96.0.10:80", "[fd00::10]:80", "web.shop.svc.cluster.local:80"},
	}
}

func tcpScope() model.Scope {
	return model.Scope{
		Name: "shop/db.shop.svc.cluster.local:5432", Kind: model.ScopeTCP,
		Authorities: []string{"10.96.0.20:5432", "db.shop.svc.cluster.local:5432"},
		TCP:         &model.TCPForward{Name: "db", Clusters: []model.WeightedCluster{{Cluster: "outbound|5432||db.shop.svc.cluster.local", Weight: 1}}},
	}
}

func autoScope() model.Scope {
	return model.Scope{
		Name: "shop/any.shop.svc.cluster.local:9000", Kind: model.ScopeAuto,
		Authorities: []string{"10.96.0.30:9000", "any.shop.svc.cluster.local:9000"},
		TCP:         &model.TCPForward{Name: "any", Clusters: []model.WeightedCluster{{Cluster: "outbound|9000||any.shop.svc.cluster.local", Weight: 1}}},
	}
}

func webTable(name string) *model.RouteTable {
	return &model.RouteTable{Name: name, Hosts: []model.VirtualHost{{
		Name: "web", Domains: []string{"*"},
		Rules: []model.RouteRule{{Name: "web", Clusters: []model.RouteCluster{{WeightedCluster: model.WeightedCluster{Cluster: webCluster, Weight: 1}}}}},
	}}}
}

const webCluster = "outbound|80||web.shop.svc.cluster.local"

func web(change ...func(*model.Cluster)) *model.Cluster {
	c := &model.Cluster{
		Name: webCluster, HTTP: true, Service: "web", Namespace: "shop", Host: "web.shop.svc.cluster.local",
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func policy(tp model.TrafficPolicy) func(*model.Cluster) {
	return func(c *model.Cluster) { c.Policy = tp }
}

func clusterTLS(tls model.ClusterTLS) func(*model.Cluster) {
	return func(c *model.Cluster) { c.TLS = &tls }
}

func pod(addr string, change ...func(*model.ProxyEndpoint)) model.ProxyEndpoint {
	e := model.ProxyEndpoint{
		Address: netip.MustParseAddrPort(addr), Tunnel: true, Identity: "spiffe://cluster.local/ns/shop/sa/web", Weight: 1,
		Workload: "web", Namespace: "shop", CanonicalName: "web", CanonicalRevision: "v1", App: "web", Version: "v1", Cluster: "Kubernetes",
	}
	for _, f := range change {
		f(&e)
	}
	return e
}

func at(region, zone, subzone string) func(*model.ProxyEndpoint) {
	return func(e *model.ProxyEndpoint) {
		e.Locality = model.Locality{Region: region, Zone: zone, Subzone: subzone}
	}
}

func endpointsOf(change func(*model.Endpoints), list ...model.ProxyEndpoint) []*model.Endpoints {
	e := &model.Endpoints{Cluster: webCluster, Endpoints: list}
	if change != nil {
		change(e)
	}
	return []*model.Endpoints{e}
}

func telemetry(f model.HTTPFilters) func(*model.Proxy) {
	return func(p *model.Proxy) { p.HTTP = f }
}

// lbCase is a cluster with a load balancer.
func lbCase(name string, lb model.LoadBalancer) testCase {
	return testCase{name: "cluster-lb-" + name, partOnly: true, proxy: waypoint(scopes(httpScope())),
		clusters:  []*model.Cluster{web(policy(model.TrafficPolicy{LB: &lb}))},
		endpoints: endpointsOf(nil, pod("10.1.0.1:8080"), pod("10.1.0.2:8080"))}
}

func tlsCase(name string, tls model.ClusterTLS, more ...func(*model.Cluster)) testCase {
	return testCase{name: "cluster-tls-" + name, partOnly: true, proxy: waypoint(),
		clusters: []*model.Cluster{web(append([]func(*model.Cluster){clusterTLS(tls)}, more...)...)}}
}

func cases(t testing.TB) []testCase {
	var all []testCase
	for _, part := range [][]testCase{proxyCases(t), gatewayCases(t), telemetryCases(), clusterCases(t), endpointCases()} {
		all = append(all, part...)
	}
	return all
}

func proxyCases(testing.TB) []testCase {
	authz := &model.Authorization{
		Meta: model.Meta{Key: model.Key{Namespace: "shop", Name: "only-client"}}, Action: model.AuthzAllow,
		Rules: []model.AuthzRule{{From: []model.AuthzSource{{Principals: model.Patterns{In: []string{"cluster.local/ns/shop/sa/client"}}}}}},
	}
	guardedTCP := tcpScope()
	guardedTCP.TCP.Authz = []*model.Authorization{authz}
	weighted := tcpScope()
	weighted.TCP.Clusters = []model.WeightedCluster{{Cluster: "a", Weight: 80}, {Cluster: "b", Weight: 20}, {Cluster: "c"}}
	weighted.TCP.HashSourceIP = true
	weighted.TCP.IdleTimeout = 10 * time.Minute
	refused := tcpScope()
	refused.TCP.Refuse = true
	return []testCase{
		{name: "waypoint-empty", proxy: waypoint()},
		{name: "waypoint-http", proxy: waypoint(scopes(httpScope())), tables: []*model.RouteTable{webTable(httpScope().Name)},
			clusters: []*model.Cluster{web()}, endpoints: endpointsOf(nil, pod("10.1.0.1:8080"))},
		{name: "waypoint-tcp", proxy: waypoint(scopes(tcpScope()))},
		{name: "waypoint-tcp-policy", proxy: waypoint(scopes(guardedTCP))},
		{name: "waypoint-tcp-weighted", proxy: waypoint(scopes(weighted))},
		{name: "waypoint-tcp-refused", proxy: waypoint(scopes(refused))},
		{name: "waypoint-auto", proxy: waypoint(scopes(autoScope())), tables: []*model.RouteTable{webTable(autoScope().Name)}},
		{name: "waypoint-all-kinds", proxy: waypoint(scopes(autoScope(), tcpScope(), httpScope()))},
		{name: "waypoint-shared-authority", proxy: waypoint(scopes(tcpScope(), model.Scope{
			Name: "shop/other.shop.svc.cluster.local:5432", Kind: model.ScopeAuto, Authorities: []string{"10.96.0.20:5432", "OTHER.shop.svc.cluster.local:5432"},
			TCP: &model.TCPForward{Name: "other", Clusters: []model.WeightedCluster{{Cluster: "other", Weight: 1}}},
		}))},
		{name: "waypoint-direct", proxy: waypoint(func(p *model.Proxy) {
			p.Direct = true
			p.Workloads = []model.DirectWorkload{
				{Address: netip.MustParseAddr("10.1.0.1"), Identity: "spiffe://cluster.local/ns/shop/sa/web"},
				{Address: netip.MustParseAddr("fd00::1"), Identity: "spiffe://cluster.local/ns/shop/sa/web"},
			}
			p.DirectPolicy = model.HTTPPolicy{Authz: []*model.Authorization{authz}}
		})},
		{name: "waypoint-ipv6", proxy: waypoint(func(p *model.Proxy) { p.Families = model.FamiliesV6 })},
		{name: "waypoint-dual-stack", proxy: waypoint(func(p *model.Proxy) { p.Families = model.FamiliesDual })},
		{name: "waypoint-trust-domain-aliases", proxy: waypoint(func(p *model.Proxy) { p.TrustDomains = []string{"old.example", "100%.example"} })},
	}
}

func gatewayCases(t testing.TB) []testCase {
	cert := certificate(t, "edge/shop-tls")
	ca := string(tlsFile(t, "ca.pem"))
	port := func(n, bind uint16, chains ...model.PortChain) model.ProxyPort {
		return model.ProxyPort{Port: n, Bind: bind, Chains: chains}
	}
	tls := func(name string, s model.ServerTLS, sni ...string) model.PortChain {
		return model.PortChain{Name: name, SNI: sni, TLS: &s, Routes: "https." + name}
	}
	forward := &model.TCPForward{Name: "db", Clusters: []model.WeightedCluster{{Cluster: "db", Weight: 1}}}
	certs := []model.Certificate{cert}
	https := func(name string, s model.ServerTLS, sni ...string) testCase {
		return testCase{name: "gateway-" + name, proxy: gateway(port(443, 8443, tls("shop", s, sni...))), tables: []*model.RouteTable{webTable("https.shop")}}
	}
	return []testCase{
		{name: "gateway-empty", proxy: gateway()},
		{name: "gateway-no-chains", proxy: gateway(port(80, 8080))},
		{name: "gateway-http", proxy: gateway(port(80, 0, model.PortChain{Name: "http", Routes: "http.80"})), tables: []*model.RouteTable{webTable("http.80")}},
		https("https", model.ServerTLS{Certificates: certs}, "shop.example.com", "*.shop.example.com"),
		https("https-any-name", model.ServerTLS{Certificates: certs}, "*"),
		https("https-two-certificates", model.ServerTLS{Certificates: []model.Certificate{cert, certificate(t, "edge/shop-rsa")}}, "shop.example.com"),
		https("https-versions", model.ServerTLS{Certificates: certs, MinVersion: "TLSV1_2", MaxVersion: "TLSV1_2",
			Ciphers: []string{"ECDHE-ECDSA-AES128-GCM-SHA256", "NOT-A-CIPHER"}}, "shop.example.com"),
		https("mutual", model.ServerTLS{Certificates: certs, ClientCA: ca, SANs: []string{"spiffe://partner/ns/a/sa/b", "client.example"}}, "shop.example.com"),
		https("mutual-optional", model.ServerTLS{Certificates: certs, ClientCA: ca, Optional: true}, "shop.example.com"),
		https("mutual-insecure", model.ServerTLS{Certificates: certs, ClientCA: ca, Insecure: true}, "shop.example.com"),
		https("istio-mutual", model.ServerTLS{Mesh: true}),
		https("files", model.ServerTLS{CertFile: "testdata/tls/server.pem", KeyFile: "testdata/tls/server.key", CAFile: "testdata/tls/ca.pem"}, "shop.example.com"),
		https("certificate-missing", model.ServerTLS{}, "shop.example.com"),
		{name: "gateway-rejected", proxy: gateway(port(443, 8443,
			model.PortChain{Name: "broken", SNI: []string{"broken.example.com"}, Reject: true},
			tls("shop", model.ServerTLS{Certificates: certs}, "shop.example.com")))},
		{name: "gateway-passthrough", proxy: gateway(port(443, 8443,
			model.PortChain{Name: "db", SNI: []string{"db.example.com"}, TCP: forward},
			model.PortChain{Name: "rest", TCP: &model.TCPForward{Name: "rest", Refuse: true}}))},
		{name: "gateway-tcp", proxy: gateway(port(5432, 5432, model.PortChain{Name: "db", TCP: forward}))},
		{name: "gateway-tls-tcp", proxy: gateway(port(5432, 5432, model.PortChain{
			Name: "db", SNI: []string{"db.example.com"}, TLS: &model.ServerTLS{Certificates: certs}, TCP: forward}))},
		{name: "gateway-same-names-twice", proxy: gateway(port(443, 8443,
			tls("one", model.ServerTLS{Certificates: certs}, "shop.example.com", "a.example.com"),
			tls("two", model.ServerTLS{Certificates: certs}, "SHOP.example.com", "b.example.com"),
			tls("three", model.ServerTLS{Certificates: certs}, "a.example.com")))},
		{name: "gateway-two-ports", proxy: gateway(
			port(443, 8443, tls("shop", model.ServerTLS{Certificates: certs}, "shop.example.com")),
			port(80, 8080, model.PortChain{Name: "http", Routes: "http.80"}))},
	}
}

func telemetryCases() []testCase {
	otlp := model.OTLP{Backend: model.Destination{Host: "otel.obs.svc.cluster.local", Port: 4317}}
	otlpHTTP := otlp
	otlpHTTP.HTTPPath, otlpHTTP.Timeout = "/v1/traces", 3*time.Second
	otlpHTTP.Headers = []model.Header{{Name: "x-team", Value: "shop"}}
	const collector = "outbound|4317||otel.obs.svc.cluster.local"
	logs := func(name string, l model.AccessLog) testCase {
		return testCase{name: "log-" + name, proxy: waypoint(scopes(tcpScope()), telemetry(model.HTTPFilters{Logs: []model.AccessLog{l}}))}
	}
	metrics := func(name string, m ...model.TelemetryMetric) testCase {
		return testCase{name: "metrics-" + name, proxy: waypoint(scopes(tcpScope()), telemetry(model.HTTPFilters{Metrics: m}))}
	}
	gatewayLog := gateway(model.ProxyPort{Port: 80, Chains: []model.PortChain{{Name: "http", Routes: "http.80"}}})
	gatewayLog.HTTP = model.HTTPFilters{
		Logs: []model.AccessLog{{}}, Tracing: &model.Tracing{OTLP: otlp, Cluster: collector, Percent: 1},
		Metrics: []model.TelemetryMetric{{Client: true, Name: "requests_total", Tags: map[string]string{"host": "request.host"}}, {Server: true, Disabled: true}},
	}
	return []testCase{
		logs("default", model.AccessLog{}),
		logs("text", model.AccessLog{LogFile: model.LogFile{Path: "/dev/stderr", Text: `%START_TIME% %REQ(:PATH)% %RESPONSE_CODE% %REQ_WITHOUT_QUERY(:PATH)% %METADATA(ROUTE:mesh:host)%`}}),
		logs("json", model.AccessLog{LogFile: model.LogFile{JSON: map[string]string{"path": "%REQ(:PATH)%", "code": "%RESPONSE_CODE%"}, OmitEmpty: true}}),
		logs("json-default", model.AccessLog{LogFile: model.LogFile{JSON: map[string]string{}}}),
		logs("filter", model.AccessLog{Filter: "response.code >= 400 || response.flags != 0"}),
		logs("otlp", model.AccessLog{OTLP: &otlp, Cluster: collector}),
		logs("otlp-http", model.AccessLog{OTLP: &model.OTLP{Backend: otlp.Backend, HTTPPath: "/v1/logs", LogName: "shop", Text: "%REQ(:PATH)%", JSON: map[string]string{"b": "%PROTOCOL%", "a": "x"}}, Cluster: collector}),
		{name: "tracing-grpc", proxy: waypoint(telemetry(model.HTTPFilters{Tracing: &model.Tracing{OTLP: otlp, Cluster: collector, Percent: 100, Service: "shop"}}))},
		{name: "tracing-http-tags", proxy: waypoint(telemetry(model.HTTPFilters{Tracing: &model.Tracing{OTLP: otlpHTTP, Cluster: collector, Percent: 0.5, Tags: []model.TraceTag{
			{Name: "team", Literal: "shop"}, {Name: "user", Header: "x-user", Default: "nobody"}, {Name: "node", Environment: "NODE_NAME"},
			{Name: "team", Literal: "twice"}, {Name: "nothing"}, {Name: "where", Format: "%UPSTREAM_HOST%"},
		}}}))},
		metrics("tags", model.TelemetryMetric{Tags: map[string]string{"response_flags": "", "source_app": "", "tenant": "request.headers['x-tenant']", "fixed": "'100%'", "expr": "request.size + 1"}}),
		metrics("one-off", model.TelemetryMetric{Name: "request_bytes", Disabled: true}, model.TelemetryMetric{Name: "tcp_sent_bytes_total", Server: true, Disabled: true}, model.TelemetryMetric{Name: "requests_total", Client: true, Disabled: true}),
		metrics("off", model.TelemetryMetric{Disabled: true}),
		{name: "gateway-telemetry", proxy: gatewayLog},
	}
}
