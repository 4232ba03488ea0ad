package interop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const (
	clientID = "spiffe://cluster.local/ns/shop/sa/web"
	serverID = "spiffe://cluster.local/ns/shop/sa/db"
)

// ca issues certificates with SPIFFE names, and writes them where Envoy reads them.
type ca struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newCA(t testing.TB) *ca {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))(t)
	c := &ca{dir: t.TempDir(), cert: must(x509.ParseCertificate(der))(t), key: key, pool: x509.NewCertPool()}
	c.pool.AddCert(c.cert)
	c.write(t, "root.pem", "CERTIFICATE", der)
	return c
}

// must is for calls that fail only when the test is broken.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (c *ca) path(name string) string { return filepath.Join(c.dir, name) }

func (c *ca) write(t testing.TB, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(c.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue makes a certificate for id and writes name.pem and name-key.pem.
func (c *ca) issue(t testing.TB, name, id string) tls.Certificate {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{must(url.Parse(id))(t)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key))(t)
	c.write(t, name+".pem", "CERTIFICATE", der)
	c.write(t, name+"-key.pem", "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key))(t))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (c *ca) verify(want string) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("no certificate")
		}
		leaf := s.PeerCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			return err
		}
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
			return fmt.Errorf("peer is %v, want %s", leaf.URIs, want)
		}
		return nil
	}
}

func (c *ca) serverTLS(t testing.TB) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{c.issue(t, "server", serverID)}, ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: c.verify(clientID), MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	}
}

func (c *ca) clientTLS(t testing.TB) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{c.issue(t, "client", clientID)}, InsecureSkipVerify: true,
		VerifyConnection: c.verify(serverID), MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	}
}
