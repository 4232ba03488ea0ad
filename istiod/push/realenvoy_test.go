package push_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	streamlog "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/tests/envoybin"
)

// realEnvoy is the release binary, configured by a push.Server on loopback.
type realEnvoy struct {
	t     *testing.T
	admin string
	xds   net.Listener
	addr  string
	stop  func()
	state *envoys // without connection: only dir, cache and server
}

func startRealEnvoy(t *testing.T) *realEnvoy {
	t.Helper()
	r := &realEnvoy{t: t}
	r.serve()
	t.Cleanup(func() { r.stop() })
	dir := t.TempDir()
	adminFile := filepath.Join(dir, "admin")
	host, port, err := net.SplitHostPort(r.addr)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`
node: {id: "waypoint~127.0.0.1~wp-1.shop~shop.svc.cluster.local", cluster: wp.shop, metadata: {NAMESPACE: shop, GATEWAY_NAME: wp}}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{envoy_grpc: {cluster_name: xds, retry_policy: {retry_back_off: {base_interval: 0.05s, max_interval: 0.2s}}}}]
  cds_config: {ads: {}, resource_api_version: V3}
  lds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
`, host, port)
	var log bytes.Buffer
	cmd := exec.Command(envoybin.Path(t), "--config-yaml", config, "--admin-address-path", adminFile, "--use-dynamic-base-id",
		"--concurrency", "2", "--log-level", "warning", "--disable-hot-restart", "--file-flush-interval-msec", "50")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", log.String())
		}
	})
	r.until("the admin page is there", func() bool {
		b, err := os.ReadFile(adminFile)
		r.admin = "http://" + strings.TrimSpace(string(b))
		return err == nil && len(b) > 0
	})
	return r
}

// serve starts a control plane that knows the gateway but is not synced, on the address of the one before.
func (r *realEnvoy) serve() {
	r.t.Helper()
	e := &envoys{t: r.t, dir: push.NewDirectory()}
	e.cache = e.dir.Cache(shopGateway)
	e.dir.Register(shopGateway, "wp")
	cfg := push.WithGrace(push.Config{Log: slog.New(slog.DiscardHandler), Select: e.dir.Select}, 500*time.Millisecond)
	cfg.OnReject = func(rej push.Rejection) { r.t.Errorf("Envoy rejected %v: %s", rej.Names, rej.Reason) }
	var err error
	if e.server, err = push.NewServer(cfg, push.NewCache(push.Types()...)); err != nil {
		r.t.Fatal(err)
	}
	if r.addr == "" {
		r.addr = "127.0.0.1:0"
	}
	r.until("the address of the control plane is free", func() bool {
		r.xds, err = net.Listen("tcp", r.addr)
		return err == nil
	})
	r.addr = r.xds.Addr().String()
	g := grpc.NewServer()
	e.server.Register(g)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- e.dir.Run(ctx) }()
	go func() { done <- g.Serve(r.xds) }()
	r.state = e
	r.stop = sync.OnceFunc(func() {
		e.server.Close()
		g.Stop()
		cancel()
		<-done
		<-done
	})
}

func (r *realEnvoy) until(what string, f func() bool) {
	r.t.Helper()
	deadline, tick := time.NewTimer(30*time.Second), time.NewTicker(5*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline.C:
			r.t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// listeners maps names to addresses.
func (r *realEnvoy) listeners() map[string]string {
	resp, err := http.Get(r.admin + "/listeners?format=json")
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var l struct {
		Statuses []struct {
			Name    string
			Address struct {
				Socket struct {
					Address string
					Port    int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&l); err != nil {
		return nil
	}
	out := map[string]string{}
	for _, s := range l.Statuses {
		out[s.Name] = fmt.Sprintf("%s:%d", s.Address.Socket.Address, s.Address.Socket.Port)
	}
	return out
}

// sent counts the resources that the control plane has sent, by type.
func (r *realEnvoy) sent() map[string]uint64 {
	out := map[string]uint64{}
	for _, p := range r.state.server.Proxies() {
		for _, t := range p.Types {
			out[t.Type] += t.Resources
		}
	}
	return out
}

func mustAny(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// httpListener routes by the table "t", or by scopes keyed by the header x-scope.
func httpListener(t testing.TB, name string, scoped bool) *push.Resource {
	m := &hcm.HttpConnectionManager{
		StatPrefix:     name,
		HttpFilters:    []*hcm.HttpFilter{{Name: "router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: mustAny(t, &router.Router{})}}},
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: "t"}},
		AccessLog: []*accesslog.AccessLog{{Name: "stderr", ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: mustAny(t, &streamlog.StderrAccessLog{})},
			Filter: &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_StatusCodeFilter{StatusCodeFilter: &accesslog.StatusCodeFilter{
				Comparison: &accesslog.ComparisonFilter{Op: accesslog.ComparisonFilter_GE, Value: &core.RuntimeUInt32{DefaultValue: 400, RuntimeKey: "x"}}}}}}},
	}
	if scoped {
		m.RouteSpecifier = &hcm.HttpConnectionManager_ScopedRoutes{ScopedRoutes: &hcm.ScopedRoutes{
			Name: "scopes", RdsConfigSource: ads(),
			ScopeKeyBuilder: &hcm.ScopedRoutes_ScopeKeyBuilder{Fragments: []*hcm.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder{{
				Type: &hcm.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_{HeaderValueExtractor: &hcm.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor{
					Name: "x-scope", ExtractType: &hcm.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_Index{Index: 0}}}}}},
			ConfigSpecifier: &hcm.ScopedRoutes_ScopedRds{ScopedRds: &hcm.ScopedRds{ScopedRdsConfigSource: ads()}},
		}}
	}
	return envoyResource(t, push.TypeListener, name, &listener.Listener{
		Name: name,
		Address: &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &core.SocketAddress_PortValue{PortValue: 0}}}},
		FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{{Name: "hcm", ConfigType: &listener.Filter_TypedConfig{TypedConfig: mustAny(t, m)}}}}},
	})
}

