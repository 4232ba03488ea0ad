package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/identity"
)

// The files of a development CA.
const (
	RootCertFile = "root-cert.pem"
	RootKeyFile  = "root-key.pem"
)

const (
	// backdate lets a certificate be used by a peer whose clock is a little behind.
	backdate = 2 * time.Minute
	// rootValidity of a created development root.
	rootValidity = 10 * 365 * 24 * time.Hour
	// serialBits is the length of a serial number (RFC 5280 §4.1.2.2 allows 20 octets).
	serialBits = 127
	// minRSABits is the weakest RSA key that is signed.
	minRSABits = 2048
)

type directory struct {
	root    *x509.Certificate
	rootPEM string
	key     crypto.Signer
}

// Directory is a development CA: it signs every identity it is asked for with
// dir/root-key.pem, under dir/root-cert.pem. Whoever can read the directory can be
// anyone in the mesh.
func Directory(dir string) (identity.Signer, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, RootCertFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open development CA %q: %w; make one with: ztunnel dev-ca %s", dir, err, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open development CA %q: %w", dir, err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, RootKeyFile))
	if err != nil {
		return nil, fmt.Errorf("open development CA %q: %w", dir, err)
	}
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("open development CA %q: %s holds no certificate", dir, RootCertFile)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("open development CA %q: %w", dir, err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("open development CA %q: %w", dir, err)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(root.PublicKey) {
		return nil, fmt.Errorf("open development CA %q: %s and %s do not belong together", dir, RootCertFile, RootKeyFile)
	}
	if !root.IsCA || time.Now().After(root.NotAfter) {
		return nil, fmt.Errorf("open development CA %q: %s is no CA certificate or has expired", dir, RootCertFile)
	}
	return &directory{root: root, rootPEM: string(certPEM), key: key}, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("parse root key: not PEM")
	}
	var key any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("parse root key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("parse root key: a %T cannot sign", key)
	}
	return signer, nil
}

// Sign implements identity.Signer.
func (d *directory) Sign(_ context.Context, id identity.Identity, csrPEM []byte, validity time.Duration) ([]string, error) {
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	block, _ := pem.Decode(csrPEM)
	if block == nil {
		return nil, fmt.Errorf("sign certificate of %q: request is not PEM", id)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %q: %w", id, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("sign certificate of %q: %w", id, err)
	}
	if k, ok := csr.PublicKey.(interface{ Size() int }); ok && k.Size()*8 < minRSABits {
		return nil, fmt.Errorf("sign certificate of %q: RSA key is shorter than %d bits", id, minRSABits)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %q: %w", id, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %q: %w", id, err)
	}
	now := time.Now()
	until := now.Add(validity)
	if until.After(d.root.NotAfter) {
		until = d.root.NotAfter
	}
	leaf := &x509.Certificate{
		SerialNumber: serial, NotBefore: now.Add(-backdate), NotAfter: until, URIs: []*url.URL{uri},
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, d.root, csr.PublicKey, d.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %q: %w", id, err)
	}
	return []string{string(encode("CERTIFICATE", der)), d.rootPEM}, nil
}

// CreateDirectory makes a development CA in dir, which is created if need be. It
// never overwrites a file. An empty trust domain means the default one; the root
// carries it for people to see, it does not limit what can be signed.
func CreateDirectory(dir, trustDomain string) error {
	if trustDomain == "" {
		trustDomain = ports.DefaultTrustDomain
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("create development CA %q: %w", dir, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return fmt.Errorf("create development CA %q: %w", dir, err)
	}
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber: serial, NotBefore: now.Add(-backdate), NotAfter: now.Add(rootValidity),
		Subject:  pkix.Name{Organization: []string{trustDomain}, CommonName: "Ambit development root"},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		return fmt.Errorf("create development CA %q: %w", dir, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("create development CA %q: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create development CA %q: %w", dir, err)
	}
	if err := writeNew(filepath.Join(dir, RootKeyFile), encode("PRIVATE KEY", keyDER), 0o600); err != nil {
		return fmt.Errorf("create development CA %q: %w", dir, err)
	}
	if err := writeNew(filepath.Join(dir, RootCertFile), encode("CERTIFICATE", der), 0o644); err != nil {
		return fmt.Errorf("create development CA %q: %w", dir, err)
	}
	return nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func writeNew(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
