package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"
	authv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	capb "github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	td      = "cluster.local"
	shopWeb = "spiffe://cluster.local/ns/shop/sa/web"
)

// fakePods is a set of pods that tests change.
type fakePods struct {
	mu      sync.Mutex
	pods    map[model.Key]*model.Pod
	changed chan struct{}
}

func newFakePods(pods ...*model.Pod) *fakePods {
	f := &fakePods{pods: map[model.Key]*model.Pod{}, changed: make(chan struct{})}
	for _, p := range pods {
		f.pods[p.Key] = p
	}
	return f
}

func (f *fakePods) set(p *model.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods[p.Key] = p
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakePods) Pod(k model.Key) *model.Pod {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pods[k]
}

func (f *fakePods) Runs(node, ns, sa string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pods {
		if p.Node == node && p.Namespace == ns && p.ServiceAccount == sa && !p.Finished && p.Enrolled {
			return true
		}
	}
	return false
}

func (f *fakePods) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func ztunnelPod(name, uid, node string) *model.Pod {
	return &model.Pod{Key: model.Key{Namespace: "istio-system", Name: name}, UID: uid, Node: node, ServiceAccount: "ztunnel"}
}

func shopPod(node string) *model.Pod {
	return &model.Pod{Key: model.Key{Namespace: "shop", Name: "web-1"}, UID: "w1", Node: node, ServiceAccount: "web", Enrolled: true}
}

// tokens are what the fake API server says of each token.
var tokens = map[string]authv1.TokenReviewStatus{
	"ztunnel-n1":   account("istio-system", "ztunnel", "zt-1", "uid-1", ports.TokenAudience),
	"ztunnel-old":  account("istio-system", "ztunnel", "zt-1", "uid-0", ports.TokenAudience),
	"ztunnel-done": account("istio-system", "ztunnel", "zt-done", "uid-d", ports.TokenAudience),
	"unbound":      account("istio-system", "ztunnel", "", "", ports.TokenAudience),
	"audience":     account("istio-system", "ztunnel", "zt-1", "uid-1", "kubernetes"),
	"no-audience":  account("istio-system", "ztunnel", "zt-1", "uid-1", ""),
	"web":          account("shop", "web", "web-1", "w1", ports.TokenAudience),
	"other-sa":     account("istio-system", "other", "zt-1", "uid-1", ports.TokenAudience),
	"human":        {Authenticated: true, User: authv1.UserInfo{Username: "alice", Groups: []string{"system:authenticated"}}, Audiences: []string{ports.TokenAudience}},
	"expired":      {Error: "token has expired"},
}

func account(ns, sa, pod, uid, audience string) authv1.TokenReviewStatus {
	s := authv1.TokenReviewStatus{Authenticated: true, User: authv1.UserInfo{
		Username: "system:serviceaccount:" + ns + ":" + sa,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + ns},
		Extra:    map[string]authv1.ExtraValue{},
	}}
	if audience != "" {
		s.Audiences = []string{audience}
	}
	if pod != "" {
		s.User.Extra[extraPodName], s.User.Extra[extraPodUID] = authv1.ExtraValue{pod}, authv1.ExtraValue{uid}
	}
	return s
}

// authorityWorld is a CA behind a real gRPC server with TLS.
type authorityWorld struct {
	client    capb.IstioCertificateServiceClient
	conn      *grpc.ClientConn
	authority *Authority
	reviews   atomic.Int32
	pods      *fakePods
	server    *Server
	dial      func(certs ...tls.Certificate) *grpc.ClientConn
}

