package push_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/push/pushtest"
)

var shopGateway = model.Key{Namespace: "shop", Name: "wp"}

// envoys is a directory behind a real gRPC server.
type envoys struct {
	t      testing.TB
	dir    *push.Directory
	cache  *push.Cache // of shopGateway
	server *push.Server
	conn   *grpc.ClientConn
	reg    *prometheus.Registry

	mu       sync.Mutex
	rejected []push.Rejection
}

// newEnvoys makes the world of one known and synced gateway, without grace for removals unless cfg has one.
func newEnvoys(t testing.TB, cfg push.Config) *envoys {
	t.Helper()
	e := &envoys{t: t, dir: push.NewDirectory(), reg: prometheus.NewRegistry()}
	e.cache = e.dir.Cache(shopGateway)
	e.dir.Register(shopGateway, "wp")
	cfg.Log, cfg.Metrics, cfg.Select = slog.New(slog.DiscardHandler), e.reg, e.dir.Select
	cfg.OnReject = func(r push.Rejection) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.rejected = append(e.rejected, r)
	}
	var err error
	if e.server, err = push.NewServer(cfg, push.NewCache(push.Types()...)); err != nil {
		t.Fatal(err)
	}
	e.conn = serve(t, e.server, e.dir.Run)
	return e
}

func noGrace() push.Config { return push.WithGrace(push.Config{}, 0) }

func (e *envoys) open() *pushtest.Client {
	return pushtest.Open(e.t.Context(), e.t, e.conn, pushtest.Gateway("wp-1", "shop", "wp"))
}

func (e *envoys) rejections() []push.Rejection {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.rejected)
}

func envoyResource(t testing.TB, typeURL, name string, m proto.Message) *push.Resource {
	t.Helper()
	r, err := push.NewResource(typeURL, name, m, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ads() *core.ConfigSource {
	return &core.ConfigSource{ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}, ResourceApiVersion: core.ApiVersion_V3}
}

// edsCluster is a cluster in one of several versions.
func edsCluster(t testing.TB, name string, version int) *push.Resource {
	return envoyResource(t, push.TypeCluster, name, &cluster.Cluster{
		Name: name, ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig: &cluster.Cluster_EdsClusterConfig{EdsConfig: ads()},
		ConnectTimeout:   durationpb.New(time.Duration(version+1) * time.Second),
	})
}

func endpoints(t testing.TB, name string, addresses ...string) *push.Resource {
	m := &endpoint.ClusterLoadAssignment{ClusterName: name}
	for _, a := range addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			t.Fatal(err)
		}
		n, err := net.LookupPort("tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		m.Endpoints = append(m.Endpoints, &endpoint.LocalityLbEndpoints{LbEndpoints: []*endpoint.LbEndpoint{{
			HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: &core.Address{
				Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
					Address: host, PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(n)},
				}},
			}}},
		}}})
	}
	return envoyResource(t, push.TypeEndpoints, name, m)
}

// routeTo is a table with one route.
func routeTo(t testing.TB, name, to string) *push.Resource {
	return envoyResource(t, push.TypeRoute, name, &route.RouteConfiguration{Name: name, VirtualHosts: []*route.VirtualHost{{
		Name: "all", Domains: []string{"*"}, Routes: []*route.Route{{
			Match:  &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
			Action: &route.Route_Route{Route: &route.RouteAction{ClusterSpecifier: &route.RouteAction_Cluster{Cluster: to}}},
		}},
	}}})
}

func scopeOf(t testing.TB, name, table string) *push.Resource {
	return envoyResource(t, push.TypeScope, name, &route.ScopedRouteConfiguration{Name: name, RouteConfigurationName: table,
		Key: &route.ScopedRouteConfiguration_Key{Fragments: []*route.ScopedRouteConfiguration_Key_Fragment{
			{Type: &route.ScopedRouteConfiguration_Key_Fragment_StringKey{StringKey: name}}}}})
}

func bareListener(t testing.TB, name string) *push.Resource {
	return envoyResource(t, push.TypeListener, name, &listener.Listener{Name: name})
}

func upsert(rs ...*push.Resource) []push.Change {
	var out []push.Change
	for _, r := range rs {
		out = append(out, push.Change{Type: r.TypeURL(), Upsert: []*push.Resource{r}})
	}
	return out
}