// app answers with its name.
func app(t *testing.T, name string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func get(addr, scope string) (int, string) {
	req, err := http.NewRequest(http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		return 0, err.Error()
	}
	req.Header.Set("X-Scope", scope)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// load sends requests until stop is called, and returns how many there were and what went wrong.
func load(addr string) (stop func() (int64, []string)) {
	ctx, cancel := context.WithCancel(context.Background())
	var total atomic.Int64
	var mu sync.Mutex
	var wrong []string
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				total.Add(1)
				if code, body := get(addr, "s"); code != http.StatusOK {
					mu.Lock()
					wrong = append(wrong, fmt.Sprintf("%d %s", code, body))
					mu.Unlock()
				}
			}
		})
	}
	return func() (int64, []string) {
		cancel()
		wg.Wait()
		return total.Load(), wrong
	}
}

// TestRealEnvoyNeverFailsARequest changes everything under load: clusters are replaced by new versions and by other
// clusters, listeners come and go, and the control plane restarts half filled.
func TestRealEnvoyNeverFailsARequest(t *testing.T) {
	r := startRealEnvoy(t)
	apps := []string{app(t, "0"), app(t, "1")}
	state := map[string]*push.Resource{}
	apply := func(removed []push.Change, rs ...*push.Resource) {
		for _, x := range rs {
			state[x.TypeURL()+x.Name] = x
		}
		for _, c := range removed {
			for _, n := range c.Removed {
				delete(state, c.Type+n)
			}
		}
		r.state.cache.Apply(append(upsert(rs...), removed...))
	}
	apply(nil, edsCluster(t, "c", 0), endpoints(t, "c", apps[0]), httpListener(t, "plain", false), routeTo(t, "t", "c"))
	r.state.cache.Synced()
	r.until("a listener is there", func() bool { return r.listeners()["plain"] != "" })
	addr := r.listeners()["plain"]
	r.until("requests are answered", func() bool { code, _ := get(addr, ""); return code == http.StatusOK })

	stop := load(addr)
	start := time.Now()
	for i := range 10 { // a new version of the cluster
		apply(nil, edsCluster(t, "c", i+1))
		r.acked()
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("10 changes of a cluster took %s: Envoy waited for its endpoints", took)
	}
	last := "c"
	for i := range 20 { // another cluster, and the former one goes
		name := fmt.Sprintf("n%d", i)
		apply([]push.Change{removal(push.TypeCluster, last), removal(push.TypeEndpoints, last)},
			edsCluster(t, name, 0), endpoints(t, name, apps[(i+1)%2]), routeTo(t, "t", name))
		last = name
		r.until("requests go to the new cluster", func() bool { _, body := get(addr, ""); return body == fmt.Sprint((i+1)%2) })
	}
	apply(nil, httpListener(t, "scoped", true), scopeOf(t, "s", "ts"), routeTo(t, "ts", last))
	r.until("scopes route", func() bool {
		scoped := r.listeners()["scoped"]
		code, _ := get(scoped, "s")
		return scoped != "" && code == http.StatusOK
	})
	scoped := r.listeners()["scoped"]
	if code, _ := get(scoped, "other"); code != http.StatusNotFound {
		t.Errorf("a request without scope was answered with %d", code)
	}

	r.restart(state)
	for typ, n := range r.sent() {
		if n != 0 {
			t.Errorf("%d resources of %s were sent again after the restart", n, typ)
		}
	}
	apply([]push.Change{removal(push.TypeListener, "scoped"), removal(push.TypeScope, "s"), removal(push.TypeRoute, "ts")})
	r.until("the listener has gone", func() bool { _, ok := r.listeners()["scoped"]; return !ok })
	apply(nil, endpoints(t, last, apps[0], apps[1]), edsCluster(t, last, 9))
	r.acked()
	total, wrong := stop()
	if len(wrong) > 0 {
		t.Errorf("%d of %d requests failed, the first: %s", len(wrong), total, wrong[0])
	}
	if total < 200 {
		t.Errorf("only %d requests: that is no load", total)
	}
}

// acked waits until Envoy has accepted everything that there is.
func (r *realEnvoy) acked() {
	r.t.Helper()
	r.until("everything is acknowledged", func() bool {
		if push.Behind(r.state.cache) > 0 {
			return false
		}
		proxies := r.state.server.Proxies()
		if len(proxies) == 0 || len(proxies[0].Types) < 4 {
			return false
		}
		for _, t := range proxies[0].Types {
			if t.Behind > 0 || t.InFlight > 0 {
				return false
			}
		}
		return true
	})
}

// restart replaces the control plane by one that has only the listeners at first, and everything when it is synced.
func (r *realEnvoy) restart(state map[string]*push.Resource) {
	r.t.Helper()
	r.stop()
	r.serve()
	var half, rest []*push.Resource
	for _, x := range state {
		if x.TypeURL() == push.TypeListener {
			half = append(half, x)
		} else {
			rest = append(rest, x)
		}
	}
	r.state.cache.Apply(upsert(half...))
	r.until("Envoy is connected again", func() bool { return len(r.state.server.Proxies()) == 1 })
	for range 20 { // requests while nothing is served
		r.state.cache.Apply(upsert(half...))
		get(r.listeners()["plain"], "")
	}
	r.state.cache.Apply(upsert(rest...))
	r.state.cache.Synced()
	r.acked()
}
