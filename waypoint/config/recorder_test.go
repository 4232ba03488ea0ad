package config

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// heard is one request as an application really got it.
type heard struct {
	// head is everything up to the body, byte for byte.
	head, method, target, body string
	header                     http.Header
	trailer                    http.Header
}

// field gives the values of a header however its name is spelled, as applications do that turn names into variables.
func (h *heard) field(name string) []string {
	var out []string
	for _, line := range strings.Split(h.head, "\r\n")[1:] {
		if k, v, ok := strings.Cut(line, ":"); ok && plainName(k) == plainName(name) {
			out = append(out, strings.TrimSpace(v))
		}
	}
	return out
}

// plainName is a header's name as CGI, WSGI and their heirs see it.
func plainName(name string) string {
	return regexp.MustCompile(`[^a-z0-9]`).ReplaceAllString(strings.ToLower(name), "-")
}

// recorder is an application that speaks HTTP/1.1 and believes what it reads: it notes the bytes, answers 200, and takes
// an upgrade that it is offered.
type recorder struct {
	ln net.Listener
	wg sync.WaitGroup

	mu      sync.Mutex
	heard   []heard
	garbage []string
	conns   map[net.Conn]bool
}

func startRecorder(t testing.TB) *recorder {
	t.Helper()
	r := &recorder{ln: must(net.Listen("tcp", "127.0.0.1:0"))(t), conns: map[net.Conn]bool{}}
	r.wg.Go(func() {
		for {
			c, err := r.ln.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.conns[c] = true
			r.mu.Unlock()
			r.wg.Go(func() { r.serve(c) })
		}
	})
	t.Cleanup(func() {
		r.ln.Close()
		r.mu.Lock()
		for c := range r.conns {
			c.Close()
		}
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

func (r *recorder) addr() string { return r.ln.Addr().String() }

func (r *recorder) serve(c net.Conn) {
	defer func() {
		c.Close()
		r.mu.Lock()
		delete(r.conns, c)
		r.mu.Unlock()
	}()
	var raw bytes.Buffer
	br := bufio.NewReader(io.TeeReader(c, &raw))
	for {
		start := raw.Len() - br.Buffered()
		req, err := http.ReadRequest(br)
		end := raw.Len() - br.Buffered()
		head := string(raw.Bytes()[start:end])
		if err != nil {
			if head != "" {
				r.mu.Lock()
				r.garbage = append(r.garbage, head)
				r.mu.Unlock()
			}
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.heard = append(r.heard, heard{head, req.Method, req.RequestURI, string(body), req.Header, req.Trailer})
		r.mu.Unlock()
		if req.Header.Get("Upgrade") != "" {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+req.Header.Get("Upgrade")+"\r\n\r\n")
			io.Copy(c, br)
			return
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"); err != nil {
			return
		}
	}
}

// take returns what was heard since the last call.
func (r *recorder) take() (requests []heard, garbage []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	requests, garbage = r.heard, r.garbage
	r.heard, r.garbage = nil, nil
	return requests, garbage
}

// forged is in every value that an attacker wants an application to believe.
const forged = "forged"

// checkHeard wants what no attack may break: a request is framed in one way, ends where its head says, is not for what
// policy denies, and says of the caller only what the tunnel said.
func checkHeard(t *testing.T, got []heard, garbage []string, xfcc []string) {
	t.Helper()
	for _, g := range garbage {
		t.Errorf("the application cannot read what it got: %q", g)
	}
	for i := range got {
		h := &got[i]
		line, rest, _ := strings.Cut(h.head, "\r\n")
		if strings.Contains(strings.ReplaceAll(h.head, "\r\n", ""), "\n") || strings.ContainsAny(h.head, "\x00\v\f") || strings.Contains(rest, "\r\n ") || strings.Contains(rest, "\r\n\t") {
			t.Errorf("the head has lines that not everybody ends at the same place: %q", h.head)
		}
		if n := len(h.field("content-length")) + len(h.field("transfer-encoding")); n > 1 {
			t.Errorf("the body's end is said %d times: %q", n, h.head)
		}
		if te := h.field("transfer-encoding"); len(te) > 0 && te[0] != "chunked" {
			t.Errorf("transfer-encoding %q", te)
		}
		if n := len(h.field("host")); n != 1 {
			t.Errorf("%d hosts: %q", n, h.head)
		}
		if strings.Contains(line, "/admin") && !strings.Contains(line, "?") || len(strings.Fields(line)) != 3 {
			t.Errorf("request line %q", line)
		}
		if v := h.field("x-forwarded-client-cert"); !slices.Equal(v, xfcc) {
			t.Errorf("XFCC %q, want %q: %q", v, xfcc, h.head)
		}
		for _, v := range h.trailer {
			if strings.Contains(strings.Join(v, " "), forged) {
				t.Errorf("trailers %v", h.trailer)
			}
		}
		for _, field := range strings.Split(rest, "\r\n") {
			name, value, _ := strings.Cut(field, ":")
			name = plainName(name)
			if strings.HasPrefix(name, "x-ambit-") || (ours(name) && strings.Contains(value, forged)) {
				t.Errorf("a forged header came through: %q", h.head)
			}
		}
	}
}

// ours tells whether a header's value is for proxies to say.
func ours(name string) bool {
	return strings.HasPrefix(name, "x-envoy-") || name == "x-forwarded-client-cert" || name == "baggage"
}

// denyAdmin lets nobody call /admin or what is below it.
func denyAdmin() []*model.Authorization {
	return []*model.Authorization{{
		Meta: model.Meta{Key: model.Key{Namespace: "shop", Name: "no-admin"}}, Action: model.AuthzDeny,
		Rules: []model.AuthzRule{{To: []model.AuthzOperation{{Paths: model.Patterns{In: []string{"/admin", "/admin/*"}}}}}},
	}}
}

// stage is a proxy before a recorder. Everybody's requests for /admin are denied.
type stage struct {
	*world
	app *recorder
	// open connects as a client of the proxy does.
	open func(*testing.T) net.Conn
	// xfcc is what the application is told of the client.
	xfcc []string
}

// guarded denies /admin in every table and on every port.
func guarded(w *world) {
	for _, table := range w.input.tables {
		for i := range table.Hosts {
			table.Hosts[i].Policy.Authz = denyAdmin()
		}
	}
	for i := range w.input.proxy.Scopes {
		if tcp := w.input.proxy.Scopes[i].TCP; tcp != nil {
			tcp.Authz = denyAdmin()
		}
	}
	w.input.clusters[0].Policy.Pool = &model.ConnectionPool{H2Upgrade: ptr(false)}
}

// waypointStage sends everything on as HTTP/1.1, whatever the client speaks.
func waypointStage(t *testing.T, edit func(*world)) *stage {
	t.Helper()
	s := &stage{app: startRecorder(t), xfcc: []string{"By=" + waypointID + ";URI=" + aliceID}}
	s.world = newWorld(t, func(w *world) {
		w.change = hasten(t)
		guarded(w)
		if edit != nil {
			edit(w)
		}
	})
	s.pod.app(8080, s.app.addr())
	alice := s.client(t, aliceID)
	s.open = func(t *testing.T) net.Conn { return alice.dial(t, webVIP) }
	return s
}

// gatewayStage is the same behind a gateway, whose clients are nobody in particular.
func gatewayStage(t *testing.T, edit func(*world)) *stage {
	t.Helper()
	s := &stage{app: startRecorder(t)}
	s.world = newWorld(t, func(w *world) {
		w.change = hasten(t)
		w.input.proxy = gateway(model.ProxyPort{Port: 80, Bind: 8080, Chains: []model.PortChain{{Name: "http", Routes: "http.80"}}})
		w.input.tables = []*model.RouteTable{webTable("http.80")}
		guarded(w)
		if edit != nil {
			edit(w)
		}
	})
	s.pod.app(8080, s.app.addr())
	s.open = func(t *testing.T) net.Conn {
		c := must(net.Dial("tcp", s.envoy.addrs["port_8080"].String()))(t)
		t.Cleanup(func() { c.Close() })
		return c
	}
	return s
}

// hasten shortens the time that Envoy leaves to a client for reading a last answer: these tests wait for its end often.
func hasten(t *testing.T) func([]Resource) {
	return func(resources []Resource) {
		for _, r := range resources {
			l, ok := r.Message.(*listenerv3.Listener)
			if !ok {
				continue
			}
			for _, chain := range l.FilterChains {
				for _, f := range chain.Filters {
					m := &hcmv3.HttpConnectionManager{}
					if f.GetTypedConfig().UnmarshalTo(m) != nil {
						continue
					}
					m.DelayedCloseTimeout = duration(20 * time.Millisecond)
					f.GetTypedConfig().Value = must(proto.Marshal(m))(t)
				}
			}
		}
	}
}

// both runs a test before a waypoint and before a gateway.
func both(t *testing.T, run func(*testing.T, *stage)) {
	t.Run("waypoint", func(t *testing.T) { run(t, waypointStage(t, nil)) })
	t.Run("gateway", func(t *testing.T) { run(t, gatewayStage(t, nil)) })
}