func removal(typeURL string, names ...string) push.Change {
	return push.Change{Type: typeURL, Removed: names}
}

// wantType fails unless the response is of the type and has these names.
func wantType(t testing.TB, r *discovery.DeltaDiscoveryResponse, typeURL string, resources, removed []string) {
	t.Helper()
	if r.GetTypeUrl() != typeURL {
		t.Fatalf("got %s %v removed %v, want %s", r.GetTypeUrl(), pushtest.Names(r), r.GetRemovedResources(), typeURL)
	}
	wantNames(t, r, resources, removed)
}

// quiet fails the test if something arrives within a few batches.
func quiet(c *pushtest.Client) {
	done := make(chan struct{})
	time.AfterFunc(60*time.Millisecond, func() { close(done) })
	c.Silent(done)
}

// warm is a proxy that holds clusters a and b, their endpoints, a listener and a table that routes to a.
func warm(t testing.TB, e *envoys) *pushtest.Client {
	t.Helper()
	e.cache.Apply(upsert(edsCluster(t, "a", 0), edsCluster(t, "b", 0), endpoints(t, "a", "127.0.0.1:1"), endpoints(t, "b", "127.0.0.1:2"),
		bareListener(t, "l"), scopeOf(t, "s", "t"), routeTo(t, "t", "a")))
	e.cache.Synced()
	c := e.open()
	c.Subscribe(push.TypeCluster, nil)
	wantType(t, c.Next(), push.TypeCluster, []string{"a", "b"}, nil)
	c.Names(push.TypeEndpoints, []string{"a", "b"}, nil, nil)
	wantType(t, c.Next(), push.TypeEndpoints, []string{"a", "b"}, nil)
	c.Subscribe(push.TypeListener, nil)
	wantType(t, c.Next(), push.TypeListener, []string{"l"}, nil)
	c.Subscribe(push.TypeScope, nil)
	wantType(t, c.Next(), push.TypeScope, []string{"s"}, nil)
	c.Names(push.TypeRoute, []string{"t"}, nil, nil)
	wantType(t, c.Next(), push.TypeRoute, []string{"t"}, nil)
	return c
}

func TestEnvoyGetsEverythingInOrder(t *testing.T) { warm(t, newEnvoys(t, noGrace())) }

// A route that leads to a new cluster must wait until the proxy can use the cluster.
func TestRoutesWaitForClustersToWarm(t *testing.T) {
	e := newEnvoys(t, noGrace())
	c := warm(t, e)
	e.cache.Apply(upsert(edsCluster(t, "n", 0), endpoints(t, "n", "127.0.0.1:3"), scopeOf(t, "s2", "t2"), routeTo(t, "t", "n")))
	r := c.Recv()
	wantType(t, r, push.TypeCluster, []string{"n"}, nil)
	quiet(c) // not acknowledged, not warm
	c.Ack(r)
	quiet(c) // not warm
	c.Names(push.TypeEndpoints, []string{"n"}, nil, nil)
	r = c.Recv()
	wantType(t, r, push.TypeEndpoints, []string{"n"}, nil)
	quiet(c)
	c.Ack(r)
	wantType(t, c.Next(), push.TypeScope, []string{"s2"}, nil)
	wantType(t, c.Next(), push.TypeRoute, []string{"t"}, nil)
}

// Envoy warms a changed cluster until endpoints come, and does not ask for those that it has.
func TestEndpointsAreSentAgainWithTheirCluster(t *testing.T) {
	e := newEnvoys(t, noGrace())
	c := warm(t, e)
	e.cache.Apply(upsert(edsCluster(t, "a", 1)))
	wantType(t, c.Next(), push.TypeCluster, []string{"a"}, nil)
	wantType(t, c.Next(), push.TypeEndpoints, []string{"a"}, nil)
	quiet(c)
}

