package config

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/tests/envoybin"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// pushOrder is make-before-break for what these tests do.
var pushOrder = []string{names.TypeCluster, names.TypeEndpoints, names.TypeListener, names.TypeScopedRoute, names.TypeRoute, names.TypeSecret}

// server is a delta xDS server of what a test puts into it: ADS, and SDS for the proxy's own secrets.
type server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	secretv3.UnimplementedSecretDiscoveryServiceServer

	mu        sync.Mutex
	resources map[string]map[string]*discoveryv3.Resource
	changed   chan struct{} // closed and replaced when resources change
	nacks     []string
}

func newServer() *server {
	return &server{resources: map[string]map[string]*discoveryv3.Resource{}, changed: make(chan struct{})}
}

// set replaces what is served.
func (s *server) set(t testing.TB, resources []Resource) {
	t.Helper()
	next := map[string]map[string]*discoveryv3.Resource{}
	for _, r := range resources {
		a := new(anypb.Any)
		if err := anypb.MarshalFrom(a, r.Message, proto.MarshalOptions{Deterministic: true}); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(a.Value)
		if next[r.Type] == nil {
			next[r.Type] = map[string]*discoveryv3.Resource{}
		}
		next[r.Type][r.Name] = &discoveryv3.Resource{Name: r.Name, Version: hex.EncodeToString(sum[:8]), Resource: a}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resources = next
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *server) refused() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.nacks)
}

type deltaStream interface {
	Send(*discoveryv3.DeltaDiscoveryResponse) error
	Recv() (*discoveryv3.DeltaDiscoveryRequest, error)
	Context() context.Context
}

func (s *server) DeltaAggregatedResources(st discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.stream(st)
}

func (s *server) DeltaSecrets(st secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	return s.stream(st)
}

// subscription is what one stream asked for of one type.
type subscription struct {
	wildcard bool
	names    map[string]bool
	sent     map[string]string // versions
	answered bool
}

func (s *server) stream(st deltaStream) error {
	requests := make(chan *discoveryv3.DeltaDiscoveryRequest)
	go func() {
		defer close(requests)
		for {
			r, err := st.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-st.Context().Done():
				return
			}
		}
	}()
	subs := map[string]*subscription{}
	nonce := 0
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		for _, typ := range pushOrder {
			if resp := s.answer(typ, subs[typ]); resp != nil {
				nonce++
				resp.Nonce = fmt.Sprint(nonce)
				if err := st.Send(resp); err != nil {
					return err
				}
			}
		}
		select {
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			s.note(subs, r)
		case <-changed:
		case <-st.Context().Done():
			return nil
		}
	}
}

func (s *server) note(subs map[string]*subscription, r *discoveryv3.DeltaDiscoveryRequest) {
	if r.ErrorDetail != nil {
		s.mu.Lock()
		s.nacks = append(s.nacks, r.TypeUrl+": "+r.ErrorDetail.Message)
		s.mu.Unlock()
	}
	sub := subs[r.TypeUrl]
	if sub == nil {
		sub = &subscription{wildcard: len(r.ResourceNamesSubscribe) == 0, names: map[string]bool{}, sent: map[string]string{}}
		subs[r.TypeUrl] = sub
	}
	for _, n := range r.ResourceNamesSubscribe {
		sub.names[n] = true
		delete(sub.sent, n)
	}
	for _, n := range r.ResourceNamesUnsubscribe {
		delete(sub.names, n)
		delete(sub.sent, n)
	}
}

func (s *server) answer(typ string, sub *subscription) *discoveryv3.DeltaDiscoveryResponse {
	if sub == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typ}
	for name, r := range s.resources[typ] {
		if (sub.wildcard || sub.names[name]) && sub.sent[name] != r.Version {
			sub.sent[name] = r.Version
			resp.Resources = append(resp.Resources, r)
		}
	}
	for name := range sub.sent {
		if s.resources[typ][name] == nil {
			delete(sub.sent, name)
			resp.RemovedResources = append(resp.RemovedResources, name)
		}
	}
	if sub.answered && len(resp.Resources)+len(resp.RemovedResources) == 0 {
		return nil
	}
	sub.answered = true
	return resp
}

