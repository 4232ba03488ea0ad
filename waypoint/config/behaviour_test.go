package config

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	netstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

const (
	waypointID = "spiffe://cluster.local/ns/shop/sa/waypoint"
	webID      = "spiffe://cluster.local/ns/shop/sa/web"
	aliceID    = "spiffe://cluster.local/ns/shop/sa/alice"
	bobID      = "spiffe://cluster.local/ns/shop/sa/bob"

	webVIP    = "10.96.0.10:80"
	bannerVIP = "10.96.0.20:25"
	autoVIP   = "10.96.0.30:9000"
	bannerSvc = "outbound|25||mail.shop.svc.cluster.local"
	banner    = "220 mail.shop ready\r\n"
)

func readFile(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

// world is a waypoint with a service that speaks HTTP, one where the server speaks first, and one that nobody knows of;
// all in one pod.
type world struct {
	ca    *authority
	pod   *node
	envoy *envoy
	input *testCase
	log   string
	web   *webApp
	// change edits what is served, after it was written.
	change func([]Resource)
}

// call is what the application saw of one request.
type call struct {
	path, xfcc string
	header     http.Header
	via        tunnel
}

type webApp struct {
	pod *node
	mu  sync.Mutex
	got []call
}

func (a *webApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.got = append(a.got, call{r.URL.Path, r.Header.Get("X-Forwarded-Client-Cert"), r.Header.Clone(), a.pod.tunnelOf(r.RemoteAddr)})
	a.mu.Unlock()
	if r.URL.Path == "/teapot" {
		w.WriteHeader(http.StatusTeapot)
	}
	io.WriteString(w, "hello")
}

func (a *webApp) calls() []call {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.got)
}

// newWorld starts everything; edit may change the input before Envoy is told.
func newWorld(t *testing.T, edit func(*world)) *world {
	t.Helper()
	w := &world{ca: newAuthority(t), log: filepath.Join(t.TempDir(), "access.log")}
	w.pod = startNode(t, w.ca, webID)
	w.web = &webApp{pod: w.pod}
	srv := httptest.NewServer(w.web)
	t.Cleanup(srv.Close)
	webAt := w.pod.app(8080, srv.Listener.Addr().String())
	mailAt := w.pod.app(2525, startBanner(t))
	endpoint := func(cluster string, at netip.AddrPort) *model.Endpoints {
		return &model.Endpoints{Cluster: cluster, Endpoints: []model.ProxyEndpoint{pod(at.String())}}
	}
	auto := model.Scope{Name: "shop/any:9000", Kind: model.ScopeAuto, Authorities: []string{autoVIP}, TCP: &model.TCPForward{
		Name: "any", Clusters: []model.WeightedCluster{{Cluster: bannerSvc, Weight: 1}},
	}}
	mail := model.Scope{Name: "shop/mail:25", Kind: model.ScopeTCP, Authorities: []string{bannerVIP}, TCP: &model.TCPForward{
		Name: "mail", Clusters: []model.WeightedCluster{{Cluster: bannerSvc, Weight: 1}},
	}}
	w.input = &testCase{
		proxy: waypoint(scopes(httpScope(), mail, auto), telemetry(model.HTTPFilters{Logs: []model.AccessLog{
			{LogFile: model.LogFile{Path: w.log}},
		}})),
		tables:    []*model.RouteTable{webTable(httpScope().Name), webTable(auto.Name)},
		clusters:  []*model.Cluster{web(), {Name: bannerSvc, Service: "mail", Namespace: "shop", Host: "mail.shop.svc.cluster.local"}},
		endpoints: []*model.Endpoints{endpoint(webCluster, webAt), endpoint(bannerSvc, mailAt)},
	}
	if edit != nil {
		edit(w)
	}
	w.envoy = startEnvoy(t, "waypoint~127.0.0.1~w.shop~shop.svc.cluster.local", w.resources(t))
	return w
}

