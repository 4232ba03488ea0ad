package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/internal/xds/dial"
)

const patience = 20 * time.Second

type deltaServer = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// istiod hands each of its streams to the test.
type istiod struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	addr    string
	server  *grpc.Server
	served  chan struct{}
	streams chan deltaServer
	end     chan error // one for each stream, its status
}

func newIstiod(t *testing.T, addr string) *istiod {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &istiod{
		addr: l.Addr().String(), server: grpc.NewServer(grpc.MaxRecvMsgSize(MaxRequestBytes)), served: make(chan struct{}),
		streams: make(chan deltaServer, 10), end: make(chan error),
	}
	discovery.RegisterAggregatedDiscoveryServiceServer(s.server, s)
	go func() {
		defer close(s.served)
		_ = s.server.Serve(l)
	}()
	t.Cleanup(s.stop)
	return s
}

func (s *istiod) stop() {
	s.server.Stop()
	<-s.served
}

func (s *istiod) DeltaAggregatedResources(stream deltaServer) error {
	s.streams <- stream
	select {
	case err := <-s.end:
		return err
	case <-stream.Context().Done():
		return nil
	}
}

func (s *istiod) stream(t *testing.T) deltaServer {
	t.Helper()
	select {
	case stream := <-s.streams:
		return stream
	case <-time.After(patience):
		t.Fatal("no stream reached istiod")
		return nil
	}
}

// events are what the hooks said.
type events struct {
	connected atomic.Int32 // calls with nil
	lost      atomic.Int32
	responses atomic.Int32
	rejected  chan string
}

// envoy is a client of a relay, in the place of Envoy.
func envoy(t *testing.T, addr string) (discovery.AggregatedDiscoveryServiceClient, context.Context, *events) {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := &events{rejected: make(chan string, 10)}
	r := New(Config{
		Istiod: dial.Options{Address: "http://" + addr, TokenFile: token}, Log: slog.New(slog.DiscardHandler),
		Hooks: Hooks{
			Connected: func(err error) {
				if err == nil {
					e.connected.Add(1)
				} else {
					e.lost.Add(1)
				}
			},
			Passed: func(fromIstiod bool, _ int) {
				if fromIstiod {
					e.responses.Add(1)
				}
			},
			Rejected: func(typeURL string) { e.rejected <- typeURL },
		},
	})
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(ServerOptions()...)
	r.Register(server)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(func() {
		cancel()
		conn.Close()
		server.Stop()
		<-served
		r.Close()
		checkGoroutines(t)
	})
	return discovery.NewAggregatedDiscoveryServiceClient(conn), ctx, e
}

// checkGoroutines fails the test if a goroutine of the relay is left.
func checkGoroutines(t *testing.T) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "relay.(*Relay).requests") || strings.Contains(g, "relay.(*Relay).serve") {
			t.Errorf("left behind:\n%s", g)
		}
	}
}

// unheardOf is a message with a field that this build's types do not have.
func unheardOf[M proto.Message](m M) M {
	m.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 9999, protowire.BytesType), "of a later version"))
	return m
}

func response(size int) *discovery.DeltaDiscoveryResponse {
	return unheardOf(&discovery.DeltaDiscoveryResponse{
		TypeUrl: "t", Nonce: "1", RemovedResources: []string{"x"},
		Resources: []*discovery.Resource{{Name: "a", Resource: &anypb.Any{TypeUrl: "u", Value: []byte(strings.Repeat("v", size))}}},
	})
}

// TestMessagesPassUnchanged both ways, small and large, with fields nobody here knows, and with the token.
func TestMessagesPassUnchanged(t *testing.T) {
	up := newIstiod(t, "127.0.0.1:0")
	client, ctx, e := envoy(t, up.addr)
	down, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	stream := up.stream(t)
	if md, _ := metadata.FromIncomingContext(stream.Context()); len(md.Get("authorization")) != 1 || md.Get("authorization")[0] != "Bearer secret" {
		t.Errorf("istiod sees %v", md)
	}
	for _, size := range []int{0, 100, 5 << 20} {
		request := unheardOf(&discovery.DeltaDiscoveryRequest{TypeUrl: "t", ResponseNonce: strings.Repeat("n", size)})
		if err := down.Send(request); err != nil {
			t.Fatal(err)
		}
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(request, got) {
			t.Errorf("a request of %d bytes was changed", size)
		}
		if err := stream.Send(response(size)); err != nil {
			t.Fatal(err)
		}
		answer, err := down.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(response(size), answer) {
			t.Errorf("a response of %d bytes was changed", size)
		}
	}
	if e.connected.Load() != 1 || e.lost.Load() != 0 {
		t.Errorf("%d times connected, %d times lost", e.connected.Load(), e.lost.Load())
	}
}

