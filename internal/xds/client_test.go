package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/ports"
)

// patience bounds every wait of a test for something that must happen.
const patience = 10 * time.Second

// server is a control plane whose every step the test decides.
type server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	addr    string
	streams chan *scripted
}

// scripted is one stream at the server.
type scripted struct {
	t        *testing.T
	md       metadata.MD
	requests chan *discovery.DeltaDiscoveryRequest
	stream   discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	end      chan error
}

func (s *server) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	c := &scripted{requests: make(chan *discovery.DeltaDiscoveryRequest, 100), stream: stream, end: make(chan error, 1)}
	c.md, _ = metadata.FromIncomingContext(stream.Context())
	select {
	case s.streams <- c:
	case <-stream.Context().Done():
		return nil
	}
	go func() {
		defer close(c.requests)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			c.requests <- r
		}
	}()
	select {
	case err := <-c.end:
		return err
	case <-stream.Context().Done():
		return nil
	}
}

func newServer(t *testing.T) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: "http://" + l.Addr().String(), streams: make(chan *scripted)}
	g := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return s
}

func (s *server) accept(t *testing.T) *scripted {
	t.Helper()
	select {
	case c := <-s.streams:
		c.t = t
		return c
	case <-time.After(patience):
		t.Fatal("the client did not come")
		return nil
	}
}

func (c *scripted) recv() *discovery.DeltaDiscoveryRequest {
	c.t.Helper()
	select {
	case r, ok := <-c.requests:
		if !ok {
			c.t.Fatal("the client ended the stream")
		}
		return r
	case <-time.After(patience):
		c.t.Fatal("the client sent nothing")
		return nil
	}
}

func (c *scripted) want(want *discovery.DeltaDiscoveryRequest) {
	c.t.Helper()
	if diff := cmp.Diff(want, c.recv(), protocmp.Transform()); diff != "" {
		c.t.Fatalf("request (-want +got):\n%s", diff)
	}
}

func (c *scripted) send(r *discovery.DeltaDiscoveryResponse) {
	c.t.Helper()
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

// recorder is a Handler that keeps what it was given and refuses what it is told to.
type recorder struct {
	mu      sync.Mutex
	held    map[string]string // name → payload
	refuse  map[string]error
	updates []Update
}

func newRecorder() *recorder { return &recorder{held: map[string]string{}, refuse: map[string]error{}} }

func (r *recorder) handle(u Update) map[string]error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.updates = append(r.updates, u)
	rejected := map[string]error{}
	for _, name := range u.Removed {
		delete(r.held, name)
	}
	for _, res := range u.Resources {
		if err := r.refuse[res.Name]; err != nil {
			rejected[res.Name] = err
			continue
		}
		r.held[res.Name] = string(res.Resource.GetValue())
	}
	return rejected
}

func (r *recorder) has(t *testing.T, want map[string]string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if diff := cmp.Diff(want, r.held); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
}

type harness struct {
	*server
	client    *Client
	address   *recorder
	policy    *recorder
	connected chan error
}

// run starts a client against a scripted server, until the test ends.
func run(t *testing.T, edit func(*Config)) *harness {
	t.Helper()
	h := &harness{server: newServer(t), address: newRecorder(), policy: newRecorder(), connected: make(chan error, 1000)}
	node, err := NewNode(NodeInfo{Kind: "ztunnel", IP: "10.0.0.1", Pod: "zt-1", Namespace: "istio-system", NodeName: "n1", Metadata: map[string]any{"EXTRA": true}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Address: h.addr, Node: node, Log: slog.New(slog.DiscardHandler), MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond,
		Types: map[string]Handler{ports.TypeAddress: h.address.handle, ports.TypeAuthorization: h.policy.handle},
		Hooks: Hooks{Connected: func(err error) {
			select {
			case h.connected <- err:
			default:
			}
		}},
	}
	if edit != nil {
		edit(&cfg)
	}
	if h.client, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end with its context")
		}
	})
	return h
}

func wantNode() *core.Node {
	n, _ := NewNode(NodeInfo{Kind: "ztunnel", IP: "10.0.0.1", Pod: "zt-1", Namespace: "istio-system", NodeName: "n1", Metadata: map[string]any{"EXTRA": true}})
	return n
}

