package config

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/istiod/model"
)

func clusterCases(t testing.TB) []testCase {
	ca := string(tlsFile(t, "ca.pem"))
	cert := certificate(t, "shop/client")
	one := func(name string, c *model.Cluster) testCase {
		return testCase{name: "cluster-" + name, partOnly: true, proxy: waypoint(), clusters: []*model.Cluster{c}}
	}
	pool := func(p model.ConnectionPool) func(*model.Cluster) { return policy(model.TrafficPolicy{Pool: &p}) }
	speaks := func(p model.AppProtocol) func(*model.Cluster) { return func(c *model.Cluster) { c.Protocol = p } }
	tls := func(m model.TLSMode, change ...func(*model.ClientTLS)) model.ClusterTLS {
		x := model.ClusterTLS{ClientTLS: model.ClientTLS{Mode: m}}
		for _, f := range change {
			f(&x.ClientTLS)
		}
		return x
	}
	sni := func(s string) func(*model.ClientTLS) { return func(x *model.ClientTLS) { x.SNI = s } }
	withRoots := tls(model.TLSSimple, sni("shop.example.com"))
	withRoots.Roots = ca
	mutual := tls(model.TLSMutual, sni("shop.example.com"))
	mutual.Roots, mutual.Certificate = ca, &cert
	zone := model.LocalityLB{Distribute: []model.LocalityShare{{From: "r1/*", To: map[string]uint32{"r1/*": 80, "r2/*": 20}}}}
	tcp := func(c *model.Cluster) { c.HTTP = false }
	gatewayCluster := one("gateway-http1", web())
	gatewayCluster.proxy = gateway()
	return []testCase{
		lbCase("round-robin-warm-up", model.LoadBalancer{Kind: model.LBRoundRobin, WarmUp: 30 * time.Second, Aggression: 1.5, MinPercent: 20}),
		lbCase("least-request-warm-up", model.LoadBalancer{WarmUp: time.Minute}),
		lbCase("random", model.LoadBalancer{Kind: model.LBRandom}),
		lbCase("passthrough", model.LoadBalancer{Kind: model.LBPassthrough}),
		lbCase("ring-hash", model.LoadBalancer{Kind: model.LBConsistentHash, Hash: &model.HashPolicy{Header: "x-user", MinRing: 4096}}),
		lbCase("maglev", model.LoadBalancer{Kind: model.LBConsistentHash, Hash: &model.HashPolicy{SourceIP: true, Maglev: true, TableSize: 65537}}),
		lbCase("locality-distribute", model.LoadBalancer{Locality: &zone}),
		one("default", web()),
		one("http2", web(speaks(model.ProtocolHTTP2), pool(model.ConnectionPool{MaxStreams: 50, PingInterval: 30 * time.Second, PingTimeout: 5 * time.Second}))),
		one("grpc", web(speaks(model.ProtocolGRPC))),
		one("upgrade", web(pool(model.ConnectionPool{H2Upgrade: ptr(true)}))),
		one("no-upgrade", web(pool(model.ConnectionPool{H2Upgrade: ptr(false)}))),
		one("client-protocol", web(pool(model.ConnectionPool{ClientProtocol: true, H2Upgrade: ptr(true)}))),
		one("pool", web(pool(model.ConnectionPool{
			MaxConnections: 10, ConnectTimeout: time.Second, MaxPending: 5, MaxRequests: 20, MaxRequestsPerConnection: 100, MaxRetries: 2,
			HTTPIdle: time.Minute, MaxConnectionDuration: time.Hour, Keepalive: &model.Keepalive{Probes: 3, Time: time.Minute, Interval: 10 * time.Second},
		}))),
		one("retry-budget", web(policy(model.TrafficPolicy{RetryBudget: &model.RetryBudget{Percent: 25, Min: 10}}))),
		one("outlier", web(policy(model.TrafficPolicy{Outlier: &model.Outlier{
			Consecutive5xx: ptr(uint32(3)), ConsecutiveGateway: ptr(uint32(0)), ConsecutiveLocal: ptr(uint32(7)), SplitLocal: true,
			Interval: time.Second, BaseEjection: 30 * time.Second, MaxEjectionPercent: ptr(uint32(100)), MinHealthPercent: 50,
		}}))),
		one("proxy-protocol", web(tcp, policy(model.TrafficPolicy{ProxyProtocol: "V2"}))),
		tlsCase("simple", tls(model.TLSSimple, sni("shop.example.com"))),
		tlsCase("auto-sni", tls(model.TLSSimple)),
		tlsCase("auto-sni-tcp", tls(model.TLSSimple), tcp),
		tlsCase("roots", withRoots),
		tlsCase("mutual", mutual),
		tlsCase("mutual-files", tls(model.TLSMutual, sni("shop.example.com"), func(x *model.ClientTLS) {
			x.CertFile, x.KeyFile, x.CAFile = "testdata/tls/server.pem", "testdata/tls/server.key", "testdata/tls/ca.pem"
		})),
		tlsCase("sans", tls(model.TLSSimple, sni("shop.example.com"), func(x *model.ClientTLS) {
			x.SANs = []model.StringMatch{{Value: "a.example"}, {Kind: model.MatchSuffix, Value: ".example"}, {Value: "spiffe://a/b"}, {Kind: model.MatchRegex, Value: "x.*"}, {Kind: model.MatchPrefix, Value: "p"}}
		})),
		tlsCase("insecure", tls(model.TLSSimple, func(x *model.ClientTLS) { x.InsecureSkipVerify = true })),
		tlsCase("istio-mutual", tls(model.TLSIstioMutual)),
		tlsCase("disabled", tls(model.TLSDisable)),
		one("dns", web(func(c *model.Cluster) {
			c.Kind, c.DNS = model.ClusterDNS, []model.DNSEndpoint{{Host: "b.example.com", Port: 443, Weight: 2}, {Host: "a.example.com", Port: 8443, Locality: model.Locality{Region: "r1"}}}
		})),
		one("dns-round-robin", web(clusterTLS(tls(model.TLSSimple)), tcp, func(c *model.Cluster) {
			c.Kind, c.RoundRobinDNS, c.DNS = model.ClusterDNS, true, []model.DNSEndpoint{{Host: "a.example.com", Port: 443}}
		})),
		one("original-dst", web(func(c *model.Cluster) { c.Kind = model.ClusterOriginalDst })),
		one("dynamic", web(func(c *model.Cluster) { c.Kind = model.ClusterDynamic })),
		one("dynamic-tls", web(clusterTLS(tls(model.TLSSimple)), func(c *model.Cluster) { c.Kind = model.ClusterDynamic })),
		gatewayCluster,
	}
}