func newAuthorityWorld(t *testing.T, change func(*Config)) *authorityWorld {
	t.Helper()
	w := &authorityWorld{pods: newFakePods(ztunnelPod("zt-1", "uid-1", "n1"), shopPod("n1"))}
	w.pods.pods[model.Key{Namespace: "istio-system", Name: "zt-done"}] = &model.Pod{
		Key: model.Key{Namespace: "istio-system", Name: "zt-done"}, UID: "uid-d", Node: "n1", ServiceAccount: "ztunnel", Finished: true}
	k := fake.NewClientset()
	k.PrependReactor("create", "tokenreviews", func(a ktesting.Action) (bool, runtime.Object, error) {
		w.reviews.Add(1)
		r := a.(ktesting.CreateAction).GetObject().(*authv1.TokenReview).DeepCopy()
		if len(r.Spec.Audiences) != 1 || r.Spec.Audiences[0] != ports.TokenAudience {
			t.Errorf("asked for audiences %v", r.Spec.Audiences)
		}
		r.Status = tokens[r.Spec.Token]
		return true, r, nil
	})
	bundle, err := FromDirectory("", td)
	if err != nil {
		t.Fatal(err)
	}
	w.authority = NewAuthority(bundle)
	log := slog.New(slog.DiscardHandler)
	serving, err := NewServing(w.authority, []string{ports.IstiodServerName}, log)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		TrustDomain: td, Lifetimes: Lifetimes{Default: 24 * time.Hour, Max: 90 * 24 * time.Hour}, Log: log, Pods: w.pods,
		TrustedNodeAccounts: []model.Key{{Namespace: "istio-system", Name: "ztunnel"}},
	}
	if change != nil {
		change(&cfg)
	}
	w.server, err = NewServer(cfg, NewAuthenticator(k, td, "Kubernetes"), w.authority)
	if err != nil {
		t.Fatal(err)
	}
	w.server.authz.podWait = 20 * time.Millisecond
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(serving.TLS())))
	w.server.Register(g)
	l := bufconn.Listen(64 << 10)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	w.dial = func(certs ...tls.Certificate) *grpc.ClientConn {
		conn, err := grpc.NewClient("passthrough:bufconn",
			grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
				RootCAs: w.authority.Bundle().Roots(), ServerName: ports.IstiodServerName, MinVersion: tls.VersionTLS13, Certificates: certs})),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	w.conn = w.dial()
	w.client = capb.NewIstioCertificateServiceClient(w.conn)
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve: %v", err)
		}
	})
	return w
}

// ask sends a request with a token; extra headers are name, value pairs.
func (w *authorityWorld) ask(ctx context.Context, token, impersonate, csr string, ttl int64, headers ...string) ([]*x509.Certificate, error) {
	kv := headers
	if token != "" {
		kv = append(kv, "authorization", "Bearer "+token)
	}
	req := &capb.IstioCertificateRequest{Csr: csr, ValidityDuration: ttl}
	if impersonate != "" {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{metaImpersonated: structpb.NewStringValue(impersonate)}}
	}
	resp, err := w.client.CreateCertificate(metadata.AppendToOutgoingContext(ctx, kv...), req)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, p := range resp.GetCertChain() {
		c, err := readCerts("answer", []byte(p))
		if err != nil {
			return nil, err
		}
		out = append(out, c...)
	}
	return out, nil
}

