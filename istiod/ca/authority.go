package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync/atomic"
	"time"
)

const (
	// rootLifetime of a root that is made here. Ten years as Istio's, since replacing it by hand is work.
	rootLifetime = 10 * 365 * 24 * time.Hour
	// clockSkew is how far a node's clock may be behind without refusing a fresh certificate.
	clockSkew = 2 * time.Minute
	// minRSABits is the weakest RSA key accepted, of requests and signers.
	minRSABits = 2048
	// serialBits of a serial number: RFC 5280 §4.1.2.2 allows 20 octets and wants them unguessable.
	serialBits = 127
)

// Bundle is a signing certificate with its key and everything that goes with it. It is immutable.
type Bundle struct {
	cert *x509.Certificate
	key  crypto.Signer
	// chain holds the PEM of each intermediate from the signer up, without the root.
	chain []string
	roots string
	pool  *x509.CertPool
}

// RootsPEM returns all roots.
func (b *Bundle) RootsPEM() string { return b.roots }

// Roots returns all roots as a pool. Callers must not change it.
func (b *Bundle) Roots() *x509.CertPool { return b.pool }

// NotAfter is when the signing certificate expires.
func (b *Bundle) NotAfter() time.Time { return b.cert.NotAfter }

// NewRoot makes a self-signed P-256 root.
func NewRoot(trustDomain string, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make root key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{trustDomain}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign root: %w", err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode root key: %w", err)
	}
	return pemBlock("CERTIFICATE", der), pemBlock("EC PRIVATE KEY", keyDER), nil
}

// NewBundle reads a signer: its certificate and key, the chain from it to below
// the root (empty when it is the root), and the roots (empty means the signer).
func NewBundle(certPEM, keyPEM, chainPEM, rootsPEM []byte, now time.Time) (*Bundle, error) {
	pair, err := readCerts("ca-cert.pem", certPEM)
	if err != nil {
		return nil, err
	}
	cert := pair[0]
	key, err := readKey(keyPEM)
	if err != nil {
		return nil, err
	}
	if err := checkSigner(cert, key, now); err != nil {
		return nil, err
	}
	if len(rootsPEM) == 0 {
		rootsPEM = certPEM
	}
	roots, err := readCerts("root-cert.pem", rootsPEM)
	if err != nil {
		return nil, err
	}
	b := &Bundle{cert: cert, key: key, pool: x509.NewCertPool()}
	for _, r := range roots {
		b.pool.AddCert(r)
		b.roots += string(pemBlock("CERTIFICATE", r.Raw))
	}
	between := x509.NewCertPool()
	if len(chainPEM) > 0 {
		chain, err := readCerts("cert-chain.pem", chainPEM)
		if err != nil {
			return nil, err
		}
		for _, c := range chain {
			between.AddCert(c)
			if !c.IsCA || isRoot(c, roots) {
				continue // proxies have the roots already
			}
			b.chain = append(b.chain, string(pemBlock("CERTIFICATE", c.Raw)))
		}
	} else if !isRoot(cert, roots) {
		b.chain = []string{string(pemBlock("CERTIFICATE", cert.Raw))}
	}
	if _, err := cert.Verify(x509.VerifyOptions{
		Roots: b.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return nil, fmt.Errorf("verify ca-cert.pem against root-cert.pem: %w", err)
	}
	return b, nil
}

func isRoot(c *x509.Certificate, roots []*x509.Certificate) bool {
	for _, r := range roots {
		if c.Equal(r) {
			return true
		}
	}
	return false
}

func checkSigner(cert *x509.Certificate, key crypto.Signer, now time.Time) error {
	pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !cert.IsCA || !cert.BasicConstraintsValid:
		return errors.New("check ca-cert.pem: it is not the certificate of an authority")
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("check ca-cert.pem: its key usage does not allow to sign certificates")
	case now.After(cert.NotAfter):
		return fmt.Errorf("check ca-cert.pem: it expired at %s", cert.NotAfter.Format(time.RFC3339))
	case !ok || !pub.Equal(key.Public()):
		return errors.New("check ca-key.pem: it is not the key of ca-cert.pem")
	}
	return checkPublicKey(key.Public())
}

func readCerts(name string, b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read %s: certificate %d: %w", name, len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("read %s: it holds no certificate", name)
	}
	return out, nil
}

// readKey reads an EC or RSA key in any of the usual encodings.
func readKey(b []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return nil, errors.New("read ca-key.pem: it holds no private key")
		}
		var key any
		var err error
		switch block.Type {
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		default:
			continue // such as EC PARAMETERS before the key
		}
		if err != nil {
			return nil, fmt.Errorf("read ca-key.pem: %w", err)
		}
		if s, ok := key.(crypto.Signer); ok {
			return s, nil
		}
		return nil, fmt.Errorf("read ca-key.pem: a %T cannot sign", key)
	}
}

// checkPublicKey refuses keys that are too weak to stand for an identity.
func checkPublicKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits {
			return fmt.Errorf("check public key: RSA of %d bits is weaker than %d", n, minRSABits)
		}
		return nil
	case *ecdsa.PublicKey:
		if n := k.Curve.Params().BitSize; n < 256 {
			return fmt.Errorf("check public key: a curve of %d bits is too weak", n)
		}
		return nil
	}
	if isEd25519(pub) {
		return nil
	}
	return fmt.Errorf("check public key: %T is not supported", pub)
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

func pemBlock(kind string, b []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b})
}

// Authority signs with the bundle in force, which may be replaced while it serves.
type Authority struct{ bundle atomic.Pointer[Bundle] }

// NewAuthority signs with b.
func NewAuthority(b *Bundle) *Authority {
	a := &Authority{}
	a.bundle.Store(b)
	return a
}

// Bundle is what is in force.
func (a *Authority) Bundle() *Bundle { return a.bundle.Load() }

// Replace puts another bundle in force.
func (a *Authority) Replace(b *Bundle) { a.bundle.Store(b) }

// Sign signs a template for a public key and returns the chain as the API wants
// it: leaf, each intermediate, and last all roots.
func (a *Authority) Sign(tmpl *x509.Certificate, pub crypto.PublicKey) ([]string, error) {
	b := a.Bundle()
	if !tmpl.NotBefore.Before(b.cert.NotAfter) {
		return nil, fmt.Errorf("sign certificate: the signer expires at %s", b.cert.NotAfter.Format(time.RFC3339))
	}
	clamped := *tmpl
	if clamped.NotAfter.After(b.cert.NotAfter) {
		clamped.NotAfter = b.cert.NotAfter
	}
	if clamped.NotBefore.Before(b.cert.NotBefore) {
		clamped.NotBefore = b.cert.NotBefore
	}
	der, err := x509.CreateCertificate(rand.Reader, &clamped, b.cert, pub, b.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	out := append([]string{string(pemBlock("CERTIFICATE", der))}, b.chain...)
	return append(out, b.roots), nil
}