func TestEndpointsDoNotWaitForRounds(t *testing.T) {
	e := newEnvoys(t, noGrace())
	c := warm(t, e)
	e.cache.Apply(upsert(edsCluster(t, "n", 0), endpoints(t, "n", "127.0.0.1:3")))
	wantType(t, c.Recv(), push.TypeCluster, []string{"n"}, nil) // never acknowledged
	e.cache.Apply(upsert(endpoints(t, "a", "127.0.0.1:4")))
	wantType(t, c.Next(), push.TypeEndpoints, []string{"a"}, nil)
}

func TestClustersLeaveAfterTheirRoutes(t *testing.T) {
	e := newEnvoys(t, noGrace())
	c := warm(t, e)
	e.cache.Apply(append(upsert(routeTo(t, "t", "b"), bareListener(t, "l2")), removal(push.TypeCluster, "a"), removal(push.TypeEndpoints, "a"),
		removal(push.TypeScope, "s"), removal(push.TypeListener, "l")))
	wantType(t, c.Next(), push.TypeListener, []string{"l2"}, nil)
	table := c.Recv()
	wantType(t, table, push.TypeRoute, []string{"t"}, nil)
	wantType(t, c.Next(), push.TypeListener, nil, []string{"l"})
	wantType(t, c.Next(), push.TypeScope, nil, []string{"s"})
	quiet(c)
	c.Ack(table)
	r := c.Recv()
	wantType(t, r, push.TypeCluster, nil, []string{"a"})
	quiet(c)
	c.Ack(r)
	wantType(t, c.Next(), push.TypeEndpoints, nil, []string{"a"})
}

// Where the proxy goes on with the old routes, the clusters that they lead to must stay.
func TestRejectedRoutesKeepTheirClusters(t *testing.T) {
	e := newEnvoys(t, noGrace())
	c := warm(t, e)
	e.cache.Apply(append(upsert(routeTo(t, "t", "b")), removal(push.TypeCluster, "a")))
	r := c.Recv()
	wantType(t, r, push.TypeRoute, []string{"t"}, nil)
	c.Nack(r, "t: bad regex")
	quiet(c)
	e.cache.Apply(upsert(edsCluster(t, "b", 1))) // others are not disturbed
	wantType(t, c.Next(), push.TypeCluster, []string{"b"}, nil)
	wantType(t, c.Next(), push.TypeEndpoints, []string{"b"}, nil)
	e.cache.Apply(upsert(routeTo(t, "t", "c")))
	wantType(t, c.Next(), push.TypeRoute, []string{"t"}, nil)
	wantType(t, c.Next(), push.TypeCluster, nil, []string{"a"})
}

func TestNameThatExistsAgainIsNotRemoved(t *testing.T) {
	e := newEnvoys(t, noGrace())
	c := warm(t, e)
	e.cache.Apply(append(upsert(routeTo(t, "t", "b")), removal(push.TypeCluster, "a")))
	table := c.Recv()
	e.cache.Apply(upsert(edsCluster(t, "a", 2)))
	wantType(t, c.Next(), push.TypeCluster, []string{"a"}, nil)
	wantType(t, c.Next(), push.TypeEndpoints, []string{"a"}, nil)
	c.Ack(table)
	quiet(c)
}

func TestNamesAreAnsweredWhenTheyAppear(t *testing.T) {
	e := newEnvoys(t, noGrace())
	c := warm(t, e)
	c.Names(push.TypeRoute, []string{"later"}, nil, nil)
	c.Names(push.TypeSecret, []string{"kubernetes://shop/tls"}, nil, nil)
	quiet(c)
	e.cache.Apply(upsert(routeTo(t, "later", "a"), envoyResource(t, push.TypeSecret, "kubernetes://shop/tls", &tls.Secret{Name: "kubernetes://shop/tls"})))
	wantType(t, c.Next(), push.TypeRoute, []string{"later"}, nil)
	wantType(t, c.Next(), push.TypeSecret, []string{"kubernetes://shop/tls"}, nil)
	e.cache.Apply(upsert(routeTo(t, "unasked", "a")))
	quiet(c)
	c.Names(push.TypeRoute, nil, []string{"later"}, nil)
	e.cache.Apply(upsert(routeTo(t, "later", "b")))
	quiet(c)
}

