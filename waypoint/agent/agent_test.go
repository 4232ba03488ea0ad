package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	statsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stats/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/internal/identity/ca"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/tests/envoybin"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

const (
	waypointID = "spiffe://cluster.local/ns/shop/sa/waypoint"
	clientID   = "spiffe://cluster.local/ns/shop/sa/client"
	patience   = 30 * time.Second
)

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting until %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// backend answers with its path; /hold waits for release.
type backend struct {
	addr    string
	arrived chan struct{}
	release chan struct{}
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{arrived: make(chan struct{}, 1), release: make(chan struct{})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			b.arrived <- struct{}{}
			<-b.release
		}
		fmt.Fprint(w, "you asked for ", r.URL.Path)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return b
}

// output collects what the agent and Envoy write.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// proxy is an agent with its Envoy, and what it needs.
type proxy struct {
	cfg     Config
	istiod  *testIstiod
	backend *backend
	port    int // of the listener
	log     *output
	stop    context.CancelFunc
	ended   chan struct{}
	err     error
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	dir, err := os.MkdirTemp("", "ambit-agent-") // a socket's name must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &proxy{istiod: newIstiod(t, waypointID), backend: newBackend(t), port: freePort(t), log: &output{}, ended: make(chan struct{})}
	token, labels := filepath.Join(dir, "token"), filepath.Join(dir, "labels")
	write(t, token, testToken)
	write(t, labels, "app=\"waypoint\"\npod-template-hash=\"6c9f\"\n")
	env := map[string]string{
		"XDS_ADDRESS": "https://" + p.istiod.addr, "XDS_ROOT_CA": p.istiod.rootFile, "MESH_ROOT_CA": p.istiod.rootFile, "AUTH_TOKEN": token,
		"GATEWAY_NAME": "waypoint", "POD_NAME": "waypoint-6c9f-x", "POD_NAMESPACE": "shop", "SERVICE_ACCOUNT": "waypoint", "INSTANCE_IP": "127.0.0.1",
		"NODE_NAME": "node-1", "POD_LABELS_FILE": labels, "AMBIT_RUN_DIR": filepath.Join(dir, "run"), "ENVOY": envoybin.Path(t), "CPU_LIMIT": "1",
		"MEMORY_LIMIT": "1073741824", "ADMIN_ADDR": fmt.Sprintf("127.0.0.1:%d", freePort(t)), "STATS_ADDR": fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		"READINESS_ADDR": fmt.Sprintf("127.0.0.1:%d", freePort(t)), "MINIMUM_DRAIN_DURATION": "500ms", "TERMINATION_GRACE_PERIOD_SECONDS": "25",
	}
	p.cfg, err = LoadConfig(KindWaypoint, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start runs the agent until the test ends or stop is called.
func (p *proxy) start(t *testing.T) {
	t.Helper()
	logging, err := telemetry.NewLogging(p.log, "debug", "text")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	go func() {
		defer close(p.ended)
		p.err = Run(ctx, p.cfg, logging)
	}()
	t.Cleanup(func() {
		stop()
		<-p.ended
		if t.Failed() {
			t.Logf("the agent's log:\n%s", p.log)
		}
	})
}

// configure gives Envoy a listener with mutual TLS in front of the backend.
func (p *proxy) configure(t *testing.T, route string) {
	t.Helper()
	cluster := resource{names.TypeCluster, "backend", &clusterv3.Cluster{
		Name: "backend", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, ConnectTimeout: durationpb.New(time.Second),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: "backend", Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(t, p.backend.addr)}}}},
		}}},
	}}
	sds := func(name string) *tlsv3.SdsSecretConfig {
		return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{
			ResourceApiVersion: corev3.ApiVersion_V3,
			ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
				ApiType: corev3.ApiConfigSource_DELTA_GRPC, TransportApiVersion: corev3.ApiVersion_V3, SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: names.XDS}}}},
			}},
		}}
	}
	transport := &tlsv3.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(true),
		CommonTlsContext: &tlsv3.CommonTlsContext{
			AlpnProtocols:                  []string{"h2", "http/1.1"},
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{sds(names.SecretIdentity)},
			ValidationContextType:          &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{ValidationContextSdsSecretConfig: sds(names.SecretRoots)},
		},
	}
	hcm := &hcmv3.HttpConnectionManager{
		StatPrefix:  "test",
		AccessLog:   []*accesslogv3.AccessLog{{Name: "stats", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: packed(t, counted())}}},
		HttpFilters: []*hcmv3.HttpFilter{{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(t, &routerv3.Router{})}}},
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{VirtualHosts: []*routev3.VirtualHost{{
			Name: "all", Domains: []string{"*"}, Routes: []*routev3.Route{
				{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: "/route"}}, Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
					Status: 200, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: route}}}}},
				{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}, Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "backend"}}}},
			},
		}}}},
	}
	p.istiod.set(cluster, resource{names.TypeListener, "inbound", &listenerv3.Listener{
		Name: "inbound", Address: address(t, fmt.Sprintf("127.0.0.1:%d", p.port)),
		FilterChains: []*listenerv3.FilterChain{{
			TransportSocket: &corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed(t, transport)}},
			Filters:         []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(t, hcm)}}},
		}},
	}})
}