// resources are what the real control plane and the agent would send, except that sockets listen on loopback, wherever
// there is room.
func (w *world) resources(t *testing.T) []Resource {
	t.Helper()
	out, _ := build(t, w.input)
	for _, r := range out {
		if l, ok := r.Message.(*listenerv3.Listener); ok && l.GetInternalListener() == nil {
			l.Address = hostAddress("127.0.0.1", 0)
		}
	}
	if w.change != nil {
		w.change(out)
	}
	cert := w.ca.issue(t, spiffeID(w.input.proxy))
	return append(out,
		Resource{Type: names.TypeSecret, Name: names.SecretIdentity, Message: &tlsv3.Secret{Name: names.SecretIdentity, Type: &tlsv3.Secret_TlsCertificate{
			TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(certPEM(cert.Certificate[0])), PrivateKey: inline(keyPEM(t, cert))},
		}}},
		Resource{Type: names.TypeSecret, Name: names.SecretRoots, Message: &tlsv3.Secret{Name: names.SecretRoots, Type: &tlsv3.Secret_ValidationContext{
			ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(certPEM(w.ca.cert.Raw))},
		}}},
	)
}

func (w *world) client(t *testing.T, id string) *client {
	return startClient(t, w.ca, id, waypointID, w.envoy.addrs[names.ConnectTerminate])
}

// startBanner serves a protocol in which the server speaks first; then it echoes.
func startBanner(t *testing.T) string {
	t.Helper()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				io.WriteString(c, banner)
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// request sends one request as raw text, so that anything can be in it, and reads the answer.
func request(t *testing.T, c net.Conn, path string, headers ...string) (status int, body string) {
	t.Helper()
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: web\r\n%s\r\n", path, strings.Join(append(headers, ""), "\r\n"))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("read answer: %v", err)
	}
	defer resp.Body.Close()
	b := must(io.ReadAll(resp.Body))(t)
	return resp.StatusCode, string(b)
}

func TestWaypointServesHTTPUnderTheCallersIdentity(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(t, aliceID).dial(t, webVIP)
	if status, body := request(t, c, "/"); status != 200 || body != "hello" {
		t.Errorf("answer %d %q, want 200 hello", status, body)
	}
	if status, _ := request(t, c, "/teapot"); status != http.StatusTeapot {
		t.Errorf("status %d, want the application's own", status)
	}
	want := "By=" + waypointID + ";URI=" + aliceID
	for _, got := range w.web.calls() {
		if got.xfcc != want || got.via.xfcc != want || got.via.peer != waypointID {
			t.Errorf("request with XFCC %q through a tunnel with %q of %s, want %q, and the waypoint as peer", got.xfcc, got.via.xfcc, got.via.peer, want)
		}
		if got.via.authority != w.pod.app(8080, w.pod.apps[8080]).String() {
			t.Errorf("the tunnel asks for %q, want the pod's address", got.via.authority)
		}
	}
}

func TestHTTP2IsKeptToTheApplication(t *testing.T) {
	w := newWorld(t, nil)
	h2c := new(http.Protocols)
	h2c.SetUnencryptedHTTP2(true)
	versions := make(chan string, 1)
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { versions <- r.Proto }))
	app.Config.Protocols = h2c
	app.Start()
	t.Cleanup(app.Close)
	w.pod.app(8080, app.Listener.Addr().String())
	alice := w.client(t, aliceID)
	transport := &http.Transport{Protocols: h2c, DialContext: func(context.Context, string, string) (net.Conn, error) { return alice.try(t, webVIP) }}
	t.Cleanup(transport.CloseIdleConnections)
	resp := must((&http.Client{Transport: transport, Timeout: deadline}).Get("http://web/"))(t)
	resp.Body.Close()
	if v := <-versions; resp.StatusCode != 200 || v != "HTTP/2.0" {
		t.Errorf("status %d, the application got %s, want 200 and HTTP/2.0", resp.StatusCode, v)
	}
}

func TestHeadersThatAPodForgesDoNotGetIn(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(t, aliceID).dial(t, webVIP)
	status, _ := request(t, c, "/",
		"X-Forwarded-Client-Cert: By=spiffe://x;URI="+bobID, "X-FORWARDED-CLIENT-CERT: again",
		"x-envoy-upstream-rq-timeout-ms: 1", "x-envoy-decorator-operation: forged", "X-Envoy-Original-Path: /forged", "x-envoy-peer-metadata: forged",
		"x-ambit-authority: 10.96.0.99:80", "x-ambit-anything: forged", "baggage: k8s.deployment.name=forged", "x-own: kept")
	if status != 200 {
		t.Fatalf("status %d: a forged header changed the route", status)
	}
	got := w.web.calls()[0].header
	if want := []string{"By=" + waypointID + ";URI=" + aliceID}; !slices.Equal(got.Values("X-Forwarded-Client-Cert"), want) {
		t.Errorf("XFCC %q, want %q", got.Values("X-Forwarded-Client-Cert"), want)
	}
	if got.Get("X-Own") != "kept" {
		t.Error("the application's own header is gone")
	}
	for name, values := range got {
		lower := strings.ToLower(name)
		if strings.Contains(strings.Join(values, " "), "forged") || strings.HasPrefix(lower, names.HeaderPrefix) || lower == names.HeaderBaggage {
			t.Errorf("the application got %s: %q", name, values)
		}
	}
}

func TestUnknownDestinationIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(t, aliceID).dial(t, "10.96.0.99:80")
	if status, _ := request(t, c, "/"); status != http.StatusNotFound {
		t.Errorf("status %d for a service that the waypoint does not serve, want 404", status)
	}
	if n := len(w.pod.seen()); n != 0 {
		t.Errorf("the pod got %d tunnels", n)
	}
}

func TestWrongUpstreamIdentityIsRefused(t *testing.T) {
	w := newWorld(t, func(w *world) {
		for _, e := range w.input.endpoints {
			e.Endpoints[0].Identity = "spiffe://cluster.local/ns/shop/sa/other" // of the same trust domain
		}
	})
	c := w.client(t, aliceID).dial(t, webVIP)
	if status, _ := request(t, c, "/"); status != http.StatusServiceUnavailable {
		t.Errorf("status %d, want 503", status)
	}
	if tcp, err := w.client(t, aliceID).try(t, bannerVIP); err == nil {
		if b, err := io.ReadAll(tcp); len(b) > 0 {
			t.Errorf("read %q (%v) from a server with the wrong identity", b, err)
		}
	}
	if n := len(w.pod.seen()); n != 0 {
		t.Errorf("the pod got %d tunnels that were meant for another", n)
	}
}

func TestServerFirstProtocolDoesNotWait(t *testing.T) {
	w := newWorld(t, nil)
	begin := time.Now()
	c := w.client(t, aliceID).dial(t, bannerVIP)
	if err := echoAfterBanner(c); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > detectTimeout/2 {
		t.Errorf("took %v: something waited for the client to speak", took)
	}
	want := []tunnel{{netip.AddrPortFrom(w.pod.ip, 2525).String(), "By=" + waypointID + ";URI=" + aliceID, waypointID}}
	if diff := cmp.Diff(want, w.pod.seen(), cmp.AllowUnexported(tunnel{})); diff != "" {
		t.Errorf("tunnels (-want +got):\n%s", diff)
	}
}

func echoAfterBanner(c net.Conn) error {
	got := make([]byte, len(banner))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != banner {
		return fmt.Errorf("read %q, %v, want the banner", got, err)
	}
	if _, err := io.WriteString(c, "echo"); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, got[:4]); err != nil || string(got[:4]) != "echo" {
		return fmt.Errorf("read %q, %v, want the echo", got[:4], err)
	}
	return nil
}

func TestUnknownProtocolIsDetected(t *testing.T) {
	w := newWorld(t, nil)
	alice := w.client(t, aliceID)
	if status, _ := request(t, alice.dial(t, autoVIP), "/"); status != 200 {
		t.Errorf("HTTP on a port of unknown protocol: status %d, want 200", status)
	}
	c := alice.dial(t, autoVIP)
	io.WriteString(c, "\x00not http\n")
	got := make([]byte, len(banner))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != banner {
		t.Errorf("something else than HTTP: read %q, %v, want the TCP server", got, err)
	}
	if err := echoAfterBanner(alice.dial(t, autoVIP)); err != nil {
		t.Errorf("a client that waits for the server: %v", err)
	}
}