// greet reads the first requests of a stream with nothing held.
func (c *scripted) greet() {
	c.t.Helper()
	c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAuthorization, Node: wantNode()})
	c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress})
}

func res(name, version, payload string) *discovery.Resource {
	return &discovery.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: ports.TypeAddress, Value: []byte(payload)}}
}

func response(nonce string, removed []string, rs ...*discovery.Resource) *discovery.DeltaDiscoveryResponse {
	return &discovery.DeltaDiscoveryResponse{TypeUrl: ports.TypeAddress, Nonce: nonce, Resources: rs, RemovedResources: removed}
}

func ack(nonce string) *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress, ResponseNonce: nonce}
}

func isReady(c *Client) bool {
	select {
	case <-c.Ready():
		return true
	default:
		return false
	}
}

func TestFirstRequests(t *testing.T) {
	h := run(t, func(c *Config) { c.ClusterID = "c1" })
	c := h.accept(t)
	first := c.recv()
	if got, want := first.GetNode().GetId(), "ztunnel~10.0.0.1~zt-1.istio-system~istio-system.svc.cluster.local"; got != want {
		t.Errorf("node id %q, want %q", got, want)
	}
	wantMD := map[string]any{"NAME": "zt-1", "NAMESPACE": "istio-system", "INSTANCE_IPS": "10.0.0.1", "NODE_NAME": "n1", "EXTRA": true}
	if diff := cmp.Diff(wantMD, first.GetNode().GetMetadata().AsMap()); diff != "" {
		t.Errorf("node metadata (-want +got):\n%s", diff)
	}
	if first.GetTypeUrl() != ports.TypeAuthorization || len(first.GetResourceNamesSubscribe()) != 0 {
		t.Errorf("first request %v; want all policies", first)
	}
	c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress}) // no second node, no names: everything
	if diff := cmp.Diff([]string{"c1"}, c.md["clusterid"]); diff != "" {
		t.Errorf("cluster (-want +got):\n%s", diff)
	}
}

// TestAckAndReady: ready only after each type had its response, even an empty one.
func TestAckAndReady(t *testing.T) {
	h := run(t, nil)
	c := h.accept(t)
	c.greet()
	c.send(response("n1", nil, res("a", "v1", "A"), res("b", "v1", "B")))
	c.want(ack("n1"))
	h.address.has(t, map[string]string{"a": "A", "b": "B"})
	c.send(response("n2", []string{"a", "never"}, res("b", "v2", "BB")))
	c.want(ack("n2"))
	h.address.has(t, map[string]string{"b": "BB"})
	if isReady(h.client) {
		t.Error("ready although policies have not come")
	}
	c.send(&discovery.DeltaDiscoveryResponse{TypeUrl: ports.TypeAuthorization, Nonce: "n3"})
	c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAuthorization, ResponseNonce: "n3"})
	if !isReady(h.client) {
		t.Error("not ready although both types have answered")
	}
	if err := <-h.connected; err != nil {
		t.Errorf("Connected(%v), want nil", err)
	}
}

// TestNack: each refused resource is named with its reason, the good part counts, and
// only the good part is reported as held after a reconnect.
func TestNack(t *testing.T) {
	h := run(t, nil)
	h.address.refuse["bad"] = errors.New("no such protocol")
	h.address.refuse["worse"] = errors.New("not UTF-8: \xff")
	c := h.accept(t)
	c.greet()
	c.send(response("n1", nil, res("good", "v1", "G"), res("bad", "v1", "B"), res("worse", "v1", "W")))
	nack := c.recv()
	if nack.GetResponseNonce() != "n1" || nack.GetErrorDetail().GetCode() != int32(codes.InvalidArgument) ||
		nack.GetErrorDetail().GetMessage() != "bad: no such protocol; worse: not UTF-8: ?" {
		t.Errorf("answer %v", nack)
	}
	h.address.has(t, map[string]string{"good": "G"})
	// The good part of another version of "bad" was accepted before it turned bad.
	h.address.mu.Lock()
	delete(h.address.refuse, "bad")
	h.address.mu.Unlock()
	c.send(response("n2", nil, res("bad", "v2", "B2")))
	c.want(ack("n2"))
	h.address.mu.Lock()
	h.address.refuse["bad"] = errors.New("bad again")
	h.address.mu.Unlock()
	c.send(response("n3", nil, res("bad", "v3", "B3")))
	if nack := c.recv(); nack.GetErrorDetail() == nil {
		t.Errorf("answer %v, want a refusal", nack)
	}
	h.address.has(t, map[string]string{"good": "G", "bad": "B2"})
	c.end <- status.Error(codes.Unavailable, "restart")
	c = h.accept(t)
	c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAuthorization, Node: wantNode()})
	c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress, InitialResourceVersions: map[string]string{"good": "v1", "bad": "v2"}})
}