// counted are the statistics of requests, with the tags that waypoint/config gives, constant here.
func counted() *statsv3.Config {
	tags := []*statsv3.Config_Tag{
		{Name: names.TagReporter, ValueFormat: names.ReporterWaypoint}, {Name: names.TagCode, ValueFormat: "%RESPONSE_CODE%"},
		{Name: names.TagSource, ValueFormat: "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=client,service.name=client,service.version=v1"},
		{Name: names.TagSourcePrincipal, ValueFormat: "%DOWNSTREAM_PEER_URI_SAN%"},
		{Name: names.TagDestination, ValueFormat: names.Peer{Workload: "web", Namespace: "shop", CanonicalName: "web", CanonicalRevision: "v2"}.Pack()},
		{Name: names.TagHost, ValueFormat: "web.shop.svc.cluster.local"}, {Name: names.TagService, ValueFormat: "web"}, {Name: names.TagServiceNamespace, ValueFormat: "shop"},
		{Name: names.TagFlags, ValueFormat: "%RESPONSE_FLAGS%"}, {Name: names.TagGRPC, ValueFormat: "%GRPC_STATUS_NUMBER%"},
		{Name: "path", ValueFormat: "%REQ(:PATH)%"},
	}
	return &statsv3.Config{
		StatsScope: &typev3.Scope{Prefix: names.StatsScope},
		Counters:   []*statsv3.Config_Counter{{Stat: &statsv3.Config_Stat{Name: names.StatRequests, Tags: tags}, ValueFixed: wrapperspb.UInt64(1)}},
		Histograms: []*statsv3.Config_Histogram{{
			Stat: &statsv3.Config_Stat{Name: names.StatDuration, Tags: tags}, Unit: statsv3.Config_Histogram_Milliseconds, ValueFormat: "%DURATION%",
		}},
	}
}

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func address(t *testing.T, hostPort string) *corev3.Address {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", hostPort)
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.IP.String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port)}}}}
}

// client makes requests with a certificate that by has signed, over h1 or h2. It takes any certificate of the proxy's and remembers the last.
type client struct {
	http *http.Client
	mu   sync.Mutex
	peer *x509.Certificate
}

func (p *proxy) client(t *testing.T, by *authority, h2 bool) *client {
	t.Helper()
	c := &client{}
	transport := &http.Transport{ForceAttemptHTTP2: h2, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, Certificates: []tls.Certificate{by.pair(t, clientID, "")},
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			cert, err := x509.ParseCertificate(raw[0])
			c.mu.Lock()
			defer c.mu.Unlock()
			c.peer = cert
			return err
		},
	}}
	c.http = &http.Client{Transport: transport, Timeout: patience}
	t.Cleanup(transport.CloseIdleConnections)
	return c
}

func (c *client) get(url string) (string, error) {
	resp, err := c.http.Get(url)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d: %s", resp.StatusCode, b)
	}
	return string(b), nil
}

// fresh makes one request on a new connection and returns the proxy's certificate.
func (c *client) fresh(url string) (*x509.Certificate, error) {
	c.http.CloseIdleConnections()
	if _, err := c.get(url); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer, nil
}

func (p *proxy) url(path string) string { return fmt.Sprintf("https://127.0.0.1:%d%s", p.port, path) }

