package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/identity/rotate"
)

func idOf(n int) Identity { return Identity{"td", "shop", fmt.Sprintf("app-%d", n)} }

// managed runs f with a running Manager in a bubble of its own time.
func managed(t *testing.T, f func(t *testing.T, ca *testCA, m *Manager)) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		m := NewManager(ManagerConfig{Signer: ca, Validity: 24 * time.Hour, Log: slog.New(slog.DiscardHandler), Random: func() float64 { return 0.5 }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		synctest.Wait()
		f(t, ca, m)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func mustGet(t *testing.T, m *Manager, id Identity) *Certificate {
	t.Helper()
	c, err := m.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func onlyState(t *testing.T, m *Manager) CertificateStatus {
	t.Helper()
	l := m.List()
	if len(l) != 1 {
		t.Fatalf("%d identities, want 1", len(l))
	}
	return l[0]
}

func TestGetSharesOneFetch(t *testing.T) {
	managed(t, func(t *testing.T, ca *testCA, m *Manager) {
		ca.set(func(ca *testCA) { ca.took = time.Second })
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if c, err := m.Get(t.Context(), idOf(1)); err != nil || c.Identity != idOf(1) {
					t.Errorf("Get = %v, %v", c, err)
				}
			})
		}
		wg.Wait()
		mustGet(t, m, idOf(1))
		if calls, _ := ca.counts(); calls != 1 {
			t.Errorf("%d requests, want 1", calls)
		}
	})
}

func TestGetIsWarmWithoutAllocation(t *testing.T) {
	managed(t, func(t *testing.T, _ *testCA, m *Manager) {
		m.Acquire(idOf(1))
		mustGet(t, m, idOf(1))
		m.mu.Lock() // a warm Get needs no lock
		defer m.mu.Unlock()
		if n := testing.AllocsPerRun(100, func() { mustGet(t, m, idOf(1)) }); n > 1 {
			t.Errorf("a warm Get allocates %v times", n)
		}
	})
}

func TestFetchesAreBounded(t *testing.T) {
	managed(t, func(t *testing.T, ca *testCA, m *Manager) {
		ca.set(func(ca *testCA) { ca.took = time.Second })
		for i := range 30 {
			m.Acquire(idOf(i))
		}
		began := time.Now()
		for i := range 30 {
			mustGet(t, m, idOf(i))
		}
		if calls, most := ca.counts(); calls != 30 || most != maxFetches {
			t.Errorf("%d requests, at most %d at once; want 30 and %d", calls, most, maxFetches)
		}
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("took %v, want four rounds of a second", took)
		}
	})
}