func newCSR(t testing.TB, key crypto.Signer, tmpl *x509.CertificateRequest) string {
	t.Helper()
	if tmpl == nil {
		tmpl = &x509.CertificateRequest{}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pemBlock("CERTIFICATE REQUEST", der))
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestNodeProxyGetsIdentityOfPodOnItsNode(t *testing.T) {
	w := newAuthorityWorld(t, nil)
	key := newKey(t)
	certs, err := w.ask(t.Context(), "ztunnel-n1", shopWeb, newCSR(t, key, nil), 0, "clusterid", "Kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	leaf := certs[0]
	if len(certs) != 2 || !certs[1].IsCA {
		t.Fatalf("chain of %d; want leaf and root", len(certs))
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != shopWeb || len(leaf.DNSNames) != 0 || leaf.Subject.String() != "" {
		t.Errorf("names: %v %v %q", leaf.URIs, leaf.DNSNames, leaf.Subject)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("the key is not the request's")
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment || len(leaf.ExtKeyUsage) != 2 || leaf.IsCA {
		t.Errorf("usages %v %v, CA %v", leaf.KeyUsage, leaf.ExtKeyUsage, leaf.IsCA)
	}
	if ttl := time.Until(leaf.NotAfter); ttl < 23*time.Hour || ttl > 24*time.Hour {
		t.Errorf("lives for %s, want the default of 24 h", ttl)
	}
	if skew := time.Since(leaf.NotBefore); skew < 2*time.Minute || skew > 3*time.Minute {
		t.Errorf("valid since %s ago, want 2 min", skew)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: w.authority.Bundle().Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	for _, e := range leaf.Extensions {
		if e.Id.String() == "2.5.29.17" && !e.Critical {
			t.Error("the name is not critical although there is no subject")
		}
	}
}

func TestCallerGetsItsOwnIdentity(t *testing.T) {
	w := newAuthorityWorld(t, nil)
	certs, err := w.ask(t.Context(), "web", "", newCSR(t, newKey(t), nil), 600)
	if err != nil {
		t.Fatal(err)
	}
	if certs[0].URIs[0].String() != shopWeb {
		t.Errorf("got %v", certs[0].URIs)
	}
	if ttl := time.Until(certs[0].NotAfter); ttl > 10*time.Minute {
		t.Errorf("lives for %s, asked for 10 min", ttl)
	}
}

func TestRefusals(t *testing.T) {
	csr := newCSR(t, newKey(t), nil)
	weak, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // the weak key is the test
	if err != nil {
		t.Fatal(err)
	}
	long := "spiffe://cluster.local/ns/shop/sa/" + strings.Repeat("a", 2048)
	identities := map[string]string{
		"foreign trust domain":    "spiffe://evil.example/ns/shop/sa/web",
		"empty trust domain":      "spiffe:///ns/shop/sa/web",
		"comma":                   "spiffe://cluster.local/ns/shop/sa/web,other",
		"space":                   "spiffe://cluster.local/ns/shop/sa/we b",
		"percent":                 "spiffe://cluster.local/ns/shop/sa/w%65b",
		"upper case account":      "spiffe://cluster.local/ns/shop/sa/Web",
		"upper case namespace":    "spiffe://cluster.local/ns/Shop/sa/web",
		"upper case trust domain": "spiffe://Cluster.local/ns/shop/sa/web",
		"upper case scheme":       "SPIFFE://cluster.local/ns/shop/sa/web",
		"more segments":           "spiffe://cluster.local/ns/shop/sa/web/x",
		"trailing slash":          "spiffe://cluster.local/ns/shop/sa/web/",
		"dot segment":             "spiffe://cluster.local/ns/shop/sa/../sa/web",
		"query":                   shopWeb + "?x=1",
		"fragment":                shopWeb + "#x",
		"user info":               "spiffe://u@cluster.local/ns/shop/sa/web",
		"port":                    "spiffe://cluster.local:443/ns/shop/sa/web",
		"over 2048 bytes":         long,
		"not a URI":               "web",
		"nobody runs as it":       "spiffe://cluster.local/ns/shop/sa/nobody",
		"the node proxy itself":   "spiffe://cluster.local/ns/istio-system/sa/ztunnel",
	}
	for name, id := range identities {
		t.Run("identity "+name, func(t *testing.T) {
			w := newAuthorityWorld(t, nil)
			_, err := w.ask(t.Context(), "ztunnel-n1", id, csr, 0)
			wantRefused(t, err, codes.Unauthenticated, msgImpersonate)
		})
	}
	for _, tt := range []struct {
		name, token, id, csr string
		ttl                  int64
		pods                 func(*fakePods)
		headers              []string
		code                 codes.Code
		msg                  string
	}{
		{name: "no credentials", id: shopWeb, code: codes.Unauthenticated, msg: msgAuthenticate},
		{name: "unknown token", token: "x", id: shopWeb, code: codes.Unauthenticated, msg: msgAuthenticate},
		{name: "expired token", token: "expired", id: shopWeb, code: codes.Unauthenticated, msg: msgAuthenticate},
		{name: "token for another audience", token: "audience", id: shopWeb, code: codes.Unauthenticated, msg: msgAuthenticate},
		{name: "audience not checked", token: "no-audience", id: shopWeb, code: codes.Unauthenticated, msg: msgAuthenticate},
		{name: "a person's token", token: "human", id: shopWeb, code: codes.Unauthenticated, msg: msgAuthenticate},
		{name: "another cluster", token: "ztunnel-n1", id: shopWeb, headers: []string{"clusterid", "elsewhere"}, code: codes.Unauthenticated, msg: msgAuthenticate},
		{name: "two tokens", token: "ztunnel-n1", id: shopWeb, headers: []string{"authorization", "Bearer web"}, code: codes.Unauthenticated, msg: msgAuthenticate},
		{name: "token not bound to a pod", token: "unbound", id: shopWeb, code: codes.Unauthenticated, msg: msgImpersonate},
		{name: "token not bound to a pod, own identity", token: "unbound", code: codes.Unauthenticated, msg: msgAuthenticate},
		{name: "caller not trusted", token: "web", id: shopWeb, code: codes.Unauthenticated, msg: msgImpersonate},
		{name: "caller of another account in the namespace", token: "other-sa", id: shopWeb, code: codes.Unauthenticated, msg: msgImpersonate},
		{name: "reused pod name with a new UID", token: "ztunnel-old", id: shopWeb, code: codes.Unauthenticated, msg: msgImpersonate},
		{name: "caller's pod has finished", token: "ztunnel-done", id: shopWeb, code: codes.Unauthenticated, msg: msgImpersonate},
		{name: "pod has finished", token: "ztunnel-n1", id: shopWeb, pods: func(f *fakePods) {
			p := *shopPod("n1")
			p.Finished = true
			f.set(&p)
		}, code: codes.Unauthenticated, msg: msgImpersonate},
		{name: "pod on another node", token: "ztunnel-n1", id: shopWeb, pods: func(f *fakePods) { f.set(shopPod("n2")) }, code: codes.Unauthenticated, msg: msgImpersonate},
		{name: "pod not in the mesh", token: "ztunnel-n1", id: shopWeb, pods: func(f *fakePods) {
			p := *shopPod("n1")
			p.Enrolled = false
			f.set(&p)
		}, code: codes.Unauthenticated, msg: msgImpersonate},
		{name: "caller's pod not on a node", token: "ztunnel-n1", id: shopWeb, pods: func(f *fakePods) { f.set(ztunnelPod("zt-1", "uid-1", "")) }, code: codes.Unauthenticated, msg: msgImpersonate},
		{name: "request not PEM", token: "ztunnel-n1", id: shopWeb, csr: "garbage", code: codes.InvalidArgument, msg: msgRequest},
		{name: "request of another kind", token: "ztunnel-n1", id: shopWeb, csr: string(pemBlock("CERTIFICATE", []byte("x"))), code: codes.InvalidArgument, msg: msgRequest},
		{name: "request not DER", token: "ztunnel-n1", id: shopWeb, csr: string(pemBlock("CERTIFICATE REQUEST", []byte("x"))), code: codes.InvalidArgument, msg: msgRequest},
		{name: "request too long", token: "ztunnel-n1", id: shopWeb, csr: strings.Repeat("x", maxCSR+1), code: codes.InvalidArgument, msg: msgRequest},
		{name: "request not signed by its key", token: "ztunnel-n1", id: shopWeb, csr: tamper(t, csr), code: codes.InvalidArgument, msg: msgRequest},
		{name: "RSA of 1024 bits", token: "ztunnel-n1", id: shopWeb, csr: newCSR(t, weak, nil), code: codes.InvalidArgument, msg: msgRequest},
		{name: "lifetime over the maximum", token: "ztunnel-n1", id: shopWeb, ttl: 90*24*3600 + 1, code: codes.InvalidArgument, msg: msgRequest},
		{name: "lifetime that overflows", token: "ztunnel-n1", id: shopWeb, ttl: 1<<63 - 1, code: codes.InvalidArgument, msg: msgRequest},
		{name: "negative lifetime", token: "ztunnel-n1", id: shopWeb, ttl: -1, code: codes.InvalidArgument, msg: msgRequest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newAuthorityWorld(t, nil)
			if tt.pods != nil {
				tt.pods(w.pods)
			}
			if tt.csr == "" {
				tt.csr = csr
			}
			_, err := w.ask(t.Context(), tt.token, tt.id, tt.csr, tt.ttl, tt.headers...)
			wantRefused(t, err, tt.code, tt.msg)
		})
	}
}

// wantRefused checks code and message: the message must tell nothing more.
func wantRefused(t *testing.T, err error, code codes.Code, msg string) {
	t.Helper()
	if status.Code(err) != code || status.Convert(err).Message() != msg {
		t.Errorf("got %v, want %v %q", err, code, msg)
	}
}

// tamper flips a bit of a request's signature.
func tamper(t *testing.T, csr string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(csr))
	block.Bytes[len(block.Bytes)-1] ^= 1
	return string(pem.EncodeToMemory(block))
}

// A string that is not UTF-8 cannot be a protobuf string, so it is refused before it is a request.
func TestIdentityThatIsNotUTF8(t *testing.T) {
	w := newAuthorityWorld(t, nil)
	if _, err := w.ask(t.Context(), "ztunnel-n1", "spiffe://cluster.local/ns/shop/sa/\xff", newCSR(t, newKey(t), nil), 0); err == nil {
		t.Fatal("accepted")
	}
	_, err := w.server.authz.impersonated(t.Context(), Caller{
		Identity: identity.Identity{TrustDomain: td, Namespace: "istio-system", ServiceAccount: "ztunnel"}, PodName: "zt-1", PodUID: "uid-1",
	}, "spiffe://cluster.local/ns/shop/sa/\xff")
	if err == nil {
		t.Fatal("accepted by the authorizer")
	}
}

func TestNamesInTheRequestAreIgnored(t *testing.T) {
	w := newAuthorityWorld(t, nil)
	evil, err := url.Parse("spiffe://cluster.local/ns/kube-system/sa/admin")
	if err != nil {
		t.Fatal(err)
	}
	csr := newCSR(t, newKey(t), &x509.CertificateRequest{URIs: []*url.URL{evil}, DNSNames: []string{"istiod.istio-system.svc"}, IPAddresses: []net.IP{{10, 0, 0, 1}}})
	certs, err := w.ask(t.Context(), "ztunnel-n1", shopWeb, csr, 0)
	if err != nil {
		t.Fatal(err)
	}
	if l := certs[0]; len(l.URIs) != 1 || l.URIs[0].String() != shopWeb || len(l.DNSNames)+len(l.IPAddresses) != 0 {
		t.Errorf("names %v %v %v", l.URIs, l.DNSNames, l.IPAddresses)
	}
}

// A pod's first connection waits for its certificate: a pod that is not known yet is waited for.
func TestUnseenPodIsWaitedFor(t *testing.T) {
	w := newAuthorityWorld(t, nil)
	w.server.authz.podWait = 20 * time.Second
	w.pods.set(shopPod("n2"))
	type answer struct {
		certs []*x509.Certificate
		err   error
	}
	got := make(chan answer, 1)
	csr := newCSR(t, newKey(t), nil)
	go func() {
		certs, err := w.ask(t.Context(), "ztunnel-n1", shopWeb, csr, 0)
		got <- answer{certs, err}
	}()
	for w.reviews.Load() == 0 { // the request has arrived
		select {
		case a := <-got:
			t.Fatalf("answered too early: %v", a.err)
		case <-time.After(time.Millisecond):
		}
	}
	w.pods.set(shopPod("n1"))
	if a := <-got; a.err != nil {
		t.Fatal(a.err)
	}
}

func TestVerdictsAreCached(t *testing.T) {
	w := newAuthorityWorld(t, nil)
	csr := newCSR(t, newKey(t), nil)
	for range 5 {
		if _, err := w.ask(t.Context(), "ztunnel-n1", shopWeb, csr, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := w.ask(t.Context(), "expired", shopWeb, csr, 0); err == nil {
			t.Fatal("accepted an expired token")
		}
	}
	if n := w.reviews.Load(); n != 2 {
		t.Errorf("%d reviews of 2 tokens", n)
	}
}

func TestVerdictCacheIsBounded(t *testing.T) {
	a := NewAuthenticator(nil, td, "")
	now := time.Now()
	for i := range maxVerdicts + 100 {
		a.remember([32]byte{byte(i), byte(i >> 8), byte(i >> 16)}, verdict{expires: now.Add(time.Minute)}, now)
	}
	if n := len(a.verdicts); n > maxVerdicts {
		t.Errorf("%d verdicts", n)
	}
}

func TestCertificateRenewal(t *testing.T) {
	for _, allowed := range []bool{true, false} {
		w := newAuthorityWorld(t, func(c *Config) { c.CertificateRenewal = allowed })
		key := newKey(t)
		csr := newCSR(t, key, nil)
		certs, err := w.ask(t.Context(), "web", "", csr, 0)
		if err != nil {
			t.Fatal(err)
		}
		w.client = capb.NewIstioCertificateServiceClient(w.dial(tls.Certificate{Certificate: [][]byte{certs[0].Raw}, PrivateKey: key}))
		again, err := w.ask(t.Context(), "", "", csr, 0)
		if !allowed {
			wantRefused(t, err, codes.Unauthenticated, msgAuthenticate)
			continue
		}
		if err != nil || again[0].URIs[0].String() != shopWeb {
			t.Fatalf("got %v, %v", again, err)
		}
		// A certificate never gives another identity, not even a trusted account's.
		_, err = w.ask(t.Context(), "", "spiffe://cluster.local/ns/shop/sa/other", csr, 0)
		wantRefused(t, err, codes.Unauthenticated, msgImpersonate)
	}
}

// Whatever is asked for, nothing outlives the signer.
func TestLeafEndsWithItsSigner(t *testing.T) {
	w := newAuthorityWorld(t, nil)
	w.authority.Replace(bundleUntil(t, time.Now().Add(time.Hour)))
	tmpl, err := workloadTemplate(identity.Identity{TrustDomain: td, Namespace: "a", ServiceAccount: "b"}, 24*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	chain, err := w.authority.Sign(tmpl, newKey(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	certs, err := readCerts("chain", []byte(chain[0]))
	if err != nil {
		t.Fatal(err)
	}
	if end := w.authority.Bundle().NotAfter(); certs[0].NotAfter.After(end) {
		t.Errorf("leaf until %s, signer until %s", certs[0].NotAfter, end)
	}
}

// bundleUntil is a root that expires at end.
func bundleUntil(t *testing.T, end time.Time) *Bundle {
	t.Helper()
	cert, key, err := NewRoot(td, end.Add(-rootLifetime))
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewBundle(cert, key, nil, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzParseCSR(f *testing.F) {
	f.Add(newCSR(f, newKey(f), nil))
	f.Add("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n")
	f.Fuzz(func(t *testing.T, s string) {
		if pub, err := parseCSR(s); err == nil && checkPublicKey(pub) != nil {
			t.Error("accepted a key that is too weak")
		}
	})
}

func BenchmarkIssue(b *testing.B) {
	bundle, err := FromDirectory("", td)
	if err != nil {
		b.Fatal(err)
	}
	s := &Server{cfg: Config{Lifetimes: Lifetimes{Default: time.Hour, Max: time.Hour}}, authority: NewAuthority(bundle)}
	req := &capb.IstioCertificateRequest{Csr: newCSR(b, newKey(b), nil)}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := s.issue(identity.Identity{TrustDomain: td, Namespace: "a", ServiceAccount: "b"}, req); err != nil {
			b.Fatal(err)
		}
	}
}