// TestTwoIdentitiesNeverShareAnUpstreamTunnel: a tunnel says for whom it was opened, so no request of another may travel
// in it. The second half takes the guard out of what is served and must see the leak, or the first half shows nothing.
func TestTwoIdentitiesNeverShareAnUpstreamTunnel(t *testing.T) {
	leaks := func(t *testing.T, change func([]Resource)) (leaks []string, tunnels int) {
		w := newWorld(t, func(w *world) { w.change = change })
		alice, bob := w.client(t, aliceID), w.client(t, bobID)
		for range 5 {
			for _, c := range []*client{alice, bob} {
				// One after the other, so that the connection that one leaves idle is there for the other.
				if status, _ := request(t, c.dial(t, webVIP), "/"); status != 200 {
					t.Fatalf("status %d", status)
				}
			}
		}
		for _, got := range w.web.calls() {
			if got.xfcc != got.via.xfcc {
				leaks = append(leaks, fmt.Sprintf("a request of %q went through a tunnel of %q", got.xfcc, got.via.xfcc))
			}
		}
		return leaks, len(w.pod.seen())
	}
	t.Run("with the guard", func(t *testing.T) {
		got, tunnels := leaks(t, nil)
		if len(got) > 0 {
			t.Error(strings.Join(got, "\n"))
		}
		if tunnels != 2 {
			t.Errorf("%d tunnels for two identities, want one each, reused", tunnels)
		}
	})
	t.Run("without it there is a leak", func(t *testing.T) {
		if got, _ := leaks(t, dropGuard(t)); len(got) == 0 {
			t.Error("no leak: the test does not see what it is there for")
		}
	})
}

// dropGuard makes the shared state one that Envoy does not put into the keys of its pools.
func dropGuard(t *testing.T) func([]Resource) {
	return func(resources []Resource) {
		dropped := 0
		for _, r := range resources {
			l, ok := r.Message.(*listenerv3.Listener)
			if !ok || l.GetInternalListener() == nil {
				continue
			}
			for _, chain := range l.FilterChains {
				for _, f := range chain.Filters {
					state := &netstatev3.Config{}
					if f.GetTypedConfig().UnmarshalTo(state) != nil {
						continue
					}
					for _, v := range state.OnNewConnection {
						if v.FactoryKey == names.HashableString {
							v.FactoryKey = "envoy.string"
							dropped++
						}
					}
					f.GetTypedConfig().Value = must(proto.Marshal(state))(t)
				}
			}
		}
		if dropped == 0 {
			t.Error("there is no guard")
		}
	}
}

// TestAServiceMoreLeavesConnectionsAlone: LDS changes with the TCP services, and must not cost a connection.
func TestAServiceMoreLeavesConnectionsAlone(t *testing.T) {
	w := newWorld(t, nil)
	alice := w.client(t, aliceID)
	old := alice.dial(t, bannerVIP)
	if err := echoAfterBanner(old); err != nil {
		t.Fatal(err)
	}
	const newVIP = "10.96.0.40:26"
	w.input.proxy.Scopes = append(w.input.proxy.Scopes, model.Scope{
		Name: "shop/new:26", Kind: model.ScopeTCP, Authorities: []string{newVIP},
		TCP: &model.TCPForward{Name: "new", Clusters: []model.WeightedCluster{{Cluster: bannerSvc, Weight: 1}}},
	})
	w.envoy.xds.set(t, w.resources(t))
	until(t, "the new service answers", func() bool {
		c, err := alice.try(t, newVIP)
		if err != nil {
			return false
		}
		defer c.Close()
		b := make([]byte, len(banner))
		// Until the route is there, this is a connection to the HTTP listener, where the client has to speak.
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, err = io.ReadFull(c, b)
		return err == nil
	})
	if _, err := io.WriteString(old, "still"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(old, b); err != nil || string(b) != "still" {
		t.Errorf("the old connection read %q, %v", b, err)
	}
}

func TestRefusedSourceGetsNothingFromAServerThatSpeaksFirst(t *testing.T) {
	w := newWorld(t, func(w *world) {
		for _, i := range []int{1, 2} { // the TCP port and the one of unknown protocol
			w.input.proxy.Scopes[i].TCP.Authz = []*model.Authorization{{
				Meta: model.Meta{Key: model.Key{Namespace: "shop", Name: "alice-only"}}, Action: model.AuthzAllow,
				Rules: []model.AuthzRule{{From: []model.AuthzSource{{Principals: model.Patterns{In: []string{"cluster.local/ns/shop/sa/alice"}}}}}},
			}}
		}
	})
	alice, bob := w.client(t, aliceID), w.client(t, bobID)
	if err := echoAfterBanner(alice.dial(t, bannerVIP)); err != nil {
		t.Errorf("allowed source: %v", err)
	}
	var refused *hbone.StatusError
	if _, err := bob.try(t, bannerVIP); !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
		t.Errorf("refused source: %v, want status 403 for the tunnel", err)
	}
	for _, c := range []struct {
		who  *client
		want string
	}{{alice, banner}, {bob, ""}} {
		conn := c.who.dial(t, autoVIP)
		io.WriteString(conn, "\x00not http\n")
		got := make([]byte, len(banner))
		n, _ := io.ReadFull(conn, got)
		if string(got[:n]) != c.want {
			t.Errorf("port of unknown protocol: %s read %q, want %q", c.who.target.Source, got[:n], c.want)
		}
	}
	if n := len(w.pod.seen()); n != 2 {
		t.Errorf("the pod got %d tunnels, want those of the allowed source", n)
	}
}