// TestReadyDespiteRefusal: one bad resource among good ones does not keep a proxy
// from starting; a response without anything good does.
func TestReadyDespiteRefusal(t *testing.T) {
	h := run(t, func(c *Config) { delete(c.Types, ports.TypeAuthorization) })
	h.address.refuse["bad"] = errors.New("bad")
	c := h.accept(t)
	c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress, Node: wantNode()})
	c.send(response("n1", nil, res("bad", "v1", "B")))
	c.recv()
	if isReady(h.client) {
		t.Error("ready although nothing was applied")
	}
	c.send(response("n2", nil, res("bad", "v1", "B"), res("good", "v1", "G")))
	c.recv()
	if !isReady(h.client) {
		t.Error("not ready although the good part is in force")
	}
}

// TestResume: what is held is named with its version, what was removed is not, and
// the state stays while there is no stream.
func TestResume(t *testing.T) {
	h := run(t, nil)
	c := h.accept(t)
	c.greet()
	c.send(response("n1", nil, res("a", "v1", "A"), res("b", "v1", "B"), res("c", "v1", "C")))
	c.want(ack("n1"))
	c.send(response("n2", []string{"b"}, res("c", "v2", "CC")))
	c.want(ack("n2"))
	for range 3 {
		c.end <- status.Error(codes.Internal, "trouble")
		c = h.accept(t)
		c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAuthorization, Node: wantNode()})
		c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress, InitialResourceVersions: map[string]string{"a": "v1", "c": "v2"}})
		h.address.has(t, map[string]string{"a": "A", "c": "CC"})
	}
	c.send(response("n1", []string{"a"}))
	c.want(ack("n1"))
	h.address.has(t, map[string]string{"c": "CC"})
}

func TestOnDemand(t *testing.T) {
	h := run(t, func(c *Config) { c.OnDemand = true })
	nothing := &discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}}
	c := h.accept(t)
	c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAuthorization, Node: wantNode()})
	c.want(nothing)
	c.send(&discovery.DeltaDiscoveryResponse{TypeUrl: ports.TypeAuthorization, Nonce: "p1"})
	c.recv()
	if !isReady(h.client) {
		t.Error("not ready: a type on demand owes no first response")
	}
	closed := func(what string, ch <-chan struct{}) {
		t.Helper()
		select {
		case <-ch:
		case <-time.After(patience):
			t.Fatalf("%s: not answered", what)
		}
	}
	open := func(what string, ch <-chan struct{}) {
		t.Helper()
		select {
		case <-ch:
			t.Fatalf("%s: answered too early", what)
		default:
		}
	}
	byIP := h.client.Demand("net/10.0.0.1")
	c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress, ResourceNamesSubscribe: []string{"net/10.0.0.1"}})
	again := h.client.Demand("net/10.0.0.1") // no second request
	open("by address", byIP)
	aliased := res("uid-1", "v1", "W")
	aliased.Aliases = []string{"net/10.0.0.1"}
	c.send(response("n1", nil, res("other", "v1", "O"), aliased))
	c.want(ack("n1"))
	closed("by alias", byIP)
	closed("second of the same", again)

	gone := h.client.Demand("shop/nobody")
	c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAddress, ResourceNamesSubscribe: []string{"shop/nobody"}})
	c.send(response("n2", []string{"shop/nobody"}))
	c.want(ack("n2"))
	closed("what does not exist", gone)

	refused := h.client.Demand("uid-9")
	c.recv()
	h.address.mu.Lock()
	h.address.refuse["uid-9"] = errors.New("bad")
	h.address.mu.Unlock()
	c.send(response("n3", nil, res("uid-9", "v1", "?")))
	c.recv()
	closed("what was refused", refused)

	// A demand without an answer is named again after a reconnect, without a version.
	lost := h.client.Demand("uid-2")
	c.recv()
	c.end <- status.Error(codes.Unavailable, "restart")
	c = h.accept(t)
	c.want(&discovery.DeltaDiscoveryRequest{TypeUrl: ports.TypeAuthorization, Node: wantNode()})
	resumed := proto.Clone(nothing).(*discovery.DeltaDiscoveryRequest)
	resumed.InitialResourceVersions = map[string]string{"uid-1": "v1", "other": "v1", "uid-2": ""}
	c.want(resumed)
	open("over the reconnect", lost)
	c.send(response("n1", nil, res("uid-2", "v1", "W")))
	c.want(ack("n1"))
	closed("over the reconnect", lost)
}

