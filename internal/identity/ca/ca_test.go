package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	capb "github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/identity"
)

var web = identity.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "web"}

func devCA(t *testing.T) (dir string, s identity.Signer) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "ca")
	if err := CreateDirectory(dir, "td"); err != nil {
		t.Fatal(err)
	}
	s, err := Directory(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, s
}

func TestDirectorySigns(t *testing.T) {
	_, s := devCA(t)
	key, csr, err := identity.NewRequest(web)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := s.Sign(t.Context(), web, csr, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := identity.NewCertificate(web, key, chain)
	if err != nil {
		t.Fatal(err)
	}
	if life := c.NotAfter.Sub(c.NotBefore); life.Round(time.Minute) != time.Hour+backdate {
		t.Errorf("valid for %v, want %v", life, time.Hour+backdate)
	}
	if !c.TLS.Leaf.BasicConstraintsValid || c.TLS.Leaf.IsCA || len(c.TLS.Leaf.Subject.Names) != 0 {
		t.Errorf("leaf: CA %v, subject %v", c.TLS.Leaf.IsCA, c.TLS.Leaf.Subject)
	}
	// No longer than the root itself.
	chain, err = s.Sign(t.Context(), web, csr, 100*365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = identity.NewCertificate(web, key, chain); err != nil || c.NotAfter.After(time.Now().Add(rootValidity)) {
		t.Errorf("valid until %v, %v; want no longer than the root", c.NotAfter, err)
	}
}

func TestDirectoryRefuses(t *testing.T) {
	_, s := devCA(t)
	_, good, err := identity.NewRequest(web)
	if err != nil {
		t.Fatal(err)
	}
	forged, _ := pem.Decode(good)
	forged.Bytes[len(forged.Bytes)-1] ^= 1
	for name, tc := range map[string]struct {
		id  identity.Identity
		csr []byte
	}{
		"no identity":      {identity.Identity{}, good},
		"bad identity":     {identity.Identity{TrustDomain: "td", Namespace: "a/b", ServiceAccount: "c"}, good},
		"no PEM":           {web, []byte("hello")},
		"no request":       {web, []byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")},
		"forged signature": {web, pem.EncodeToMemory(forged)},
	} {
		if chain, err := s.Sign(t.Context(), tc.id, tc.csr, time.Hour); err == nil {
			t.Errorf("%s: signed %q", name, chain)
		}
	}
}

func TestDirectoryErrors(t *testing.T) {
	if _, err := Directory(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "ztunnel dev-ca") {
		t.Errorf("missing directory: %v; want a hint how to make one", err)
	}
	dir, _ := devCA(t)
	if err := CreateDirectory(dir, "td"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second create: %v; want refusal to overwrite", err)
	}
	if info, err := os.Stat(filepath.Join(dir, RootKeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v; want mode 0600", info.Mode(), err)
	}
	other, _ := devCA(t)
	read := func(dir, name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, tc := range map[string]struct {
		cert, key []byte
		want      string
	}{
		"another's key":     {read(dir, RootCertFile), read(other, RootKeyFile), "do not belong together"},
		"no certificate":    {[]byte("x"), read(dir, RootKeyFile), "no certificate"},
		"no key":            {read(dir, RootCertFile), []byte("x"), "not PEM"},
		"broken key":        {read(dir, RootCertFile), []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "parse root key"},
		"key in both files": {read(dir, RootKeyFile), read(dir, RootKeyFile), "no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := t.TempDir()
			for file, data := range map[string][]byte{RootCertFile: tc.cert, RootKeyFile: tc.key} {
				if err := os.WriteFile(filepath.Join(bad, file), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Directory(bad); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

// service is istiod's side: it answers with a directory's signature and notes what it
// was asked.
type service struct {
	capb.UnimplementedIstioCertificateServiceServer
	signer identity.Signer

	mu   sync.Mutex
	md   metadata.MD
	last *capb.IstioCertificateRequest
	fail error
}

func (s *service) CreateCertificate(ctx context.Context, r *capb.IstioCertificateRequest) (*capb.IstioCertificateResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.md, _ = metadata.FromIncomingContext(ctx)
	s.last = r
	if s.fail != nil {
		return nil, s.fail
	}
	id, err := identity.Parse(r.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue())
	if err != nil {
		return nil, err
	}
	chain, err := s.signer.Sign(ctx, id, []byte(r.GetCsr()), time.Duration(r.GetValidityDuration())*time.Second)
	return &capb.IstioCertificateResponse{CertChain: chain}, err
}

func serve(t *testing.T, s *service, creds credentials.TransportCredentials) (hostPort string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.Creds(creds))
	capb.RegisterIstioCertificateServiceServer(srv, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	return l.Addr().String()
}

// serverCertificate is a self-signed one for a DNS name, with its PEM as the root.
func serverCertificate(t *testing.T, name string) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, encode("CERTIFICATE", der)
}

func write(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func ask(t *testing.T, c *Client) error {
	t.Helper()
	key, csr, err := identity.NewRequest(web)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := c.Sign(t.Context(), web, csr, time.Hour)
	if err != nil {
		return err
	}
	_, err = identity.NewCertificate(web, key, chain)
	return err
}

func TestClient(t *testing.T) {
	_, signer := devCA(t)
	svc := &service{signer: signer}
	cert, root := serverCertificate(t, ports.IstiodServerName)
	addr := serve(t, svc, credentials.NewServerTLSFromCert(&cert))
	dir := t.TempDir()
	token := write(t, filepath.Join(dir, "token"), []byte("first\n"))
	c, err := New(Config{Address: "https://" + addr, RootFile: write(t, filepath.Join(dir, "root"), root), TokenFile: token, ClusterID: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := ask(t, c); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]string{{"Bearer first"}, {"c1"}}, [][]string{svc.md["authorization"], svc.md["clusterid"]}); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	if svc.last.GetValidityDuration() != 3600 || svc.last.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue() != web.String() {
		t.Errorf("request %v", svc.last)
	}
	// The token is read at each call.
	write(t, token, []byte("second"))
	if err := ask(t, c); err != nil || svc.md["authorization"][0] != "Bearer second" {
		t.Errorf("after a new token: %v, %v", svc.md["authorization"], err)
	}
	for _, bad := range []string{"", "two\nlines", strings.Repeat("x", 1<<17)} {
		write(t, token, []byte(bad))
		if err := ask(t, c); err == nil || !strings.Contains(err.Error(), "read token") {
			t.Errorf("token of %d bytes: %v", len(bad), err)
		}
	}
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	if err := ask(t, c); err == nil || !strings.Contains(err.Error(), "read token") {
		t.Errorf("without a token file: %v", err)
	}
	write(t, token, []byte("third"))
	svc.fail = status.Error(codes.Unauthenticated, "request impersonation authentication failure")
	if err := ask(t, c); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), web.String()) {
		t.Errorf("refusal: %v; want its code, and the identity named", err)
	}
}

func TestClientPlaintext(t *testing.T) {
	_, signer := devCA(t)
	var log strings.Builder
	token := write(t, filepath.Join(t.TempDir(), "token"), []byte("first"))
	c, err := New(Config{Address: "http://" + serve(t, &service{signer: signer}, insecure.NewCredentials()), TokenFile: token,
		Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := ask(t, c); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "unencrypted") {
		t.Errorf("log %q; want a warning", log.String())
	}
}

// TestClientChecksServer: wrong name, wrong root; and a root file that changes is
// taken at the next connection.
func TestClientChecksServer(t *testing.T) {
	_, signer := devCA(t)
	good, root := serverCertificate(t, ports.IstiodServerName)
	wrongName, wrongNameRoot := serverCertificate(t, "elsewhere.example")
	goodAddr := serve(t, &service{signer: signer}, credentials.NewServerTLSFromCert(&good))
	wrongAddr := serve(t, &service{signer: signer}, credentials.NewServerTLSFromCert(&wrongName))
	for name, tc := range map[string]struct {
		addr, server string
		root         []byte
		want         string
	}{
		"wrong name":       {wrongAddr, "", wrongNameRoot, "not " + ports.IstiodServerName},
		"wrong root":       {goodAddr, "", wrongNameRoot, "unknown authority"},
		"no root in it":    {goodAddr, "", []byte("nothing"), "no certificate in it"},
		"name is set":      {wrongAddr, "elsewhere.example", wrongNameRoot, ""},
		"all as it should": {goodAddr, "", root, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := New(Config{Address: "https://" + tc.addr, ServerName: tc.server, RootFile: write(t, filepath.Join(t.TempDir(), "root"), tc.root)})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			err = ask(t, c)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	file := write(t, filepath.Join(t.TempDir(), "root"), wrongNameRoot)
	c, err := New(Config{Address: "https://" + goodAddr, RootFile: file})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := ask(t, c); err == nil {
		t.Fatal("a server with an unknown root was asked")
	}
	write(t, file, root)
	for deadline := time.Now().Add(10 * time.Second); ; { // gRPC tries again after a second
		err := ask(t, c)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the new root file is not taken: %v", err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, addr := range []string{"", "istiod:15012", "ftp://istiod:15012", "https://istiod", "https://:15012", "https://istiod:15012/x", "https://u@istiod:15012", "https://a b:1"} {
		if c, err := New(Config{Address: addr, RootFile: "root"}); err == nil {
			t.Errorf("address %q accepted: %v", addr, c.Close())
		}
	}
	if _, err := New(Config{Address: "https://istiod:15012"}); err == nil || !strings.Contains(err.Error(), "root certificates") {
		t.Errorf("https without roots: %v", err)
	}
}