// TestEnvoyIsToldWhenIstiodEnds, so that it opens another stream.
func TestEnvoyIsToldWhenIstiodEnds(t *testing.T) {
	for name, why := range map[string]error{"in order": nil, "with an error": status.Error(codes.ResourceExhausted, "too many")} {
		t.Run(name, func(t *testing.T) {
			up := newIstiod(t, "127.0.0.1:0")
			client, ctx, e := envoy(t, up.addr)
			down, err := client.DeltaAggregatedResources(ctx)
			if err != nil {
				t.Fatal(err)
			}
			up.stream(t)
			up.end <- why
			if _, err := down.Recv(); status.Code(err) != codes.Unavailable || why != nil && !strings.Contains(err.Error(), "too many") {
				t.Errorf("Envoy is told %v", err)
			}
			if e.lost.Load() != 1 {
				t.Errorf("%d times lost", e.lost.Load())
			}
		})
	}
}

// TestEnvoyWaitsForIstiod: a stream that is opened while istiod is away carries what was sent on it when istiod is back.
func TestEnvoyWaitsForIstiod(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	client, ctx, e := envoy(t, addr)
	down, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := down.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: "early"}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); e.lost.Load() < 2; <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("istiod is not tried again")
		}
	}
	up := newIstiod(t, addr)
	if got, err := up.stream(t).Recv(); err != nil || got.GetTypeUrl() != "early" {
		t.Errorf("istiod gets %v, %v", got, err)
	}
}

// TestIstiodIsToldWhenEnvoyEnds, in order or not.
func TestIstiodIsToldWhenEnvoyEnds(t *testing.T) {
	up := newIstiod(t, "127.0.0.1:0")
	client, ctx, _ := envoy(t, up.addr)
	down, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := down.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := up.stream(t).Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("istiod is told %v, want the end", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	if _, err := client.DeltaAggregatedResources(ctx); err != nil {
		t.Fatal(err)
	}
	stream := up.stream(t)
	cancel()
	select {
	case <-stream.Context().Done():
	case <-time.After(patience):
		t.Error("istiod's stream goes on without Envoy")
	}
}

// TestSlowEnvoySlowsIstiod: what Envoy does not read is not kept here.
func TestSlowEnvoySlowsIstiod(t *testing.T) {
	up := newIstiod(t, "127.0.0.1:0")
	client, ctx, e := envoy(t, up.addr)
	down, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	stream := up.stream(t)
	const messages, size = 400, 256 << 10
	var sent atomic.Int32
	done := make(chan error, 1)
	go func() {
		for range messages {
			if err := stream.Send(response(size)); err != nil {
				done <- err
				return
			}
			sent.Add(1)
		}
		done <- nil
	}()
	// Until nothing has moved for a while.
	for last, since := int32(-1), time.Now(); time.Since(since) < time.Second; <-time.After(10 * time.Millisecond) {
		if n := sent.Load(); n != last {
			last, since = n, time.Now()
		}
	}
	if n := sent.Load(); n > messages/4 {
		t.Errorf("istiod sent %d messages of %d KiB to an Envoy that reads none", n, size>>10)
	}
	for range messages {
		if _, err := down.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if e.responses.Load() != messages {
		t.Errorf("%d messages were counted, want %d", e.responses.Load(), messages)
	}
}

func TestRefusalsAreTold(t *testing.T) {
	up := newIstiod(t, "127.0.0.1:0")
	client, ctx, e := envoy(t, up.addr)
	down, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	stream := up.stream(t)
	for _, r := range []*discovery.DeltaDiscoveryRequest{
		{TypeUrl: "good", ResponseNonce: "1"}, {TypeUrl: "bad", ErrorDetail: &rpcstatus.Status{Message: "no"}}, {TypeUrl: "worse", ErrorDetail: &rpcstatus.Status{}},
	} {
		if err := down.Send(r); err != nil {
			t.Fatal(err)
		}
		if got, err := stream.Recv(); err != nil || !proto.Equal(got, r) {
			t.Errorf("istiod gets %v, %v", got, err)
		}
	}
	if first, second := <-e.rejected, <-e.rejected; first != "bad" || second != "worse" {
		t.Errorf("told of %q and %q", first, second)
	}
}

func FuzzRefusal(f *testing.F) {
	for _, m := range []*discovery.DeltaDiscoveryRequest{{}, {TypeUrl: "t", ErrorDetail: &rpcstatus.Status{Message: "no"}}} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		typeURL, reason := refusal(b)
		if reason == "" && typeURL != "" {
			t.Errorf("%q is refused for nothing", typeURL)
		}
	})
}