func plain(url string) (int, string) {
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func (p *proxy) ready() (int, string) {
	return plain("http://" + p.cfg.ReadinessAddr + "/healthz/ready")
}

// checkGoroutines fails the test if goroutines of ours or of gRPC's are left at its end.
func checkGoroutines(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		var left []string
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
			buf := make([]byte, 4<<20)
			left = nil
			for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				ours := strings.Contains(g, "/waypoint/agent") || strings.Contains(g, "google.golang.org/grpc")
				if ours && !strings.Contains(g, "testing.tRunner") && !strings.Contains(g, "checkGoroutines") {
					left = append(left, g)
				}
			}
			if len(left) == 0 {
				return
			}
		}
		t.Errorf("goroutines are left:\n%s", strings.Join(left, "\n\n"))
	})
}

// TestLife is the whole life of a proxy: it becomes ready, gets its certificate and later another without a restart,
// goes on without istiod and takes up what istiod says afterwards, and lets a request in flight end.
func TestLife(t *testing.T) {
	checkGoroutines(t)
	p := newProxy(t)
	p.start(t)
	until(t, "readiness says what is missing", func() bool {
		code, text := p.ready()
		return code == http.StatusServiceUnavailable && strings.Contains(text, "configuration: envoy has no ")
	})
	p.configure(t, "one")
	until(t, "the proxy is ready", func() bool { code, _ := p.ready(); return code == http.StatusOK })
	c := p.client(t, p.istiod.mesh, true)
	if got, err := c.get(p.url("/hello")); err != nil || got != "you asked for /hello" {
		t.Fatalf("request: %q, %v", got, err)
	}
	p.checkNode(t)
	p.checkSecrets(t)
	t.Run("rotation", func(t *testing.T) { p.rotate(t) })
	t.Run("istiod restarts", func(t *testing.T) { p.restartIstiod(t, c) })
	t.Run("metrics", func(t *testing.T) { p.checkMetrics(t, c) })
	p.istiod.read(func() {
		if len(p.istiod.refusals) > 0 {
			t.Errorf("Envoy refused %q", p.istiod.refusals)
		}
	})
	p.drain(t, c)
}

func (p *proxy) checkNode(t *testing.T) {
	t.Helper()
	p.istiod.read(func() {
		n := p.istiod.node
		if want := "waypoint~127.0.0.1~waypoint-6c9f-x.shop~shop.svc.cluster.local"; n.GetId() != want || n.GetCluster() != "waypoint.shop" {
			t.Errorf("node %q of cluster %q, want %q of waypoint.shop", n.GetId(), n.GetCluster(), want)
		}
		md := n.GetMetadata().AsMap()
		for k, want := range map[string]string{
			"NAMESPACE": "shop", "NAME": "waypoint-6c9f-x", "GATEWAY_NAME": "waypoint", "SERVICE_ACCOUNT": "waypoint", "CLUSTER_ID": "Kubernetes", "NODE_NAME": "node-1",
		} {
			if md[k] != want {
				t.Errorf("node metadata %s is %v, want %q", k, md[k], want)
			}
		}
		if labels, _ := md["LABELS"].(map[string]any); labels["app"] != "waypoint" {
			t.Errorf("labels %v", md["LABELS"])
		}
	})
}

