package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/identity"
)

var quiet = slog.New(slog.DiscardHandler)

func TestReplicasShareOneGeneratedRoot(t *testing.T) {
	c := fake.NewClientset()
	roots := make([]string, 8)
	var wg sync.WaitGroup
	for i := range roots {
		wg.Go(func() {
			b, err := FromSecrets(t.Context(), c, "istio-system", td, quiet)
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = b.RootsPEM()
		})
	}
	wg.Wait()
	for _, r := range roots {
		if r != roots[0] {
			t.Fatal("two replicas have different roots")
		}
	}
	s, err := c.CoreV1().Secrets("istio-system").Get(t.Context(), ports.GeneratedCASecret, metav1.GetOptions{})
	if err != nil || s.Type != secretType || len(s.Data[keyKey]) == 0 {
		t.Errorf("secret %v, %v", s, err)
	}
}

// intermediate makes an RSA root and an RSA intermediate under it, as a plugged-in authority often is.
func intermediate(t *testing.T) (root, cert, key []byte) {
	t.Helper()
	now := time.Now()
	tmpl := func(name string) *x509.Certificate {
		serial, err := newSerial()
		if err != nil {
			t.Fatal(err)
		}
		return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour),
			KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true}
	}
	rootKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, tmpl("root"), tmpl("root"), rootKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	rootCert, err := x509.ParseCertificate(rootDER)
	if err != nil {
		t.Fatal(err)
	}
	interKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	interDER, err := x509.CreateCertificate(rand.Reader, tmpl("intermediate"), rootCert, interKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	return pemBlock("CERTIFICATE", rootDER), pemBlock("CERTIFICATE", interDER), pemBlock("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(interKey))
}

func TestPluggedInAuthoritySigns(t *testing.T) {
	root, cert, key := intermediate(t)
	c := fake.NewClientset(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: ports.CASecret, Namespace: "istio-system"},
		Data:       map[string][]byte{keyCert: cert, keyKey: key, keyChain: append(bytes.Clone(cert), root...), keyRoots: root},
	})
	b, err := FromSecrets(t.Context(), c, "istio-system", td, quiet)
	if err != nil {
		t.Fatal(err)
	}
	tmpl, err := workloadTemplate(identity.Identity{TrustDomain: td, Namespace: "a", ServiceAccount: "b"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	chain, err := NewAuthority(b).Sign(tmpl, newKey(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	// Leaf, the intermediate, the roots: the root must not be in the chain too.
	if len(chain) != 3 || chain[1] != string(cert) || chain[2] != string(root) {
		t.Fatalf("chain of %d: %q", len(chain), chain)
	}
	leaf, err := readCerts("leaf", []byte(chain[0]))
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	between.AppendCertsFromPEM([]byte(chain[1]))
	if _, err := leaf[0].Verify(x509.VerifyOptions{Roots: b.Roots(), Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Error(err)
	}
}

func TestUnusableAuthorities(t *testing.T) {
	root, cert, key := intermediate(t)
	_, otherCert, otherKey := intermediate(t)
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leafTmpl, err := leafTemplate(time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leafTmpl, leafTmpl, leafKey.Public(), leafKey)
	if err != nil {
		t.Fatal(err)
	}
	leafKeyDER, err := x509.MarshalECPrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name                   string
		cert, key, chain, root []byte
		at                     time.Time
		want                   string
	}{
		{"nothing", nil, nil, nil, nil, time.Now(), "ca-cert.pem"},
		{"no key", cert, nil, nil, root, time.Now(), "ca-key.pem"},
		{"garbage key", cert, pemBlock("EC PRIVATE KEY", []byte("x")), nil, root, time.Now(), "ca-key.pem"},
		{"key of another", cert, otherKey, nil, root, time.Now(), "not the key"},
		{"not an authority", pemBlock("CERTIFICATE", leafDER), pemBlock("EC PRIVATE KEY", leafKeyDER), nil, nil, time.Now(), "not the certificate of an authority"},
		{"root of another", otherCert, otherKey, nil, root, time.Now(), "verify ca-cert.pem"},
		{"expired", cert, key, nil, root, time.Now().Add(100 * time.Hour), "expired"},
		{"garbage chain", cert, key, []byte("x"), root, time.Now(), "cert-chain.pem"},
		{"garbage root", cert, key, nil, []byte("x"), time.Now(), "root-cert.pem"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewBundle(tt.cert, tt.key, tt.chain, tt.root, tt.at)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestBadSecretIsNotReplaced(t *testing.T) {
	c := fake.NewClientset(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: ports.CASecret, Namespace: "istio-system"},
		Data:       map[string][]byte{keyCert: []byte("x")},
	})
	// It must fail at once: waiting would not make it good, and a root of our own would split the mesh.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := AwaitSecrets(ctx, c, "istio-system", td, quiet); err == nil || ctx.Err() != nil {
		t.Errorf("got %v", err)
	}
	if _, err := c.CoreV1().Secrets("istio-system").Get(t.Context(), ports.GeneratedCASecret, metav1.GetOptions{}); err == nil {
		t.Error("made a root beside the plugged-in authority")
	}
}

func TestDirectoryKeepsItsAuthority(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := FromDirectory(dir, td)
	if err != nil {
		t.Fatal(err)
	}
	b, err := FromDirectory(dir, td)
	if err != nil || a.RootsPEM() != b.RootsPEM() {
		t.Errorf("another root the second time: %v", err)
	}
	st, err := os.Stat(filepath.Join(dir, keyKey))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", st.Mode(), err)
	}
}

func TestServingCertificateIsRenewed(t *testing.T) {
	b, err := FromDirectory("", td)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServing(NewAuthority(b), []string{ports.IstiodServerName}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	first := s.current.Load().Leaf
	if err := first.VerifyHostname(ports.IstiodServerName); err != nil {
		t.Error(err)
	}
	if half := first.NotBefore.Add(first.NotAfter.Sub(first.NotBefore) / 2); !s.renewAt().Equal(half) {
		t.Errorf("renewed at %s, want %s", s.renewAt(), half)
	}
	if err := s.renew(time.Now()); err != nil {
		t.Fatal(err)
	}
	if s.current.Load().Leaf.SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Error("the same certificate")
	}
}
