package sds

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/google/go-cmp/cmp"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ambit-mesh/ambit/waypoint/agent/certs"
)

const patience = 10 * time.Second

// source is a Source whose secrets the test sets.
type source struct {
	mu      sync.Mutex
	current *certs.Secrets
	changed chan struct{}
}

func newSource() *source { return &source{changed: make(chan struct{})} }

func (s *source) Current() (*certs.Secrets, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.changed
}

func (s *source) set(chain, roots string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = &certs.Secrets{ChainPEM: []byte(chain), KeyPEM: []byte("key of " + chain), RootsPEM: []byte(roots)}
	close(s.changed)
	s.changed = make(chan struct{})
}

func connect(t *testing.T, src Source) (secretv3.SecretDiscoveryServiceClient, context.Context) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	New(src, slog.New(slog.DiscardHandler)).Register(server)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(func() {
		cancel()
		conn.Close()
		server.Stop()
		<-served
	})
	return secretv3.NewSecretDiscoveryServiceClient(conn), ctx
}

// told is what an answer says: the name and the content of each secret, and what was removed.
func told(t *testing.T, r *discovery.DeltaDiscoveryResponse) map[string]string {
	t.Helper()
	out := map[string]string{}
	if r.GetTypeUrl() != TypeSecret {
		t.Errorf("type %q", r.GetTypeUrl())
	}
	for _, x := range r.GetResources() {
		var s tlsv3.Secret
		if err := x.GetResource().UnmarshalTo(&s); err != nil {
			t.Fatal(err)
		}
		if s.GetName() != x.GetName() {
			t.Errorf("secret %q in resource %q", s.GetName(), x.GetName())
		}
		out[x.GetName()] = content(&s)
	}
	for _, name := range r.GetRemovedResources() {
		out[name] = "removed"
	}
	return out
}

func content(s *tlsv3.Secret) string {
	text := func(d *corev3.DataSource) string { return string(d.GetInlineBytes()) }
	if c := s.GetTlsCertificate(); c != nil {
		return text(c.GetCertificateChain()) + ", " + text(c.GetPrivateKey())
	}
	return text(s.GetValidationContext().GetTrustedCa())
}

func TestDelta(t *testing.T) {
	src := newSource()
	c, ctx := connect(t, src)
	stream, err := c.DeltaSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *discovery.DeltaDiscoveryRequest) {
		t.Helper()
		r.TypeUrl = TypeSecret
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	next := func(want map[string]string) *discovery.DeltaDiscoveryResponse {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, told(t, r)); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		return r
	}
	send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{Default, RootCA, "kubernetes://a/b"}})
	src.set("one", "root") // until now there was nothing to say
	first := next(map[string]string{Default: "one, key of one", RootCA: "root", "kubernetes://a/b": "removed"})
	send(&discovery.DeltaDiscoveryRequest{ResponseNonce: first.GetNonce()})
	src.set("two", "root")
	second := next(map[string]string{Default: "two, key of two"}) // the roots are the same
	send(&discovery.DeltaDiscoveryRequest{ResponseNonce: second.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "bad"}})
	src.set("two", "root, next")
	next(map[string]string{RootCA: "root, next"})
	// Who asks again gets an answer again; who leaves gets none.
	send(&discovery.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{Default}, ResourceNamesSubscribe: []string{RootCA}})
	next(map[string]string{RootCA: "root, next"})
	src.set("three", "root, next")
	src.set("three", "root, last")
	next(map[string]string{RootCA: "root, last"})
}

// TestDeltaReconnect: Envoy says what it holds, and gets what differs.
func TestDeltaReconnect(t *testing.T) {
	src := newSource()
	src.set("one", "root")
	c, ctx := connect(t, src)
	held := map[string]string{}
	for _, want := range []map[string]string{{Default: "one, key of one", RootCA: "root"}, {Default: "two, key of two"}} {
		stream, err := c.DeltaSecrets(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{Default, RootCA}, InitialResourceVersions: held}); err != nil {
			t.Fatal(err)
		}
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, told(t, r)); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		for _, x := range r.GetResources() {
			held[x.GetName()] = x.GetVersion()
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err == nil {
			t.Error("the stream goes on after its end")
		}
		src.set("two", "root")
	}
}

func TestStateOfTheWorld(t *testing.T) {
	src := newSource()
	c, ctx := connect(t, src)
	stream, err := c.StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(version, nonce string, names ...string) {
		t.Helper()
		if err := stream.Send(&discovery.DiscoveryRequest{TypeUrl: TypeSecret, VersionInfo: version, ResponseNonce: nonce, ResourceNames: names}); err != nil {
			t.Fatal(err)
		}
	}
	next := func(want ...string) *discovery.DiscoveryResponse {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range r.GetResources() {
			var s tlsv3.Secret
			if err := x.UnmarshalTo(&s); err != nil {
				t.Fatal(err)
			}
			got = append(got, content(&s))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		return r
	}
	send("", "", Default)
	src.set("one", "root")
	first := next("one, key of one")
	send(first.GetVersionInfo(), first.GetNonce(), Default) // an acknowledgement gets no answer
	src.set("one", "other root")                            // nor does a change of what was not asked for
	src.set("two", "other root")
	second := next("two, key of two")
	send(second.GetVersionInfo(), second.GetNonce(), RootCA, Default, "unheard of")
	next("other root", "two, key of two")
}

func TestNamesAreBounded(t *testing.T) {
	c, ctx := connect(t, newSource())
	names := strings.Split(strings.Repeat("x,", maxNames+1), ",")
	for i := range names {
		names[i] += string(rune('a'+i%26)) + strings.Repeat("y", i)
	}
	delta, err := c.DeltaSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := delta.Send(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: names}); err != nil {
		t.Fatal(err)
	}
	if _, err := delta.Recv(); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("delta: %v", err)
	}
	whole, err := c.StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := whole.Send(&discovery.DiscoveryRequest{ResourceNames: names}); err != nil {
		t.Fatal(err)
	}
	if _, err := whole.Recv(); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("state of the world: %v", err)
	}
}