// checkSecrets: no key in any file, and nobody else may open the socket.
func (p *proxy) checkSecrets(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(p.cfg.Directory, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("PRIVATE KEY")) {
			t.Errorf("%s holds a key", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	info, err := os.Stat(p.cfg.socket())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
}

// rotate: a new root is trusted as soon as it is published, and a renewed certificate is served, without a restart.
func (p *proxy) rotate(t *testing.T) {
	second := newAuthority(t, "second")
	c := p.client(t, p.istiod.mesh, false)
	before, err := c.fresh(p.url("/"))
	if err != nil {
		t.Fatal(err)
	}
	if len(before.URIs) != 1 || before.URIs[0].String() != waypointID {
		t.Errorf("the proxy is %v", before.URIs)
	}
	other := p.client(t, second, false)
	if _, err := other.fresh(p.url("/")); err == nil {
		t.Fatal("a client of an unknown root is accepted")
	}
	p.istiod.publish(t, p.istiod.mesh.pem()+second.pem())
	until(t, "the second root is trusted", func() bool { _, err := other.fresh(p.url("/")); return err == nil })
	if _, err := c.fresh(p.url("/")); err != nil {
		t.Errorf("a client of the first root: %v", err)
	}
	until(t, "a renewed certificate is served", func() bool {
		after, err := c.fresh(p.url("/"))
		return err == nil && after.SerialNumber.Cmp(before.SerialNumber) != 0
	})
}

// restartIstiod: Envoy serves on while istiod is away, and learns afterwards what changed.
func (p *proxy) restartIstiod(t *testing.T, c *client) {
	var streams int
	p.istiod.read(func() { streams = p.istiod.streams })
	p.istiod.stop()
	until(t, "the agent knows that istiod is away", func() bool {
		_, text := plain("http://" + p.cfg.MetricsAddr + "/metrics")
		return strings.Contains(text, telemetry.MetricXDSConnected+" 0\n")
	})
	for range 20 {
		if got, err := c.get(p.url("/away")); err != nil || got != "you asked for /away" {
			t.Fatalf("without istiod: %q, %v", got, err)
		}
	}
	if code, text := p.ready(); code != http.StatusOK {
		t.Errorf("without istiod the proxy is not ready: %s", text)
	}
	p.configure(t, "two")
	p.istiod.start(t)
	until(t, "what changed meanwhile is served", func() bool {
		got, err := c.get(p.url("/route"))
		if err != nil {
			t.Fatalf("while istiod comes back: %v", err)
		}
		return got == "two"
	})
	p.istiod.read(func() {
		if p.istiod.streams != streams+1 {
			t.Errorf("%d streams were opened, want one more than %d", p.istiod.streams, streams)
		}
	})
}

func (p *proxy) checkMetrics(t *testing.T, c *client) {
	if _, err := c.get(p.url("/q")); err != nil {
		t.Fatal(err)
	}
	until(t, "Envoy shows its histograms", func() bool { // it gathers them every five seconds
		_, text := plain("http://" + p.cfg.MetricsAddr + "/metrics")
		return strings.Contains(text, "istio_request_duration_milliseconds_count{"+istioLabels)
	})
	code, text := plain("http://" + p.cfg.MetricsAddr + "/stats/prometheus")
	if code != http.StatusOK {
		t.Fatalf("status %d: %s", code, text)
	}
	for _, want := range []string{
		`ambit_certificate_requests_total{result="ok"} `, telemetry.MetricXDSConnected + " 1\n", "envoy_server_live{} 1\n",
		"envoy_cluster_manager_cds_update_success{} ", fmt.Sprintf(`envoy_listener_downstream_cx_active{listener_address="127.0.0.1_%d"} `, p.port),
		`ambit_xds_relayed_bytes_total{direction="from_istiod"} `, `envoy_sds_update_success{secret="ROOTCA"} `,
		`istio_requests_total{` + istioLabels + `} 1` + "\n",
		`istio_request_duration_milliseconds_bucket{` + istioLabels + `,le="+Inf"} 1` + "\n",
	} {
		if strings.Contains(text, want) {
			continue
		}
		t.Errorf("no line %s", want)
		name, _, _ := strings.Cut(want, "{")
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, name) && !strings.Contains(line, "le=") {
				t.Log(line)
			}
		}
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	if _, err := parser.TextToMetricFamilies(strings.NewReader(text)); err != nil {
		t.Errorf("Prometheus would refuse the page: %v", err)
	}
}

// istioLabels are those of one request for /q.
const istioLabels = `connection_security_policy="mutual_tls",destination_app="unknown",destination_canonical_revision="v2",` +
	`destination_canonical_service="web",destination_cluster="unknown",destination_service="web.shop.svc.cluster.local",` +
	`destination_service_name="web",destination_service_namespace="shop",destination_version="unknown",destination_workload="web",` +
	`destination_workload_namespace="shop",path="/q",reporter="waypoint",request_protocol="http",response_code="200",response_flags="-",` +
	`source_app="client",source_canonical_revision="v1",source_canonical_service="client",source_cluster="Kubernetes",` +
	`source_principal="` + clientID + `",source_version="v1",source_workload="client",source_workload_namespace="shop"`

// drain: a signal makes the pod unready at once; new connections are taken for a while; a request in flight ends well;
// then all ends.
func (p *proxy) drain(t *testing.T, c *client) {
	t.Helper()
	idle := p.client(t, p.istiod.mesh, true) // whose connection stays open and holds nothing up
	if _, err := idle.get(p.url("/idle")); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		got, err := c.get(p.url("/hold"))
		if err == nil && got != "you asked for /hold" {
			err = errors.New(got)
		}
		answer <- err
	}()
	<-p.backend.arrived
	p.stop()
	until(t, "the pod is unready", func() bool {
		code, text := p.ready()
		return code == http.StatusServiceUnavailable && strings.Contains(text, "shutting down")
	})
	if _, err := p.client(t, p.istiod.mesh, false).fresh(p.url("/late")); err != nil {
		t.Errorf("a late client: %v", err)
	}
	select {
	case <-p.ended:
		t.Fatal("the proxy ended under a request in flight")
	case <-time.After(2 * p.cfg.DrainMinimum):
	}
	close(p.backend.release)
	if err := <-answer; err != nil {
		t.Errorf("the request in flight: %v", err)
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatal("the proxy does not end after its last request")
	}
	if p.err != nil {
		t.Errorf("Run: %v", p.err)
	}
	if !strings.Contains(p.log.String(), "msg=drained") {
		t.Error("the log does not say that all requests ended")
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", envoyPID(t, p))); err == nil {
		t.Error("Envoy outlived the agent")
	}
}

