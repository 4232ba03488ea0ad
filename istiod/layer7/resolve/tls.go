package resolve

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Keys of Secrets and ConfigMaps: those of kubernetes.io/tls, and Istio's generic ones.
var (
	chainKeys = [...]string{"tls.crt", "cert"}
	keyKeys   = [...]string{"tls.key", "key"}
	rootKeys  = [...]string{"ca.crt", "cacert"}
)

// first returns the value of the first key that there is.
func first(data map[string][]byte, keys []string) []byte {
	for _, k := range keys {
		if v := data[k]; len(bytes.TrimSpace(v)) > 0 {
			return v
		}
	}
	return nil
}

// certificateIn reads a certificate with its key and refuses what no client would accept.
func certificateIn(r *index.Reader, ref model.ObjectRef, now time.Time) (*model.Certificate, error) {
	data, ok := r.Data(ref)
	if !ok {
		return nil, fmt.Errorf("%s %q does not exist", ref.Kind, ref.Key)
	}
	chain, key := first(data, chainKeys[:]), first(data, keyKeys[:])
	if chain == nil || key == nil {
		return nil, fmt.Errorf("%s %q has no tls.crt or no tls.key", ref.Kind, ref.Key)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("%s %q holds no certificate with its key: %w", ref.Kind, ref.Key, err)
	}
	leaf := pair.Leaf
	if leaf == nil {
		if leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, fmt.Errorf("%s %q holds no certificate: %w", ref.Kind, ref.Key, err)
		}
	}
	if now.After(leaf.NotAfter) {
		return nil, fmt.Errorf("%s %q: the certificate expired on %s", ref.Kind, ref.Key, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return &model.Certificate{Name: ref.Key.String(), Chain: chain, Key: key}, nil
}

// rootsIn reads certificates of authorities.
func rootsIn(r *index.Reader, ref model.ObjectRef) (string, error) {
	data, ok := r.Data(ref)
	if !ok {
		return "", fmt.Errorf("%s %q does not exist", ref.Kind, ref.Key)
	}
	roots := first(data, rootKeys[:])
	if roots == nil {
		return "", fmt.Errorf("%s %q has no ca.crt", ref.Kind, ref.Key)
	}
	if err := checkRoots(roots); err != nil {
		return "", fmt.Errorf("%s %q: ca.crt: %w", ref.Kind, ref.Key, err)
	}
	return string(roots), nil
}

// checkRoots wants at least one certificate and nothing that is none.
func checkRoots(b []byte) error {
	n := 0
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("read certificate: %w", err)
		}
		n++
	}
	if n == 0 {
		return errors.New("holds no certificate")
	}
	return nil
}