func TestWorkloadsAreServedByTheirAddress(t *testing.T) {
	var other *node
	w := newWorld(t, func(w *world) {
		other = startNode(t, w.ca, "spiffe://cluster.local/ns/shop/sa/other")
		w.input.proxy.Direct = true
		w.input.proxy.Workloads = []model.DirectWorkload{{Address: w.pod.ip, Identity: webID}, {Address: other.ip, Identity: webID}}
	})
	alice, bob := w.client(t, aliceID), w.client(t, bobID)
	direct := func(n *node, port uint16) string { return netip.AddrPortFrom(n.ip, port).String() }
	for _, c := range []*client{alice, bob, alice} {
		if status, _ := request(t, c.dial(t, direct(w.pod, 8080)), "/"); status != 200 {
			t.Errorf("status %d, want 200", status)
		}
	}
	for _, got := range w.web.calls() {
		if got.xfcc != got.via.xfcc || got.via.authority != direct(w.pod, 8080) {
			t.Errorf("a request of %q went through a tunnel of %q to %q", got.xfcc, got.via.xfcc, got.via.authority)
		}
	}
	if err := echoAfterBanner(alice.dial(t, direct(w.pod, 2525))); err != nil {
		t.Errorf("TCP: %v", err)
	}
	if status, _ := request(t, alice.dial(t, direct(other, 8080)), "/"); status != http.StatusServiceUnavailable || len(other.seen()) > 0 {
		t.Errorf("a workload with another identity than it should have: status %d, %d tunnels, want 503 and none", status, len(other.seen()))
	}
	if status, _ := request(t, alice.dial(t, "127.0.0.77:8080"), "/"); status != http.StatusNotFound {
		t.Errorf("a workload that the waypoint does not serve: status %d, want 404", status)
	}
}

func TestTelemetryNamesBothIdentities(t *testing.T) {
	w := newWorld(t, nil)
	alice := w.client(t, aliceID)
	request(t, alice.dial(t, webVIP), "/counted")
	mail := alice.dial(t, bannerVIP)
	if err := echoAfterBanner(mail); err != nil {
		t.Fatal(err)
	}
	mail.Close()
	until(t, "both are in the log", func() bool { return strings.Count(readFile(w.log), "\n") >= 2 })
	for line := range strings.Lines(readFile(w.log)) {
		if !strings.Contains(line, `"`+aliceID+`" "`+webID+`"`) {
			t.Errorf("log line without both identities: %s", line)
		}
	}
	peer := names.Peer{Workload: "web", Namespace: "shop", CanonicalName: "web", CanonicalRevision: "v1", App: "web", Version: "v1", Cluster: "Kubernetes"}
	for stat, labels := range map[string][]string{
		"envoy_mesh_requests_total": {`response_code="200"`, `destination_service="web.shop.svc.cluster.local"`, `destination_service_name="web"`,
			`destination_service_namespace="shop"`, `grpc_response_status=""`, `reporter="waypoint"`},
		"envoy_mesh_request_duration_milliseconds_count": {`response_code="200"`},
		"envoy_mesh_request_bytes_count":                 {`response_code="200"`},
		"envoy_mesh_response_bytes_count":                {`response_code="200"`},
		"envoy_mesh_tcp_connections_opened_total":        {`destination_service="mail.shop.svc.cluster.local"`},
		"envoy_mesh_tcp_connections_closed_total":        {},
		"envoy_mesh_tcp_sent_bytes_total":                {},
		"envoy_mesh_tcp_received_bytes_total":            {},
	} {
		labels = append(labels, `source_principal="`+aliceID+`"`, `destination_principal="`+webID+`"`, `destination_peer="`+peer.Pack()+`"`,
			`source_baggage="k8s.namespace.name=shop,k8s.deployment.name=client,service.name=client"`, `response_flags="-"`)
		var lines []string
		until(t, stat+" is counted", func() bool {
			lines = nil
			for line := range strings.Lines(w.envoy.get("/stats/prometheus")) {
				if strings.HasPrefix(line, stat+"{") {
					lines = append(lines, line)
				}
			}
			return len(lines) > 0
		})
		if len(lines) != 1 {
			t.Errorf("%s: %d lines, want 1:\n%s", stat, len(lines), strings.Join(lines, ""))
		}
		for _, l := range labels {
			if !strings.Contains(lines[0], l) {
				t.Errorf("%s has no %s:\n%s", stat, l, lines[0])
			}
		}
	}
}