func TestDemandWithoutOnDemand(t *testing.T) {
	h := run(t, nil)
	c := h.accept(t)
	c.greet()
	select {
	case <-h.client.Demand("x"):
	case <-time.After(patience):
		t.Error("Demand blocks although everything is subscribed to")
	}
	c.send(response("n1", nil))
	c.want(ack("n1")) // and not a subscription
}

func TestUnknownTypeIsRefused(t *testing.T) {
	h := run(t, nil)
	c := h.accept(t)
	c.greet()
	c.send(&discovery.DeltaDiscoveryResponse{TypeUrl: "type.googleapis.com/some.Other", Nonce: "n1"})
	r := c.recv()
	if r.GetTypeUrl() != "type.googleapis.com/some.Other" || r.GetResponseNonce() != "n1" || !strings.Contains(r.GetErrorDetail().GetMessage(), "not subscribed") {
		t.Errorf("answer %v", r)
	}
	c.send(response("n2", nil, res("a", "v1", "A")))
	c.want(ack("n2"))
}

// TestLargeResponse: more than gRPC's default limit of 4 MiB.
func TestLargeResponse(t *testing.T) {
	h := run(t, nil)
	c := h.accept(t)
	c.greet()
	payload := strings.Repeat("x", 1<<20)
	var rs []*discovery.Resource
	for i := range 9 {
		rs = append(rs, res(fmt.Sprint("r", i), "v1", payload))
	}
	c.send(response("n1", nil, rs...))
	c.want(ack("n1"))
}

// TestErrorDetailIsBounded: a refusal of everything does not itself exceed limits.
func TestErrorDetailIsBounded(t *testing.T) {
	h := run(t, nil)
	c := h.accept(t)
	c.greet()
	var rs []*discovery.Resource
	for i := range 2000 {
		name := fmt.Sprintf("r%04d", i)
		h.address.refuse[name] = errors.New(strings.Repeat("ä", 100))
		rs = append(rs, res(name, "v1", ""))
	}
	c.send(response("n1", nil, rs...))
	if n := len(c.recv().GetErrorDetail().GetMessage()); n < maxErrorDetail || n > maxErrorDetail+16 {
		t.Errorf("%d bytes of detail, want about %d", n, maxErrorDetail)
	}
}

func TestUnreachableServer(t *testing.T) {
	h := run(t, func(c *Config) { c.Address = "http://127.0.0.1:1" })
	for range 3 {
		select {
		case err := <-h.connected:
			if status.Code(err) != codes.Unavailable {
				t.Errorf("Connected(%v), want Unavailable", err)
			}
		case <-time.After(patience):
			t.Fatal("no attempt")
		}
	}
	if isReady(h.client) {
		t.Error("ready without a server")
	}
}

