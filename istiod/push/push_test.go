package push_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/push/pushtest"
)

// world is a cache behind a real gRPC server.
type world struct {
	t      testing.TB
	cache  *push.Cache
	server *push.Server
	conn   *grpc.ClientConn
	reg    *prometheus.Registry
}

func newWorld(t testing.TB, cfg push.Config) *world {
	t.Helper()
	w := &world{t: t, cache: push.NewCache(push.Types()...), reg: prometheus.NewRegistry()}
	cfg.Log, cfg.Metrics, cfg.Identifier = slog.New(slog.DiscardHandler), w.reg, "istiod-test"
	var err error
	if w.server, err = push.NewServer(cfg, w.cache); err != nil {
		t.Fatal(err)
	}
	w.conn = serve(t, w.server, w.cache.Run)
	return w
}

// serve runs a server and what feeds it until the test ends, and connects to it.
func serve(t testing.TB, server *push.Server, run func(context.Context) error) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(64 << 10)
	g := grpc.NewServer()
	server.Register(g)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = run(ctx) }()
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Close()
		g.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve: %v", err)
		}
		cancel()
		<-done
	})
	return conn
}

func (w *world) open(node *core.Node) *pushtest.Client {
	return pushtest.Open(w.t.Context(), w.t, w.conn, node)
}