func TestPodOutsideTheMeshIsReachedDirectly(t *testing.T) {
	w := newWorld(t, func(w *world) {
		e := &w.input.endpoints[0].Endpoints[0]
		e.Tunnel, e.Identity, e.Address = false, "", netip.MustParseAddrPort(w.pod.apps[8080])
	})
	if status, body := request(t, w.client(t, aliceID).dial(t, webVIP), "/"); status != 200 || body != "hello" {
		t.Errorf("answer %d %q, want 200 hello", status, body)
	}
	if n := len(w.pod.seen()); n != 0 {
		t.Errorf("the pod got %d tunnels, want none", n)
	}
}

func TestGatewayReachesPodsAndWaypointsThroughTunnels(t *testing.T) {
	const gatewayID = "spiffe://cluster.local/ns/edge/sa/front-istio"
	w := newWorld(t, func(w *world) {
		w.input.proxy = gateway(model.ProxyPort{Port: 80, Bind: 8080, Chains: []model.PortChain{{Name: "http", Routes: "http.80"}}})
		w.input.tables = []*model.RouteTable{webTable("http.80")}
	})
	get := func(headers ...string) (int, string) {
		return request(t, must(net.Dial("tcp", w.envoy.addrs["port_8080"].String()))(t), "/", headers...)
	}
	if status, body := get("X-Forwarded-Client-Cert: URI=forged", "X-Forwarded-For: 9.9.9.9", "x-envoy-original-path: forged"); status != 200 || body != "hello" {
		t.Fatalf("answer %d %q, want 200 hello", status, body)
	}
	got := w.web.calls()[0]
	if got.xfcc != "" || got.via.xfcc != "" || got.via.peer != gatewayID {
		t.Errorf("XFCC %q, of the tunnel %q, peer %s; want none, and the gateway as peer", got.xfcc, got.via.xfcc, got.via.peer)
	}
	// Of a client on loopback Envoy writes the machine's own address.
	if xff := strings.Split(got.header.Get("X-Forwarded-For"), ","); len(xff) != 2 || xff[0] != "9.9.9.9" || !netip.MustParseAddr(xff[1]).IsValid() {
		t.Errorf("X-Forwarded-For %q, want the address that Envoy saw after what the client said", xff)
	}
	if v := got.header.Get("X-Envoy-Original-Path"); v != "" {
		t.Errorf("x-envoy-original-path %q from outside came through", v)
	}

	// The service has a waypoint now: the tunnel ends there, and asks for the service.
	wp := startNode(t, w.ca, waypointID)
	wp.app(80, w.pod.apps[8080])
	w.input.endpoints[0].Endpoints = []model.ProxyEndpoint{pod(webVIP, func(e *model.ProxyEndpoint) {
		e.Waypoint, e.Identity = netip.AddrPortFrom(wp.ip, 15008), waypointID
	})}
	w.envoy.xds.set(t, w.resources(t))
	until(t, "requests go through the waypoint", func() bool {
		status, _ := get()
		return status == 200 && len(wp.seen()) > 0
	})
	if want := (tunnel{authority: webVIP, peer: gatewayID}); wp.seen()[0] != want {
		t.Errorf("the waypoint got %+v, want %+v", wp.seen()[0], want)
	}
}