// TestEnvoyDies: the agent ends with its Envoy and says why; with a development CA and without istiod it says what it lacks.
func TestEnvoyDies(t *testing.T) {
	checkGoroutines(t)
	p := newProxy(t)
	p.istiod.stop()
	p.cfg.CADirectory = filepath.Join(t.TempDir(), "ca")
	if err := ca.CreateDirectory(p.cfg.CADirectory, ""); err != nil {
		t.Fatal(err)
	}
	p.start(t)
	until(t, "readiness names istiod", func() bool {
		_, text := p.ready()
		return strings.Contains(text, "istiod: open stream: ") && !strings.Contains(text, "certificate")
	})
	if err := syscall.Kill(envoyPID(t, p), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatal("the agent outlives its Envoy")
	}
	if p.err == nil || !strings.Contains(p.err.Error(), "envoy ended") {
		t.Errorf("Run: %v", p.err)
	}
}

// TestStartFails: what was started is taken down again.
func TestStartFails(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"no Envoy":        func(c *Config) { c.Envoy = "/nonexistent/envoy" },
		"a taken port":    func(c *Config) { c.MetricsAddr = c.ReadinessAddr },
		"no CA":           func(c *Config) { c.CADirectory = "/nonexistent" },
		"no place to run": func(c *Config) { c.Directory = "/proc/nonexistent" },
		"admin for all":   func(c *Config) { c.AdminAddr = "0.0.0.0:1" },
	} {
		t.Run(name, func(t *testing.T) {
			checkGoroutines(t)
			p := newProxy(t)
			spoil(&p.cfg)
			p.start(t)
			select {
			case <-p.ended:
			case <-time.After(patience):
				t.Fatal("Run goes on")
			}
			if p.err == nil {
				t.Error("Run says nothing")
			}
		})
	}
}

// TestDrainIsBounded: a request that does not end does not keep the pod.
func TestDrainIsBounded(t *testing.T) {
	checkGoroutines(t)
	p := newProxy(t)
	p.cfg.Grace = graceMargin + 1500*time.Millisecond
	p.start(t)
	p.configure(t, "one")
	until(t, "the proxy is ready", func() bool { code, _ := p.ready(); return code == http.StatusOK })
	c := p.client(t, p.istiod.mesh, true)
	answer := make(chan error, 1)
	go func() {
		_, err := c.get(p.url("/hold"))
		answer <- err
	}()
	<-p.backend.arrived
	p.stop()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatal("the proxy waits for ever")
	}
	close(p.backend.release)
	if err := <-answer; err == nil {
		t.Error("a request that was cut is answered")
	}
	if p.err != nil || !strings.Contains(p.log.String(), "ending what outlived the drain") {
		t.Errorf("Run: %v", p.err)
	}
}