func endpointCases() []testCase {
	eds := func(name string, change func(*model.Endpoints), list ...model.ProxyEndpoint) testCase {
		return testCase{name: "endpoints-" + name, partOnly: true, proxy: waypoint(), clusters: []*model.Cluster{web()}, endpoints: endpointsOf(change, list...)}
	}
	outside := func(e *model.ProxyEndpoint) { e.Tunnel, e.Identity = false, "" }
	from := func(l model.LocalityLB) func(*model.Endpoints) {
		return func(e *model.Endpoints) {
			e.Locality, e.From = &l, model.Locality{Region: "r1", Zone: "z1", Subzone: "s1"}
			e.FromLabels = map[string]string{"app.version": "v1"}
		}
	}
	everywhere := []model.ProxyEndpoint{
		pod("10.1.0.1:80", at("r1", "z1", "s1")), pod("10.1.0.2:80", at("r1", "z1", "s2")), pod("10.1.0.3:80", at("r1", "z2", "")),
		pod("10.1.0.4:80", at("r2", "z1", "")), pod("10.1.0.5:80", at("r3", "z1", "")), pod("10.1.0.6:80", at("r3", "z1", "")),
	}
	labelled := func(addr, version, region string) model.ProxyEndpoint {
		return pod(addr, at(region, "", ""), func(e *model.ProxyEndpoint) { e.Labels = map[string]string{"app.version": version, "tier": "gold"} })
	}
	return []testCase{
		eds("none", nil),
		eds("mixed", nil, pod("10.1.0.1:8080"), pod("10.1.0.2:8080", outside), pod("[fd00::1]:8080"), pod("10.1.0.1:8080")),
		eds("waypoint", nil, pod("10.96.0.10:80", func(e *model.ProxyEndpoint) {
			e.Waypoint, e.Identity = netip.MustParseAddrPort("10.1.0.50:15008"), "spiffe://cluster.local/ns/shop/sa/waypoint"
		}), pod("10.96.0.10:80", func(e *model.ProxyEndpoint) {
			e.Waypoint, e.Identity = netip.MustParseAddrPort("10.1.0.51:15008"), "spiffe://cluster.local/ns/shop/sa/waypoint"
		})),
		eds("health", nil, pod("10.1.0.1:80"), pod("10.1.0.2:80", func(e *model.ProxyEndpoint) { e.Draining = true }), pod("10.1.0.3:80", func(e *model.ProxyEndpoint) { e.Unready = true })),
		eds("weights", nil, pod("10.1.0.1:80", func(e *model.ProxyEndpoint) { e.Weight = 0 }), pod("10.1.0.2:80", func(e *model.ProxyEndpoint) { e.Weight = 5 })),
		eds("priorities", nil, pod("10.1.0.1:80", func(e *model.ProxyEndpoint) { e.Priority = 7 }), pod("10.1.0.2:80"), pod("10.1.0.3:80", func(e *model.ProxyEndpoint) { e.Priority = 3 })),
		eds("localities-even", nil, everywhere...),
		eds("failover", from(model.LocalityLB{}), everywhere...),
		eds("failover-region", from(model.LocalityLB{Failover: map[string]string{"r1": "r3"}}), everywhere...),
		eds("failover-off", from(model.LocalityLB{Enabled: ptr(false), Failover: map[string]string{"r1": "r3"}}), everywhere...),
		eds("failover-priority", from(model.LocalityLB{Priority: []string{"topology.kubernetes.io/region", "app.version", "tier=gold"}}),
			labelled("10.1.0.1:80", "v1", "r1"), labelled("10.1.0.2:80", "v2", "r1"), labelled("10.1.0.3:80", "v1", "r2"), pod("10.1.0.4:80")),
		eds("distribute", from(model.LocalityLB{Distribute: []model.LocalityShare{
			{From: "r1/*", To: map[string]uint32{"r1/*": 100}},
			{From: "r1/z1/*", To: map[string]uint32{"r1/z1/s1": 50, "r1/z1/*": 20, "r3/*": 30}},
		}}), everywhere...),
	}
}