// pod is a workload resource with one address and the given services.
func pod(t testing.TB, name, ip, node string, services ...string) *push.Resource {
	t.Helper()
	a, err := netipBytes(ip)
	if err != nil {
		t.Fatal(err)
	}
	w := &workload.Workload{Uid: "c//Pod/ns/" + name, Name: name, Namespace: "ns", Addresses: [][]byte{a}, Node: node}
	keys := append([]string{push.NodeKey(node)}, services...)
	r, err := push.NewResource(ports.TypeAddress, w.GetUid(), &workload.Address{Type: &workload.Address_Workload{Workload: w}}, []string{"/" + ip}, keys)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func netipBytes(ip string) ([]byte, error) {
	a := net.ParseIP(ip).To4()
	if a == nil {
		return nil, errors.New("not IPv4: " + ip)
	}
	return a, nil
}

func service(t testing.TB, name, ip string) *push.Resource {
	t.Helper()
	s := &workload.Service{Name: name, Namespace: "ns", Hostname: name + ".ns.svc"}
	r, err := push.NewResource(ports.TypeAddress, "ns/"+s.GetHostname(), &workload.Address{Type: &workload.Address_Service{Service: s}}, []string{"/" + ip}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func policy(t testing.TB, name string, action security.Action) *push.Resource {
	t.Helper()
	r, err := push.NewResource(ports.TypeAuthorization, "ns/"+name, &security.Authorization{Name: name, Namespace: "ns", Action: action}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (w *world) address(rs ...*push.Resource) {
	w.cache.Apply([]push.Change{{Type: ports.TypeAddress, Upsert: rs}})
}

func sorted(in []string) []string { slices.Sort(in); return in }

func wantNames(t testing.TB, r *discovery.DeltaDiscoveryResponse, resources, removed []string) {
	t.Helper()
	if diff := cmp.Diff(resources, sorted(pushtest.Names(r))); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(removed, sorted(r.GetRemovedResources())); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
}

func TestNothingIsServedBeforeSync(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.address(pod(t, "a", "10.0.0.1", "n1"))
	c := w.open(pushtest.Node("z", "n1"))
	c.Subscribe(ports.TypeAddress, nil)
	published := make(chan struct{})
	// Later than any batch of the change above; only then may the state be complete.
	time.AfterFunc(50*time.Millisecond, func() { close(published) })
	c.Silent(published)
	w.cache.Synced()
	wantNames(t, c.Next(), []string{"c//Pod/ns/a"}, nil)
}

func TestEmptyStateStillAnswersEveryType(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.cache.Synced()
	c := w.open(pushtest.Node("z", "n1"))
	for _, typ := range []string{ports.TypeAddress, ports.TypeAuthorization, ports.TypeWorkload} {
		c.Subscribe(typ, nil)
		r := c.Next()
		wantNames(t, r, nil, nil)
		if r.GetTypeUrl() != typ || r.GetNonce() == "" || r.GetControlPlane().GetIdentifier() != "istiod-test" {
			t.Errorf("response to %q: %v", typ, r)
		}
	}
}

func TestChangesArriveAsDeltas(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.address(pod(t, "a", "10.0.0.1", "n1"), pod(t, "b", "10.0.0.2", "n1"))
	w.cache.Synced()
	c := w.open(pushtest.Node("z", "n1"))
	c.Subscribe(ports.TypeAddress, nil)
	wantNames(t, c.Next(), []string{"c//Pod/ns/a", "c//Pod/ns/b"}, nil)

	w.address(pod(t, "b", "10.0.0.3", "n1"))
	r := c.Next()
	wantNames(t, r, []string{"c//Pod/ns/b"}, nil)
	if len(r.GetResources()[0].GetAliases()) != 0 {
		t.Errorf("a wildcard answer has aliases: %v", r.GetResources()[0].GetAliases())
	}
	w.cache.Apply([]push.Change{{Type: ports.TypeAddress, Removed: []string{"c//Pod/ns/a", "never-existed"}}})
	wantNames(t, c.Next(), nil, []string{"c//Pod/ns/a"})
}

func TestWorkloadTypeHasNoServices(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.address(pod(t, "a", "10.0.0.1", "n1"), service(t, "s", "10.96.0.1"))
	w.cache.Synced()
	c := w.open(pushtest.Node("z", "n1"))
	c.Subscribe(ports.TypeWorkload, nil)
	r := c.Next()
	wantNames(t, r, []string{"c//Pod/ns/a"}, nil)
	got := &workload.Workload{}
	if err := r.GetResources()[0].GetResource().UnmarshalTo(got); err != nil || got.GetName() != "a" {
		t.Errorf("decoded %v, %v", got, err)
	}
}

func TestReconnectGetsOnlyTheDifference(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.address(pod(t, "same", "10.0.0.1", "n1"), pod(t, "changed", "10.0.0.2", "n1"), pod(t, "gone", "10.0.0.3", "n1"))
	w.cache.Apply([]push.Change{{Type: ports.TypeAuthorization, Upsert: []*push.Resource{policy(t, "p", 0)}}})
	w.cache.Synced()
	first := w.open(pushtest.Node("z", "n1"))
	first.Subscribe(ports.TypeAddress, nil)
	first.Next()
	first.Subscribe(ports.TypeAuthorization, nil)
	first.Next()
	first.Close()

	w.address(pod(t, "changed", "10.0.0.9", "n1"), pod(t, "new", "10.0.0.4", "n1"))
	w.cache.Apply([]push.Change{{Type: ports.TypeAddress, Removed: []string{"c//Pod/ns/gone"}}})
	c := w.open(pushtest.Node("z", "n1"))
	c.Subscribe(ports.TypeAddress, first.Held[ports.TypeAddress])
	resources, removed := map[string]bool{}, map[string]bool{}
	for len(resources) < 2 || len(removed) < 1 {
		r := c.Next()
		for _, n := range pushtest.Names(r) {
			resources[n] = true
		}
		for _, n := range r.GetRemovedResources() {
			removed[n] = true
		}
	}
	if diff := cmp.Diff(map[string]bool{"c//Pod/ns/changed": true, "c//Pod/ns/new": true}, resources); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]bool{"c//Pod/ns/gone": true}, removed); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	c.Subscribe(ports.TypeAuthorization, first.Held[ports.TypeAuthorization])
	wantNames(t, c.Next(), nil, nil)
}

func TestReconnectWithoutVersionsGetsEverything(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.address(pod(t, "a", "10.0.0.1", "n1"))
	w.cache.Synced()
	c := w.open(pushtest.Node("z", "n1"))
	c.Subscribe(ports.TypeAddress, map[string]string{"c//Pod/ns/a": "", "c//Pod/ns/old": ""})
	wantNames(t, c.Next(), []string{"c//Pod/ns/a"}, []string{"c//Pod/ns/old"})
}

func onDemand(names ...string) *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{
		TypeUrl: ports.TypeAddress, ResourceNamesSubscribe: append([]string{"*"}, names...), ResourceNamesUnsubscribe: []string{"*"},
	}
}

func TestOnDemand(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.address(
		pod(t, "local", "10.0.0.1", "n1"), pod(t, "a", "10.0.0.2", "n2", "ns/s.ns.svc"),
		pod(t, "b", "10.0.0.3", "n2", "ns/s.ns.svc"), pod(t, "other", "10.0.0.4", "n2"), service(t, "s", "10.96.0.1"))
	w.cache.Synced()
	c := w.open(pushtest.Node("z", "n1"))
	c.Send(onDemand())
	wantNames(t, c.Next(), []string{"c//Pod/ns/local"}, nil) // its own node's, unasked

	ask := func(names ...string) *discovery.DeltaDiscoveryResponse {
		c.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress, ResourceNamesSubscribe: names})
		return c.Next()
	}
	// By address: the answer has another name, and the alias that was asked for.
	r := ask("/10.0.0.4")
	wantNames(t, r, []string{"c//Pod/ns/other"}, nil)
	if diff := cmp.Diff([]string{"/10.0.0.4"}, r.GetResources()[0].GetAliases()); diff != "" {
		t.Errorf("aliases (-want +got):\n%s", diff)
	}
	// A virtual address or host name gives the service and all its pods.
	wantNames(t, ask("/10.96.0.1"), []string{"c//Pod/ns/a", "c//Pod/ns/b", "ns/s.ns.svc"}, nil)
	wantNames(t, ask("ns/s.ns.svc"), []string{"c//Pod/ns/a", "c//Pod/ns/b", "ns/s.ns.svc"}, nil)
	// An unknown name is answered at once, so that nobody waits.
	wantNames(t, ask("/10.9.9.9"), nil, []string{"/10.9.9.9"})

	// Changes of what was asked for or returned arrive; others do not.
	w.address(pod(t, "stranger", "10.0.0.7", "n3"))
	w.address(pod(t, "late", "10.9.9.9", "n3"))
	wantNames(t, c.Next(), []string{"c//Pod/ns/late"}, nil)
	w.address(pod(t, "c", "10.0.0.8", "n3", "ns/s.ns.svc"))
	wantNames(t, c.Next(), []string{"c//Pod/ns/c"}, nil)
	w.cache.Apply([]push.Change{{Type: ports.TypeAddress, Removed: []string{"c//Pod/ns/stranger", "c//Pod/ns/a"}}})
	wantNames(t, c.Next(), nil, []string{"c//Pod/ns/a"})
}