// envoy is a running Envoy that the server configures.
type envoy struct {
	xds   *server
	admin string
	addrs map[string]netip.AddrPort // of its listeners, by name
}

// startEnvoy runs Envoy, with as few threads as possible so that connections meet in the same pools.
func startEnvoy(t *testing.T, node string, resources []Resource) *envoy {
	t.Helper()
	dir := t.TempDir()
	e := &envoy{xds: newServer(), addrs: map[string]netip.AddrPort{}}
	e.xds.set(t, resources)
	sock := filepath.Join(dir, "xds.sock")
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, e.xds)
	secretv3.RegisterSecretDiscoveryServiceServer(g, e.xds)
	ln := must(net.Listen("unix", sock))(t)
	served := make(chan struct{})
	go func() {
		defer close(served)
		g.Serve(ln)
	}()
	t.Cleanup(func() {
		g.Stop()
		<-served
	})

	boot := must(json.Marshal(liveBootstrap(node, sock)))(t)
	adminFile := filepath.Join(dir, "admin")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, envoybin.Path(t), "--config-yaml", string(boot), "--admin-address-path", adminFile,
		"--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning", "--disable-hot-restart", "--file-flush-interval-msec", "10")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if n := e.xds.refused(); len(n) > 0 {
			t.Errorf("Envoy refused: %s", strings.Join(n, "\n"))
		}
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", log.String())
		}
	})
	until(t, "Envoy is ready", func() bool {
		select {
		case <-ended:
			t.Fatalf("Envoy exited: %s", log.String())
		default:
		}
		b := readFile(adminFile)
		e.admin = "http://" + strings.TrimSpace(b)
		return b != "" && strings.HasPrefix(e.get("/ready"), "LIVE") && e.readListeners()
	})
	return e
}

func liveBootstrap(node, sock string) map[string]any {
	ads := map[string]any{"ads": map[string]any{}, "resourceApiVersion": "V3"}
	return map[string]any{
		"node":  map[string]any{"id": node, "cluster": "test"},
		"admin": map[string]any{"address": map[string]any{"socketAddress": map[string]any{"address": "127.0.0.1", "portValue": 0}}},
		"bootstrapExtensions": []any{map[string]any{"name": "envoy.bootstrap.internal_listener", "typedConfig": map[string]any{
			"@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
		}}},
		// Spans go out at once, not in batches.
		"layeredRuntime": map[string]any{"layers": []any{map[string]any{"name": "test", "staticLayer": map[string]any{
			"tracing.opentelemetry.min_flush_spans": 1,
		}}}},
		"dynamicResources": map[string]any{"ldsConfig": ads, "cdsConfig": ads, "adsConfig": map[string]any{
			"apiType": "DELTA_GRPC", "transportApiVersion": "V3",
			"grpcServices": []any{map[string]any{"envoyGrpc": map[string]any{"clusterName": names.XDS}}},
		}},
		"staticResources": map[string]any{"clusters": []any{map[string]any{
			"name": names.XDS, "type": "STATIC", "loadAssignment": map[string]any{"clusterName": names.XDS, "endpoints": []any{map[string]any{
				"lbEndpoints": []any{map[string]any{"endpoint": map[string]any{"address": map[string]any{"pipe": map[string]any{"path": sock}}}}},
			}}},
			"typedExtensionProtocolOptions": map[string]any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": map[string]any{
				"@type":              "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
				"explicitHttpConfig": map[string]any{"http2ProtocolOptions": map[string]any{}},
			}},
		}}},
	}
}

func (e *envoy) get(path string) string {
	resp, err := http.Get(e.admin + path)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return ""
	}
	return string(b)
}

// readListeners notes where Envoy listens, and tells whether it does.
func (e *envoy) readListeners() bool {
	var l struct {
		ListenerStatuses []struct {
			Name         string
			LocalAddress struct {
				SocketAddress struct {
					Address   string
					PortValue uint16 `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal([]byte(e.get("/listeners?format=json")), &l); err != nil {
		return false
	}
	for _, s := range l.ListenerStatuses {
		a := s.LocalAddress.SocketAddress
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			e.addrs[s.Name] = netip.AddrPortFrom(ip, a.PortValue)
		}
	}
	return len(e.addrs) > 0
}
