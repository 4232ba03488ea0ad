package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/identity/ca"
)

var self = identity.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "waypoint"}

// signer is a development CA that can fail.
type signer struct {
	mu    sync.Mutex
	from  identity.Signer
	root  string
	err   error
	calls int
	times []time.Time
}

func newSigner(t testing.TB) *signer {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := ca.CreateDirectory(dir, "td"); err != nil {
		t.Fatal(err)
	}
	from, err := ca.Directory(dir)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(dir, ca.RootCertFile))
	if err != nil {
		t.Fatal(err)
	}
	return &signer{from: from, root: string(root)}
}

func (s *signer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *signer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// Sign implements identity.Signer.
func (s *signer) Sign(ctx context.Context, id identity.Identity, csr []byte, validity time.Duration) ([]string, error) {
	s.mu.Lock()
	s.calls++
	s.times = append(s.times, time.Now())
	err := s.err
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return s.from.Sign(ctx, id, csr, validity)
}

// kept runs f with a running Keeper in a bubble of its own time.
func kept(t *testing.T, cfg func(*signer) Config, f func(t *testing.T, s *signer, k *Keeper)) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		c := cfg(s)
		c.Identity, c.Signer, c.Log, c.Random = self, s, slog.New(slog.DiscardHandler), func() float64 { return 0.5 }
		k := New(c)
		if err := k.Check(); err == nil || !strings.Contains(err.Error(), "not asked for yet") {
			t.Errorf("before Run: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		synctest.Wait()
		f(t, s, k)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func plain(*signer) Config { return Config{Validity: 24 * time.Hour} }

func mustHave(t *testing.T, k *Keeper) *Secrets {
	t.Helper()
	s, _ := k.Current()
	if s == nil {
		t.Fatal("no certificate")
	}
	return s
}

// TestSecretsAreWhatEnvoyNeeds: chain and key belong together and lead to the roots.
func TestSecretsAreWhatEnvoyNeeds(t *testing.T) {
	kept(t, plain, func(t *testing.T, s *signer, k *Keeper) {
		got := mustHave(t, k)
		pair, err := tls.X509KeyPair(got.ChainPEM, got.KeyPEM)
		if err != nil {
			t.Fatal(err)
		}
		if uris := pair.Leaf.URIs; len(uris) != 1 || uris[0].String() != self.String() {
			t.Errorf("certificate of %v", uris)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(got.RootsPEM) {
			t.Fatal("no roots")
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Error(err)
		}
		if err := k.Check(); err != nil {
			t.Error(err)
		}
	})
}

func TestRenewalAtHalfLife(t *testing.T) {
	kept(t, plain, func(t *testing.T, s *signer, k *Keeper) {
		first, changed := k.Current()
		half := first.Certificate.NotBefore.Add(first.Certificate.NotAfter.Sub(first.Certificate.NotBefore) / 2)
		time.Sleep(time.Until(half) - time.Second)
		synctest.Wait()
		select {
		case <-changed:
			t.Fatal("renewed too early")
		default:
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		select {
		case <-changed:
		default:
			t.Fatal("not renewed at half life")
		}
		second := mustHave(t, k)
		if string(second.KeyPEM) == string(first.KeyPEM) {
			t.Error("the key was kept")
		}
		if s.count() != 2 {
			t.Errorf("%d requests, want 2", s.count())
		}
	})
}

// TestOldCertificateOutlivesFailures: it is served until it expires, and only then the proxy says so.
func TestOldCertificateOutlivesFailures(t *testing.T) {
	var results []error
	withHook := func(*signer) Config {
		return Config{Validity: 24 * time.Hour, Fetched: func(_ time.Duration, err error) { results = append(results, err) }}
	}
	kept(t, withHook, func(t *testing.T, s *signer, k *Keeper) {
		first := mustHave(t, k)
		away := errors.New("authority is away")
		s.fail(away)
		time.Sleep(20 * time.Hour)
		synctest.Wait()
		if mustHave(t, k) != first || k.Check() != nil {
			t.Errorf("the old certificate is not in use: %v", k.Check())
		}
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		if err := k.Check(); !errors.Is(err, away) || !strings.Contains(err.Error(), "expired") {
			t.Errorf("after its end: %v", err)
		}
		s.fail(nil)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if err := k.Check(); err != nil {
			t.Errorf("after recovery: %v", err)
		}
		if results[0] != nil || !errors.Is(results[1], away) || results[len(results)-1] != nil {
			t.Errorf("hook was called with %v", results)
		}
	})
}

func TestFirstFailuresAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		s.fail(errors.New("no such pod"))
		k := New(Config{Identity: self, Signer: s, Log: slog.New(slog.DiscardHandler), Random: func() float64 { return 0.5 }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		time.Sleep(time.Second)
		synctest.Wait()
		if err := k.Check(); err == nil || !strings.Contains(err.Error(), "no such pod") {
			t.Errorf("Check: %v", err)
		}
		s.fail(nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if err := k.Check(); err != nil {
			t.Error(err)
		}
		cancel()
		<-done
	})
}

// TestRootsOfTheFile: a published root is trusted at once, one that is withdrawn is forgotten, and garbage changes nothing.
func TestRootsOfTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "root-cert.pem")
	put := func(t *testing.T, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	other := newSigner(t).root
	withFile := func(s *signer) Config {
		put(t, s.root)
		return Config{RootFile: file}
	}
	kept(t, withFile, func(t *testing.T, s *signer, k *Keeper) {
		step := func(text string, want int) {
			t.Helper()
			put(t, text)
			time.Sleep(DefaultRootCheck)
			synctest.Wait()
			if n := strings.Count(string(mustHave(t, k).RootsPEM), "BEGIN CERTIFICATE"); n != want {
				t.Errorf("%d roots, want %d", n, want)
			}
		}
		step(s.root, 1)
		step("# the next one\n"+other+s.root, 2)
		step("garbage", 2)
		step(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})), 2)
		step(strings.Repeat("#", maxRootBytes+1), 2)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		step(other, 2)
		step(s.root, 1)
		if s.count() != 1 {
			t.Errorf("%d certificates were asked for, want 1: roots alone need none", s.count())
		}
	})
}

// TestAnothersCertificateIsNotUsed: whatever istiod signs, it must be for this proxy.
func TestAnothersCertificateIsNotUsed(t *testing.T) {
	kept(t, func(s *signer) Config {
		s.from = forOther{s.from}
		return Config{}
	}, func(t *testing.T, s *signer, k *Keeper) {
		if got, _ := k.Current(); got != nil {
			t.Errorf("certificate of %v is used", got.Certificate.Identity)
		}
		if err := k.Check(); !errors.Is(err, identity.ErrInvalid) {
			t.Errorf("Check: %v", err)
		}
	})
}

type forOther struct{ identity.Signer }

func (f forOther) Sign(ctx context.Context, id identity.Identity, csr []byte, validity time.Duration) ([]string, error) {
	id.ServiceAccount = "other"
	return f.Signer.Sign(ctx, id, csr, validity)
}

func FuzzUnion(f *testing.F) {
	root := newSigner(f).root
	f.Add([]byte(root), []byte("# text\n"+root))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		out, err := union(a, b)
		if err != nil {
			return
		}
		again, err := union(out)
		if err != nil || string(again) != string(out) {
			t.Errorf("%q does not read back: %q, %v", out, again, err)
		}
	})
}