func TestRenewalAtHalfLife(t *testing.T) {
	managed(t, func(t *testing.T, ca *testCA, m *Manager) {
		m.Acquire(idOf(1))
		first := mustGet(t, m, idOf(1))
		if want := first.NotBefore.Add(first.NotAfter.Sub(first.NotBefore) / 2); !onlyState(t, m).RenewAt.Equal(want) {
			t.Errorf("renewal at %v, want %v", onlyState(t, m).RenewAt, want)
		}
		time.Sleep(time.Until(onlyState(t, m).RenewAt) - time.Second)
		synctest.Wait()
		if mustGet(t, m, idOf(1)) != first {
			t.Error("renewed too early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		second := mustGet(t, m, idOf(1))
		if second == first || !second.NotAfter.After(first.NotAfter) {
			t.Error("not renewed at half life")
		}
		if calls, _ := ca.counts(); calls != 2 {
			t.Errorf("%d requests, want 2", calls)
		}
	})
}

// TestOldCertificateOutlivesFailures: while renewal fails the old certificate serves
// until it expires, retries never stop, and the first success ends it.
func TestOldCertificateOutlivesFailures(t *testing.T) {
	managed(t, func(t *testing.T, ca *testCA, m *Manager) {
		m.Acquire(idOf(1))
		first := mustGet(t, m, idOf(1))
		ca.set(func(ca *testCA) { ca.err = errors.New("authority is away") })
		time.Sleep(20 * time.Hour)
		synctest.Wait()
		if mustGet(t, m, idOf(1)) != first {
			t.Error("the old certificate is not served")
		}
		if s := onlyState(t, m); s.State != StateStale || s.Failures == 0 || !strings.Contains(s.LastError, "authority is away") {
			t.Errorf("state %+v, want Stale with the failure", s)
		}
		// 8 hours of failures: the wait has grown to its limit and not further.
		calls, _ := ca.counts()
		if lowest, highest := 8*3600/150, 8*3600/150+12; calls < lowest || calls > highest {
			t.Errorf("%d requests in 8 hours of failure, want %d to %d", calls, lowest, highest)
		}
		time.Sleep(time.Until(first.NotAfter))
		synctest.Wait()
		if c, err := m.Get(t.Context(), idOf(1)); err == nil || !strings.Contains(err.Error(), "authority is away") {
			t.Errorf("after expiry Get = %v, %v; want the failure", c, err)
		}
		if s := onlyState(t, m); s.State != StateUnavailable {
			t.Errorf("state %v, want Unavailable", s.State)
		}
		ca.set(func(ca *testCA) { ca.err = nil })
		time.Sleep(rotate.MaxRetry)
		synctest.Wait()
		mustGet(t, m, idOf(1))
		if s := onlyState(t, m); s.State != StateAvailable || s.Failures != 0 || s.LastError != "" {
			t.Errorf("state %+v, want Available", s)
		}
	})
}

// TestGetSitsOutFirstFailures: the control plane may learn of a pod a moment later
// than the node.
func TestGetSitsOutFirstFailures(t *testing.T) {
	managed(t, func(t *testing.T, ca *testCA, m *Manager) {
		ca.set(func(ca *testCA) { ca.err = errors.New("no such pod") })
		m.Acquire(idOf(1))
		time.AfterFunc(time.Second, func() { ca.set(func(ca *testCA) { ca.err = nil }) })
		began := time.Now()
		mustGet(t, m, idOf(1))
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestGetReportsLastingFailure(t *testing.T) {
	managed(t, func(t *testing.T, ca *testCA, m *Manager) {
		refusal := errors.New("not yours")
		ca.set(func(ca *testCA) { ca.err = refusal })
		for _, acquired := range []bool{false, true} {
			if acquired {
				m.Acquire(idOf(1))
			}
			if _, err := m.Get(t.Context(), idOf(1)); !errors.Is(err, refusal) {
				t.Errorf("acquired %v: Get: %v, want the refusal", acquired, err)
			}
		}
		began := time.Now()
		if _, err := m.Get(t.Context(), idOf(1)); !errors.Is(err, refusal) || time.Since(began) != 0 {
			t.Errorf("Get: %v after %v, want the refusal at once", err, time.Since(began))
		}
	})
}

func TestGetEndsWithItsContext(t *testing.T) {
	managed(t, func(t *testing.T, ca *testCA, m *Manager) {
		ca.set(func(ca *testCA) { ca.hold = make(chan struct{}) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.Get(ctx, idOf(1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get: %v, want the deadline", err)
		}
	})
}

// TestHangingAuthorityFreesItsSlot: a request without an answer ends by itself.
func TestHangingAuthorityFreesItsSlot(t *testing.T) {
	managed(t, func(t *testing.T, ca *testCA, m *Manager) {
		ca.set(func(ca *testCA) { ca.hold = make(chan struct{}) })
		for i := range maxFetches {
			m.Acquire(idOf(i))
		}
		synctest.Wait()
		ca.set(func(ca *testCA) { ca.hold = nil })
		began := time.Now()
		mustGet(t, m, idOf(100))
		if took := time.Since(began); took > fetchTimeout+time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// TestFirstCertificatesGoBeforeRenewals: while all slots are taken, who has nothing
// comes first.
func TestFirstCertificatesGoBeforeRenewals(t *testing.T) {
	managed(t, func(t *testing.T, ca *testCA, m *Manager) {
		for i := range 3 * maxFetches {
			m.Acquire(idOf(i))
			mustGet(t, m, idOf(i))
		}
		ca.set(func(ca *testCA) { ca.took = 10 * time.Second })
		time.Sleep(time.Until(m.List()[0].RenewAt) + time.Second) // all renew at once
		synctest.Wait()
		began := time.Now()
		mustGet(t, m, idOf(1000))
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("a first certificate waited %v behind renewals", took)
		}
	})
}

func TestReleaseForgets(t *testing.T) {
	managed(t, func(t *testing.T, ca *testCA, m *Manager) {
		m.Release(idOf(9)) // never acquired
		m.Acquire(idOf(1))
		m.Acquire(idOf(1))
		mustGet(t, m, idOf(1))
		m.Release(idOf(1))
		if s := onlyState(t, m); s.References != 1 {
			t.Errorf("%d references, want 1", s.References)
		}
		m.Release(idOf(1))
		if l := m.List(); len(l) != 0 {
			t.Errorf("still known: %v", l)
		}
		time.Sleep(48 * time.Hour)
		synctest.Wait()
		if calls, _ := ca.counts(); calls != 1 {
			t.Errorf("%d requests, want 1: nobody wants it any more", calls)
		}
	})
}

// TestUnacquiredIsDroppedAtRenewal: who only calls Get leaves nothing behind for ever.
func TestUnacquiredIsDroppedAtRenewal(t *testing.T) {
	managed(t, func(t *testing.T, ca *testCA, m *Manager) {
		mustGet(t, m, idOf(1))
		time.Sleep(13 * time.Hour)
		synctest.Wait()
		if calls, _ := ca.counts(); calls != 1 || len(m.List()) != 0 {
			t.Errorf("%d requests, %d identities; want 1 and 0", calls, len(m.List()))
		}
	})
}

func TestClosedManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		ca.hold = make(chan struct{})
		m := NewManager(ManagerConfig{Signer: ca, Log: slog.New(slog.DiscardHandler)})
		m.Acquire(idOf(1)) // before Run
		waiting := make(chan error, 1)
		go func() { _, err := m.Get(t.Context(), idOf(1)); waiting <- err }()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		synctest.Wait()
		if calls, _ := ca.counts(); calls != 1 {
			t.Errorf("%d requests, want 1", calls)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := <-waiting; !errors.Is(err, ErrClosed) {
			t.Errorf("waiting Get: %v, want ErrClosed", err)
		}
		if _, err := m.Get(t.Context(), idOf(2)); !errors.Is(err, ErrClosed) {
			t.Errorf("Get: %v, want ErrClosed", err)
		}
		m.Acquire(idOf(2))
		m.Release(idOf(2))
		if err := m.Run(t.Context()); err == nil {
			t.Error("a second Run is no error")
		}
	})
}

// TestAnswersAreChecked: a certificate that is not what was asked for is not used.
func TestAnswersAreChecked(t *testing.T) {
	otherKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uris := func(list ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.URIs = nil
			for _, s := range list {
				u, err := url.Parse(s)
				if err != nil {
					t.Error(err)
				}
				c.URIs = append(c.URIs, u)
			}
		}
	}
	for name, tc := range map[string]struct {
		edit  func(*x509.Certificate)
		chain func(t *testing.T, ca *testCA) func([]string) []string
		want  string
	}{
		"another identity":  {edit: uris("spiffe://td/ns/shop/sa/other"), want: "it is for"},
		"one identity more": {edit: uris("spiffe://td/ns/shop/sa/app-1", "spiffe://td/ns/shop/sa/other"), want: "2 URI SANs"},
		"no identity":       {edit: uris(), want: "0 URI SANs"},
		"expired":           {edit: func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Second) }, want: "expired"},
		"for servers only":  {edit: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, want: "key usage"},
		"empty answer":      {chain: func(*testing.T, *testCA) func([]string) []string { return func([]string) []string { return nil } }, want: "want leaf and roots"},
		"no roots":          {chain: func(*testing.T, *testCA) func([]string) []string { return func(c []string) []string { return c[:1] } }, want: "want leaf and roots"},
		"roots are garbage": {chain: func(*testing.T, *testCA) func([]string) []string {
			return func(c []string) []string { return []string{c[0], "garbage"} }
		}, want: "none found"},
		"leaf is garbage": {chain: func(*testing.T, *testCA) func([]string) []string {
			return func(c []string) []string { return []string{"-----BEGIN", c[1]} }
		}, want: "broken PEM"},
		"leaf is a key": {chain: func(*testing.T, *testCA) func([]string) []string {
			return func(c []string) []string {
				return []string{strings.ReplaceAll(c[0], "CERTIFICATE", "PRIVATE KEY"), c[1]}
			}
		}, want: "unexpected PEM block"},
		"another's roots": {chain: func(t *testing.T, _ *testCA) func([]string) []string {
			other := newCA(t)
			return func(c []string) []string { return []string{c[0], other.pem()} }
		}, want: "unknown authority"},
		"for another's key": {chain: func(t *testing.T, ca *testCA) func([]string) []string {
			der, err := ca.leaf(otherKey.Public(), time.Hour, []string{idOf(1).String()}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return func(c []string) []string { return []string{pemOf(der), c[1]} }
		}, want: "another key"},
	} {
		t.Run(name, func(t *testing.T) {
			managed(t, func(t *testing.T, ca *testCA, m *Manager) {
				ca.set(func(ca *testCA) {
					ca.edit = tc.edit
					if tc.chain != nil {
						ca.chain = tc.chain(t, ca)
					}
				})
				if _, err := m.Get(t.Context(), idOf(1)); err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("Get: %v, want an error with %q", err, tc.want)
				}
			})
		})
	}
}

// TestRootBundle: the last element may hold several roots, and text around them.
func TestRootBundle(t *testing.T) {
	managed(t, func(t *testing.T, ca *testCA, m *Manager) {
		other := newCA(t)
		ca.set(func(ca *testCA) {
			ca.chain = func(c []string) []string {
				return []string{c[0], "# old\n" + other.pem() + "# new\n" + c[1] + "\n# end\n"}
			}
		})
		c := mustGet(t, m, idOf(1))
		for _, from := range []*testCA{ca, other} {
			if err := verifyChain([]*x509.Certificate{mustLeaf(t, from)}, c.Roots, x509.ExtKeyUsageClientAuth); err != nil {
				t.Error(err)
			}
		}
	})
}

func mustLeaf(t *testing.T, ca *testCA) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(ca.issue(t, nil, webURI).TLS.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFetchedHook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		ca.took = time.Second
		type call struct {
			id   Identity
			took time.Duration
			err  error
		}
		calls := make(chan call, 10)
		m := NewManager(ManagerConfig{Signer: ca, Log: slog.New(slog.DiscardHandler), Metrics: Hooks{
			Fetched: func(id Identity, took time.Duration, err error) { calls <- call{id, took, err} },
		}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		mustGet(t, m, idOf(1))
		if got, want := <-calls, (call{idOf(1), time.Second, nil}); got != want {
			t.Errorf("hook called with %+v, want %+v", got, want)
		}
		cancel()
		<-done
	})
}

func FuzzNewCertificate(f *testing.F) {
	ca := newCA(f)
	key, _, err := NewRequest(idOf(1))
	if err != nil {
		f.Fatal(err)
	}
	der, err := ca.leaf(key.Public(), time.Hour, []string{idOf(1).String()}, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pemOf(der), ca.pem())
	f.Add("", "")
	f.Fuzz(func(t *testing.T, leaf, roots string) {
		c, err := NewCertificate(idOf(1), key, []string{leaf, roots})
		if err == nil && (c.Identity != idOf(1) || !key.PublicKey.Equal(c.TLS.Leaf.PublicKey)) {
			t.Fatalf("accepted %+v", c)
		}
	})
}