func TestClusterWaitsForItsSecret(t *testing.T) {
	e := newEnvoys(t, noGrace())
	c := warm(t, e)
	socket, err := anypb.New(&tls.UpstreamTlsContext{CommonTlsContext: &tls.CommonTlsContext{
		TlsCertificateSdsSecretConfigs: []*tls.SdsSecretConfig{{Name: "cert", SdsConfig: ads()}, {Name: "agent"}}}})
	if err != nil {
		t.Fatal(err)
	}
	withTLS := envoyResource(t, push.TypeCluster, "n", &cluster.Cluster{Name: "n",
		TransportSocket: &core.TransportSocket{Name: "tls", ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: socket}}})
	if diff := cmp.Diff([]string{"Secret:cert"}, push.Needs(withTLS)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"ClusterLoadAssignment:x"}, push.Needs(edsCluster(t, "x", 0))); diff != "" {
		t.Error(diff)
	}
	e.cache.Apply(upsert(withTLS, envoyResource(t, push.TypeSecret, "cert", &tls.Secret{Name: "cert"}), routeTo(t, "t", "n")))
	wantType(t, c.Next(), push.TypeCluster, []string{"n"}, nil)
	quiet(c)
	c.Names(push.TypeSecret, []string{"cert"}, nil, nil)
	wantType(t, c.Next(), push.TypeSecret, []string{"cert"}, nil)
	wantType(t, c.Next(), push.TypeRoute, []string{"t"}, nil)
}

func TestReconnectOfAnEnvoy(t *testing.T) {
	e := newEnvoys(t, noGrace())
	first := warm(t, e)
	first.Close()
	e.cache.Apply(append(upsert(edsCluster(t, "b", 7), routeTo(t, "t", "b")), removal(push.TypeCluster, "a"), removal(push.TypeEndpoints, "a")))
	awaitPublished(t, e)
	c := e.open()
	held := first.Held
	c.Subscribe(push.TypeCluster, held[push.TypeCluster])
	c.Names(push.TypeEndpoints, []string{"a", "b"}, nil, held[push.TypeEndpoints])
	c.Subscribe(push.TypeListener, held[push.TypeListener])
	c.Names(push.TypeRoute, []string{"t"}, nil, held[push.TypeRoute])
	got := map[string][]string{}
	want := map[string][]string{
		push.TypeCluster:   {"+b", "-a"},
		push.TypeEndpoints: {"+b", "-a"}, // b because its cluster changed
		push.TypeListener:  nil,
		push.TypeRoute:     {"+t"},
	}
	total := 0
	for total < 5 {
		r := c.Next()
		for _, n := range pushtest.Names(r) {
			got[r.GetTypeUrl()] = append(got[r.GetTypeUrl()], "+"+n)
			total++
		}
		for _, n := range r.GetRemovedResources() {
			got[r.GetTypeUrl()] = append(got[r.GetTypeUrl()], "-"+n)
			total++
		}
		if got[r.GetTypeUrl()] == nil {
			got[r.GetTypeUrl()] = nil
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	quiet(c)
}

func TestReconnectWithoutChangeMovesNothing(t *testing.T) {
	e := newEnvoys(t, noGrace())
	first := warm(t, e)
	first.Close()
	c := e.open()
	c.Subscribe(push.TypeCluster, first.Held[push.TypeCluster])
	wantType(t, c.Next(), push.TypeCluster, nil, nil)
	c.Names(push.TypeEndpoints, []string{"a", "b"}, nil, first.Held[push.TypeEndpoints])
	c.Names(push.TypeRoute, []string{"t"}, nil, first.Held[push.TypeRoute])
	quiet(c)
}

// awaitPublished waits until what was applied is published.
func awaitPublished(t testing.TB, e *envoys) {
	t.Helper()
	deadline, tick := time.NewTimer(10*time.Second), time.NewTicker(time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for push.Behind(e.cache) > 0 {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("changes were not published")
		}
	}
}

// A proxy that reconnects says type by type what it has: nothing that it may route to goes in the meantime.
func TestReconnectedProxyKeepsClustersForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnvoys(t, push.Config{})
		e.cache.Apply(upsert(edsCluster(t, "b", 0), endpoints(t, "b"), routeTo(t, "t", "b")))
		e.cache.Synced()
		c := e.open()
		start := time.Now()
		c.Subscribe(push.TypeCluster, map[string]string{"a": "1", "b": edsCluster(t, "b", 0).Version})
		wantType(t, c.Next(), push.TypeCluster, nil, nil)
		c.Names(push.TypeRoute, []string{"t"}, nil, map[string]string{"t": routeTo(t, "t", "a").Version})
		wantType(t, c.Next(), push.TypeRoute, []string{"t"}, nil)
		wantType(t, c.Next(), push.TypeCluster, nil, []string{"a"})
		if waited := time.Since(start); waited < time.Second {
			t.Errorf("the cluster was removed after %s", waited)
		}
		c.Close()
	})
}

func TestRoutesDoNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnvoys(t, noGrace())
		c := warm(t, e)
		e.cache.Apply(upsert(edsCluster(t, "n", 0), endpoints(t, "n"), routeTo(t, "t", "n")))
		wantType(t, c.Next(), push.TypeCluster, []string{"n"}, nil)
		start := time.Now()
		wantType(t, c.Next(), push.TypeRoute, []string{"t"}, nil) // although nobody asked for the endpoints
		if waited := time.Since(start); waited < time.Second || waited > 10*time.Second {
			t.Errorf("waited %s", waited)
		}
		c.Close()
	})
}

func TestRejectionsAreReportedByName(t *testing.T) {
	e := newEnvoys(t, noGrace())
	c := warm(t, e)
	e.cache.Apply(upsert(edsCluster(t, "n", 0), edsCluster(t, "n2", 0)))
	r := c.Recv()
	wantType(t, r, push.TypeCluster, []string{"n", "n2"}, nil)
	const reason = "Error adding/updating cluster(s) n: no such thing"
	c.Nack(r, reason)
	e.cache.Apply(upsert(edsCluster(t, "n3", 0)))
	wantType(t, c.Next(), push.TypeCluster, []string{"n3"}, nil)
	node := pushtest.Gateway("wp-1", "shop", "wp").GetId()
	bad := push.Rejection{Proxy: shopGateway, Node: node, Type: push.TypeCluster, Names: []string{"n"}, Reason: reason}
	good := bad
	good.Reason = ""
	if diff := cmp.Diff([]push.Rejection{bad}, e.rejections()); diff != "" {
		t.Error(diff)
	}
	p := e.server.Proxies()[0]
	if diff := cmp.Diff([]string{"n"}, p.Types[0].Rejected); diff != "" || p.Gateway != "shop/wp" {
		t.Errorf("gateway %q: %s", p.Gateway, diff)
	}
	expected := "# HELP istiod_xds_rejected_resources Resources whose newest form the proxy refused.\n# TYPE istiod_xds_rejected_resources gauge\n"
	for _, typ := range p.Types {
		expected += fmt.Sprintf("istiod_xds_rejected_resources{proxy=%q,type=%q} %d\n", node, typ.Type, len(typ.Rejected))
	}
	if err := testutil.GatherAndCompare(e.reg, strings.NewReader(expected), "istiod_xds_rejected_resources"); err != nil {
		t.Error(err)
	}
	e.cache.Apply(upsert(edsCluster(t, "n", 1)))
	wantType(t, c.Next(), push.TypeCluster, []string{"n"}, nil)
	awaitRejections(t, e, []push.Rejection{bad, good})

	e.cache.Apply(upsert(edsCluster(t, "n", 2)))
	c.Nack(c.Recv(), reason)
	awaitRejections(t, e, []push.Rejection{bad, good, bad})
	c.Close()
	awaitRejections(t, e, []push.Rejection{bad, good, bad, good})
}

func awaitRejections(t *testing.T, e *envoys, want []push.Rejection) {
	t.Helper()
	deadline, tick := time.NewTimer(10*time.Second), time.NewTicker(time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for len(e.rejections()) < len(want) {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("rejections are %v", e.rejections())
		}
	}
	if diff := cmp.Diff(want, e.rejections()); diff != "" {
		t.Error(diff)
	}
}

