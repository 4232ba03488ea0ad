package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"
)

// testCA is an authority whose certificates can be made wrong.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	// The rest is about Sign.
	mu    sync.Mutex
	err   error                   // returned instead of signing
	edit  func(*x509.Certificate) // changes what is signed
	chain func([]string) []string // changes the answer
	calls int
	now   int // calls under way
	most  int // most calls ever under way
	took  time.Duration
	hold  chan struct{} // if set, Sign waits for it
}

func newCA(t testing.TB) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert: cert, key: key}
}

func (ca *testCA) pem() string { return pemOf(ca.cert.Raw) }

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// leaf signs for pub; uris may be anything.
func (ca *testCA) leaf(pub crypto.PublicKey, validity time.Duration, uris []string, edit func(*x509.Certificate)) ([]byte, error) {
	now := time.Now()
	c := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(validity),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			return nil, err
		}
		c.URIs = append(c.URIs, u)
	}
	if edit != nil {
		edit(c)
	}
	return x509.CreateCertificate(rand.Reader, c, ca.cert, pub, ca.key)
}

// issue makes a Certificate without any of the checks of NewCertificate.
func (ca *testCA) issue(t testing.TB, edit func(*x509.Certificate), uris ...string) *Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.leaf(key.Public(), time.Hour, uris, edit)
	if err != nil {
		t.Fatal(err)
	}
	c := &Certificate{TLS: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, Roots: x509.NewCertPool(), RootsPEM: []byte(ca.pem())}
	c.Roots.AddCert(ca.cert)
	if len(uris) > 0 {
		c.Identity, _ = Parse(uris[0]) // zero for the bad ones
	}
	return c
}

// Sign implements Signer.
func (ca *testCA) Sign(ctx context.Context, id Identity, csrPEM []byte, validity time.Duration) ([]string, error) {
	ca.mu.Lock()
	ca.calls++
	ca.now++
	ca.most = max(ca.most, ca.now)
	fail, edit, chain, took, hold := ca.err, ca.edit, ca.chain, ca.took, ca.hold
	ca.mu.Unlock()
	defer func() { ca.mu.Lock(); ca.now--; ca.mu.Unlock() }()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if fail != nil {
		return nil, fail
	}
	block, _ := pem.Decode(csrPEM)
	if block == nil {
		return nil, errors.New("no PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	der, err := ca.leaf(csr.PublicKey, validity, []string{id.String()}, edit)
	if err != nil {
		return nil, err
	}
	out := []string{pemOf(der), ca.pem()}
	if chain != nil {
		out = chain(out)
	}
	return out, nil
}

func (ca *testCA) set(f func(*testCA)) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	f(ca)
}

func (ca *testCA) counts() (calls, most int) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.calls, ca.most
}