// TestBackoff: attempts that get no answer become rarer up to the limit, and a stream
// that answered starts over.
func TestBackoff(t *testing.T) {
	var mu sync.Mutex
	var waits []time.Duration
	h := run(t, func(c *Config) {
		c.MinBackoff, c.MaxBackoff = 4*time.Millisecond, 32*time.Millisecond
		c.Random = func() float64 { return 0 } // half of the wait
		c.Log = slog.New(waitRecorder{func(d time.Duration) { mu.Lock(); waits = append(waits, d); mu.Unlock() }})
	})
	for range 5 {
		h.accept(t).end <- status.Error(codes.Unauthenticated, "go away")
	}
	c := h.accept(t)
	c.greet()
	c.send(response("n1", nil))
	c.want(ack("n1"))
	c.end <- nil // a normal end
	h.accept(t).end <- status.Error(codes.Internal, "trouble")
	h.accept(t)
	mu.Lock()
	defer mu.Unlock()
	var want []time.Duration
	for _, ms := range []int{2, 4, 8, 16, 16, 2, 4} {
		want = append(want, time.Duration(ms)*time.Millisecond)
	}
	if diff := cmp.Diff(want, waits); diff != "" {
		t.Errorf("waits (-want +got):\n%s", diff)
	}
}

// waitRecorder is a slog.Handler that picks out the attribute "retry".
type waitRecorder struct{ seen func(time.Duration) }

func (w waitRecorder) Enabled(context.Context, slog.Level) bool { return true }
func (w waitRecorder) WithAttrs([]slog.Attr) slog.Handler       { return w }
func (w waitRecorder) WithGroup(string) slog.Handler            { return w }
func (w waitRecorder) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "retry" {
			w.seen(a.Value.Duration())
		}
		return true
	})
	return nil
}

func TestExpectedEnds(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{io.EOF, true}, {fmt.Errorf("receive: %w", io.EOF), true},
		{status.Error(codes.Canceled, ""), true}, {status.Error(codes.DeadlineExceeded, ""), true},
		{status.Error(codes.Unavailable, "transport is closing"), true}, {status.Error(codes.Unavailable, "received prior goaway: code: NO_ERROR"), true},
		{status.Error(codes.Unavailable, "connection refused"), false}, {status.Error(codes.Unauthenticated, ""), false}, {errors.New("x"), false},
	} {
		if got := expected(tc.err); got != tc.want {
			t.Errorf("expected(%v) = %v, want %v", tc.err, got, tc.want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := func() Config {
		return Config{Address: "http://a:1", Node: wantNode(), Types: map[string]Handler{ports.TypeAddress: newRecorder().handle}}
	}
	for name, edit := range map[string]func(*Config){
		"no address": func(c *Config) { c.Address = "" }, "no port": func(c *Config) { c.Address = "http://a" },
		"no roots": func(c *Config) { c.Address = "https://a:1" }, "no node": func(c *Config) { c.Node = nil }, "no type": func(c *Config) { c.Types = nil },
	} {
		cfg := good()
		edit(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(good()); err != nil {
		t.Errorf("a good one: %v", err)
	}
}

// FuzzHandle feeds arbitrary responses: the answer always fits the response, and what
// is recorded is what the handler kept.
func FuzzHandle(f *testing.F) {
	seed, err := proto.Marshal(response("n1", []string{"gone"}, res("a", "v1", "A"), res("bad", "v1", "B")))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var r discovery.DeltaDiscoveryResponse
		if proto.Unmarshal(data, &r) != nil {
			return
		}
		rec := newRecorder()
		rec.refuse["bad"] = errors.New("bad")
		c, err := New(Config{Address: "http://a:1", Node: wantNode(), Log: slog.New(slog.DiscardHandler), Types: map[string]Handler{ports.TypeAddress: rec.handle}})
		if err != nil {
			t.Fatal(err)
		}
		answer := c.handle(&r)
		if answer.GetResponseNonce() != r.GetNonce() || answer.GetTypeUrl() != r.GetTypeUrl() {
			t.Fatalf("answer %v to %v", answer, &r)
		}
		if _, err := proto.Marshal(answer); err != nil {
			t.Fatal(err)
		}
		if len(c.versions[ports.TypeAddress]) != len(rec.held) {
			t.Fatalf("recorded %v, held %v", c.versions[ports.TypeAddress], rec.held)
		}
		for name := range rec.held {
			if _, ok := c.versions[ports.TypeAddress][name]; !ok {
				t.Fatalf("%q is held but not recorded", name)
			}
		}
	})
}
