package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"
)

// maxChain bounds the certificates of one answer: leaf, intermediates, roots.
const maxChain = 100

// Certificate is a key pair with the roots that its authority names. Immutable.
type Certificate struct {
	Identity  Identity
	TLS       tls.Certificate // with Leaf set
	Roots     *x509.CertPool
	RootsPEM  []byte
	NotBefore time.Time
	NotAfter  time.Time
}

// ChainPEM is the certificate and its intermediates, for display; never the key.
func (c *Certificate) ChainPEM() []byte {
	var out []byte
	for _, der := range c.TLS.Certificate {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

// NewRequest makes a P-256 key and a certificate request for id. The request's only
// content is the id as URI SAN; an authority uses nothing of it but the public key.
func NewRequest(id Identity) (key *ecdsa.PrivateKey, csrPEM []byte, err error) {
	if err := id.Validate(); err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request for %q: %w", id, err)
	}
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key for %q: %w", id, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request for %q: %w", id, err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// NewCertificate puts the answer to a request together and checks it: the leaf is
// for key and for exactly id, is valid now, and leads to the roots that came with it.
func NewCertificate(id Identity, key crypto.Signer, chainPEM []string) (*Certificate, error) {
	if len(chainPEM) < 2 {
		return nil, fmt.Errorf("read certificate of %q: %d elements, want leaf and roots", id, len(chainPEM))
	}
	var chain []*x509.Certificate
	for _, p := range chainPEM[:len(chainPEM)-1] {
		certs, err := parsePEM([]byte(p))
		if err != nil {
			return nil, fmt.Errorf("read certificate of %q: %w", id, err)
		}
		chain = append(chain, certs...)
	}
	rootsPEM := []byte(chainPEM[len(chainPEM)-1])
	rootCerts, err := parsePEM(rootsPEM)
	if err != nil {
		return nil, fmt.Errorf("read roots for %q: %w", id, err)
	}
	if len(chain) > maxChain || len(rootCerts) > maxChain {
		return nil, fmt.Errorf("read certificate of %q: more than %d certificates", id, maxChain)
	}
	roots := x509.NewCertPool()
	for _, r := range rootCerts {
		roots.AddCert(r)
	}
	leaf := chain[0]
	if err := checkLeaf(id, key, leaf); err != nil {
		return nil, err
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if err := verifyChain(chain, roots, usage); err != nil {
			return nil, fmt.Errorf("check certificate of %q: %w", id, err)
		}
	}
	c := &Certificate{
		Identity: id, Roots: roots, RootsPEM: rootsPEM, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		TLS: tls.Certificate{PrivateKey: key, Leaf: leaf},
	}
	for _, cert := range chain {
		c.TLS.Certificate = append(c.TLS.Certificate, cert.Raw)
	}
	return c, nil
}

func checkLeaf(id Identity, key crypto.Signer, leaf *x509.Certificate) error {
	got, err := certificateIdentity(leaf)
	if err != nil {
		return fmt.Errorf("check certificate of %q: %w", id, err)
	}
	if got != id {
		return fmt.Errorf("check certificate of %q: %w: it is for %q", id, ErrInvalid, got)
	}
	want, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !want.Equal(leaf.PublicKey) {
		return fmt.Errorf("check certificate of %q: it is for another key", id)
	}
	return nil
}

// parsePEM reads one or more certificates; text around them is a comment.
func parsePEM(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for bytes.Contains(data, []byte("-----BEGIN")) {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("parse certificates: broken PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("parse certificates: unexpected PEM block %q", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificates: %w", err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("parse certificates: none found")
	}
	return out, nil
}
