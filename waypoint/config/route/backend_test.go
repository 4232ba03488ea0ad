package route

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	limitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// seen is a request as a backend saw it.
type seen struct {
	Server, Method, Path, Host string
	Header                     http.Header
}

// backend answers with what it saw. A request may ask it to fail: x-fail-first with an id makes the first request of
// that id fail with 503, x-reset-first drops its connection.
type backend struct {
	name string
	addr netip.AddrPort
	mu   sync.Mutex
	ids  map[string]int
	all  []seen
}

func newBackend(t *testing.T, name string) *backend {
	t.Helper()
	b := &backend{name: name, ids: map[string]int{}}
	s := httptest.NewUnstartedServer(b)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	b.addr = netip.MustParseAddrPort(s.Listener.Addr().String())
	return b
}

func (b *backend) first(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ids[id]++
	return b.ids[id] == 1
}

// got are the requests whose path begins with a prefix.
func (b *backend) got(prefix string) []seen {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []seen
	for _, s := range b.all {
		if strings.HasPrefix(s.Path, prefix) {
			out = append(out, s)
		}
	}
	return out
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := seen{Server: b.name, Method: r.Method, Path: r.URL.RequestURI(), Host: r.Host, Header: r.Header}
	b.mu.Lock()
	b.all = append(b.all, s)
	b.mu.Unlock()
	if id := r.Header.Get("x-fail-first"); id != "" && b.first(id) {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if id := r.Header.Get("x-reset-first"); id != "" && b.first(id) {
		if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
			c.Close()
		}
		return
	}
	if r.Header.Get("x-hang") != "" {
		<-r.Context().Done()
		return
	}
	if strings.EqualFold(r.Header.Get("upgrade"), "websocket") {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
		rw.Flush()
		return
	}
	w.Header().Set("x-backend", b.name)
	if code, err := strconv.Atoi(r.Header.Get("x-status")); err == nil {
		w.WriteHeader(code)
	}
	_ = json.NewEncoder(w).Encode(s)
}

// grpcServer serves until the test ends.
func grpcServer(t *testing.T, register func(*grpc.Server)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return netip.MustParseAddrPort(l.Addr().String())
}

// asker lets those through that say please.
type asker struct {
	authv3.UnimplementedAuthorizationServer
}

func (asker) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	if r.GetAttributes().GetRequest().GetHttp().GetHeaders()["x-please"] == "yes" {
		return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.OK)}}, nil
	}
	return &authv3.CheckResponse{
		Status:       &status.Status{Code: int32(codes.PermissionDenied)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: 401}}},
	}, nil
}

// counter refuses descriptors whose user is "greedy", and remembers what it was asked.
type counter struct {
	limitv3.UnimplementedRateLimitServiceServer
	mu   sync.Mutex
	asks []string
}

func (c *counter) ShouldRateLimit(_ context.Context, r *limitv3.RateLimitRequest) (*limitv3.RateLimitResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := &limitv3.RateLimitResponse{OverallCode: limitv3.RateLimitResponse_OK}
	for _, d := range r.Descriptors {
		var parts []string
		for _, e := range d.Entries {
			parts = append(parts, e.Key+"="+e.Value)
			if e.Key == "user" && e.Value == "greedy" {
				out.OverallCode = limitv3.RateLimitResponse_OVER_LIMIT
			}
		}
		c.asks = append(c.asks, r.Domain+": "+strings.Join(parts, " "))
	}
	return out, nil
}

func (c *counter) asked() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.asks...)
}

// issuer signs tokens.
type issuer struct {
	name string
	key  *ecdsa.PrivateKey
}

func newIssuer(t *testing.T, name string) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{name: name, key: key}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (i *issuer) jwks(t *testing.T) string {
	t.Helper()
	point, err := i.key.PublicKey.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	raw := point.Bytes()[1:]
	return fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"k","x":%q,"y":%q}]}`, b64(raw[:32]), b64(raw[32:]))
}

func (i *issuer) token(t *testing.T, claims object) string {
	t.Helper()
	claims["iss"] = i.name
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	text := b64([]byte(`{"alg":"ES256","kid":"k","typ":"JWT"}`)) + "." + b64(body)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + b64(sig)
}