func TestOnDemandOfNothingIsAnswered(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.cache.Synced()
	c := w.open(pushtest.Node("z", "nowhere"))
	c.Send(onDemand())
	wantNames(t, c.Next(), nil, nil)
}

func TestRejectedIsRecordedAndNotSentAgain(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.address(pod(t, "a", "10.0.0.1", "n1"))
	w.cache.Synced()
	c := w.open(pushtest.Node("z", "n1"))
	c.Subscribe(ports.TypeAddress, nil)
	c.Nack(c.Recv(), "c//Pod/ns/a: no such thing")
	w.address(pod(t, "b", "10.0.0.2", "n1"))
	wantNames(t, c.Next(), []string{"c//Pod/ns/b"}, nil)

	st := w.server.Proxies()[0].Types[0]
	if st.Rejects != 1 || !strings.Contains(st.LastReject, "c//Pod/ns/a") {
		t.Errorf("status = %+v, want one rejection that names the resource", st)
	}
}

func TestStaleNonceIsIgnored(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.cache.Synced()
	c := w.open(pushtest.Node("z", "n1"))
	c.Subscribe(ports.TypeAddress, nil)
	c.Next()
	c.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress, ResponseNonce: "4711"})
	w.address(pod(t, "a", "10.0.0.1", "n1"))
	wantNames(t, c.Next(), []string{"c//Pod/ns/a"}, nil) // and nothing in between
}

// A workload must never be without the policies it refers to: new ones come
// before it, old ones go after it.
func TestPoliciesArriveBeforeAndLeaveAfterWorkloads(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.cache.Apply([]push.Change{{Type: ports.TypeAuthorization, Upsert: []*push.Resource{policy(t, "old", 0)}}})
	w.cache.Synced()
	c := w.open(pushtest.Node("z", "n1"))
	c.Subscribe(ports.TypeAddress, nil)
	c.Next()
	c.Subscribe(ports.TypeAuthorization, nil)
	c.Next()
	w.cache.Apply([]push.Change{
		{Type: ports.TypeAuthorization, Upsert: []*push.Resource{policy(t, "new", 0)}, Removed: []string{"ns/old"}},
		{Type: ports.TypeAddress, Upsert: []*push.Resource{pod(t, "a", "10.0.0.1", "n1")}},
	})
	wantNames(t, c.Next(), []string{"ns/new"}, nil)
	wantNames(t, c.Next(), []string{"c//Pod/ns/a"}, nil)
	wantNames(t, c.Next(), nil, []string{"ns/old"})
}

