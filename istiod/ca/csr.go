package ca

import (
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// maxCSR bounds a request, in bytes: RSA 8192 with generous attributes.
const maxCSR = 16 << 10

// parseCSR reads the public key of a request in PEM and checks that the sender
// has its private half. Names and extensions in it are not looked at.
func parseCSR(s string) (crypto.PublicKey, error) {
	if len(s) > maxCSR {
		return nil, fmt.Errorf("read certificate request: %d bytes are more than %d", len(s), maxCSR)
	}
	block, _ := pem.Decode([]byte(s))
	if block == nil {
		return nil, errors.New("read certificate request: it is not PEM")
	}
	if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("read certificate request: PEM block is a %q", block.Type)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read certificate request: %w", err)
	}
	// Before the signature, which takes time in proportion to the key.
	if err := checkPublicKey(csr.PublicKey); err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check certificate request: %w", err)
	}
	return csr.PublicKey, nil
}

func isEd25519(pub crypto.PublicKey) bool {
	_, ok := pub.(ed25519.PublicKey)
	return ok
}