func TestMentioned(t *testing.T) {
	for _, tt := range []struct {
		message string
		names   []string
		want    []string
	}{
		{"Error adding/updating cluster(s) outbound|80||a.b.svc: reason, outbound|81||a.b.svc: other",
			[]string{"outbound|80||a.b.svc", "outbound|80||a.b.svc.cluster", "outbound|81||a.b.svc", "outbound|82||a.b.svc"},
			[]string{"outbound|80||a.b.svc", "outbound|81||a.b.svc"}},
		{"no name in it", []string{"x", "y"}, []string{"x", "y"}},
		{"table 'ns/host:80'.", []string{"ns/host", "ns/host:80", "host:80"}, []string{"ns/host:80"}},
		{"ab a", []string{"a", "b"}, []string{"a"}},
		{"", []string{"a"}, []string{"a"}},
		{"x", nil, nil},
	} {
		if diff := cmp.Diff(tt.want, push.Mentioned(tt.message, tt.names...)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.message, diff)
		}
	}
}

func TestGatewaysAreChecked(t *testing.T) {
	as := func(ns, sa string) push.Config {
		return push.Config{Authenticate: func(context.Context) (push.Caller, error) { return push.Caller{Namespace: ns, ServiceAccount: sa}, nil }}
	}
	anonymous := push.Config{
		AnonymousPlaintext: true,
		Authenticate:       func(context.Context) (push.Caller, error) { return push.Caller{}, push.ErrAnonymous },
	}
	nameless := pushtest.Gateway("wp-1", "shop", "")
	for _, tt := range []struct {
		name string
		cfg  push.Config
		node *core.Node
		want codes.Code
	}{
		{"its own account", as("shop", "wp"), pushtest.Gateway("wp-1", "shop", "wp"), codes.OK},
		{"another account", as("shop", "app"), pushtest.Gateway("wp-1", "shop", "wp"), codes.PermissionDenied},
		{"another namespace's account", as("other", "wp"), pushtest.Gateway("wp-1", "shop", "wp"), codes.PermissionDenied},
		{"no credentials", anonymous, pushtest.Gateway("wp-1", "shop", "wp"), codes.Unauthenticated},
		{"no gateway named", as("shop", "wp"), nameless, codes.InvalidArgument},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnvoys(t, tt.cfg)
			e.cache.Synced()
			c := pushtest.Open(t.Context(), t, e.conn, tt.node)
			c.TrySend(&discovery.DeltaDiscoveryRequest{TypeUrl: push.TypeCluster})
			if _, err := c.RecvErr(); status.Code(err) != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestUnknownGatewayWaits(t *testing.T) {
	e := newEnvoys(t, noGrace())
	later := model.Key{Namespace: "shop", Name: "later"}
	c := pushtest.Open(t.Context(), t, e.conn, pushtest.Gateway("wp-1", "shop", "later"))
	c.Subscribe(push.TypeCluster, nil)
	quiet(c)
	e.dir.Cache(later).Apply(upsert(edsCluster(t, "a", 0)))
	e.dir.Register(later, "later")
	quiet(c) // not synced yet
	e.dir.Get(later).Synced()
	wantType(t, c.Next(), push.TypeCluster, []string{"a"}, nil)
	if diff := cmp.Diff([]model.Key{later, shopGateway}, e.dir.Keys()); diff != "" {
		t.Error(diff)
	}
	e.dir.Remove(later)
	if _, err := c.RecvErr(); status.Code(err) != codes.NotFound {
		t.Errorf("got %v, want NotFound", err)
	}
	if e.dir.Get(later) != nil {
		t.Error("a removed gateway is still there")
	}
}

func TestWaitingStreamEndsWithTheServer(t *testing.T) {
	e := newEnvoys(t, noGrace())
	c := pushtest.Open(t.Context(), t, e.conn, pushtest.Gateway("wp-1", "shop", "never"))
	c.Subscribe(push.TypeCluster, nil)
	quiet(c)
	e.server.Close()
	if _, err := c.RecvErr(); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want Unavailable", err)
	}
}

func TestChangedServiceAccountEndsStreams(t *testing.T) {
	e := newEnvoys(t, noGrace())
	c := warm(t, e)
	e.dir.Register(shopGateway, "wp") // no change
	quiet(c)
	e.dir.Register(shopGateway, "other")
	if _, err := c.RecvErr(); status.Code(err) != codes.NotFound {
		t.Errorf("got %v, want NotFound", err)
	}
}