// A proxy that does not acknowledge gets no queue of old states: when it is back,
// it gets each name once, in its newest form.
func TestSlowProxyGetsTheNewestStateOnce(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.cache.Synced()
	c := w.open(pushtest.Node("z", "n1"))
	c.Subscribe(ports.TypeAddress, nil)
	var owed []*discovery.DeltaDiscoveryResponse
	owed = append(owed, c.Recv())
	const changes = 200
	var last *push.Resource
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for i := range changes {
		last = pod(t, "a", fmt.Sprintf("10.0.%d.%d", i/250, i%250+1), "n1")
		w.address(last)
		if i%10 == 0 {
			awaitBatch(ctx, t, w)
		}
	}
	received := 0
	for held := c.Held[ports.TypeAddress]; held["c//Pod/ns/a"] != last.Version; held = c.Held[ports.TypeAddress] {
		for _, r := range owed {
			c.Ack(r)
		}
		owed = append(owed[:0], c.Recv())
		received++
	}
	if received > 6 {
		t.Errorf("%d responses for %d changes of one name; want no more than were allowed unacknowledged and the newest", received, changes)
	}
}

// awaitBatch waits until what was applied is published.
func awaitBatch(ctx context.Context, t testing.TB, w *world) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for push.Behind(w.cache) > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("changes were not published")
		}
	}
}

func TestLargeStateComesInChunksBelowTheLimit(t *testing.T) {
	w := newWorld(t, push.Config{})
	const n = 10_000
	var rs []*push.Resource
	for i := range n {
		rs = append(rs, pod(t, fmt.Sprintf("pod-with-a-realistic-long-name-%d", i), fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), "n1"))
	}
	w.address(rs...)
	w.cache.Synced()
	c := w.open(pushtest.Node("z", "n1"))
	c.Subscribe(ports.TypeAddress, nil)
	chunks := 0
	for len(c.Held[ports.TypeAddress]) < n {
		if size := proto.Size(c.Next()); size > 2<<20 {
			t.Fatalf("a message of %d bytes", size)
		}
		chunks++
	}
	if chunks < 2 {
		t.Errorf("everything came in %d message", chunks)
	}
}

func TestRefusals(t *testing.T) {
	deny := push.Config{Authenticate: func(context.Context) (push.Caller, error) { return push.Caller{}, errors.New("who are you") }}
	asZtunnel := push.Config{Authenticate: func(context.Context) (push.Caller, error) {
		return push.Caller{Namespace: "elsewhere", ServiceAccount: "ztunnel"}, nil
	}}
	for _, tt := range []struct {
		name string
		cfg  push.Config
		node *core.Node
		want codes.Code
	}{
		{"no credentials", deny, pushtest.Node("z", "n1"), codes.Unauthenticated},
		{"no node", push.Config{}, nil, codes.InvalidArgument},
		{"no node id", push.Config{}, &core.Node{}, codes.InvalidArgument},
		{"another namespace's node", asZtunnel, pushtest.Node("z", "n1"), codes.PermissionDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.cfg)
			w.cache.Synced()
			c := w.open(tt.node)
			_ = c // the server may have ended the stream before the request is written
			c.TrySend(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress})
			if _, err := c.RecvErr(); status.Code(err) != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestHealthProbeBeforeFirstRequestIsTolerated(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.cache.Synced()
	c := w.open(nil)
	c.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/istio.v1.HealthInformation"})
	c.SetNode(pushtest.Node("z", "n1"))
	c.Subscribe(ports.TypeAddress, nil)
	wantNames(t, c.Next(), nil, nil)
}

func TestStateOfTheWorldIsRefusedClearly(t *testing.T) {
	w := newWorld(t, push.Config{})
	s, err := discovery.NewAggregatedDiscoveryServiceClient(w.conn).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "DeltaAggregatedResources") {
		t.Errorf("got %v", err)
	}
}

func TestCloseEndsStreams(t *testing.T) {
	w := newWorld(t, push.Config{})
	w.cache.Synced()
	c := w.open(pushtest.Node("z", "n1"))
	c.Subscribe(ports.TypeAddress, nil)
	c.Next()
	w.server.Close()
	if _, err := c.RecvErr(); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want Unavailable", err)
	}
}

func TestVersionsAreEqualForEqualContent(t *testing.T) {
	if a, b := pod(t, "a", "10.0.0.1", "n1"), pod(t, "a", "10.0.0.1", "n1"); a.Version != b.Version || len(a.Version) != 16 {
		t.Errorf("versions %q and %q", a.Version, b.Version)
	}
	if a, b := pod(t, "a", "10.0.0.1", "n1"), pod(t, "a", "10.0.0.2", "n1"); a.Version == b.Version {
		t.Error("different content has one version")
	}
}
