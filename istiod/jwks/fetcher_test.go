package jwks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// fakeIssuers answers by URL, without a network.
type fakeIssuers struct {
	mu      sync.Mutex
	answers map[string]string // "" hangs until the request ends; absent fails
	asked   map[string]int
	running int
	most    int
}

func (f *fakeIssuers) RoundTrip(r *http.Request) (*http.Response, error) {
	time.Sleep(answerTime)
	f.mu.Lock()
	url := r.URL.String()
	f.asked[url]++
	f.running++
	f.most = max(f.most, f.running)
	body, ok := f.answers[url]
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.running--
		f.mu.Unlock()
	}()
	if !ok {
		return nil, errors.New("refused")
	}
	if body == "" {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (f *fakeIssuers) set(url, body string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[url] = body
}

func (f *fakeIssuers) fail(url string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.answers, url)
}

func (f *fakeIssuers) count(url string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[url]
}

// bubble runs a test in fake time with a running fetcher. changes are what Changed was told.
func bubble(t *testing.T, test func(t *testing.T, f *Fetcher, net *fakeIssuers, changes func() []string)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		net := &fakeIssuers{answers: map[string]string{}, asked: map[string]int{}}
		var mu sync.Mutex
		var told []string
		f := New(Config{Transport: net, Log: slog.New(slog.DiscardHandler), Changed: func(uri, issuer string) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, uri+"|"+issuer)
		}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- f.Run(ctx) }()
		test(t, f, net, func() []string {
			time.Sleep(2 * answerTime)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			out := told
			told = nil
			return out
		})
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
}

// answerTime is what a fetch takes in fake time: until a test waits, nothing has been fetched.
const answerTime = time.Millisecond

const keysURL = "https://issuer.example/keys"

func keySet(kid string) string {
	return fmt.Sprintf(`{"keys":[{"kty":"RSA","kid":%q,"n":%q,"e":"AQAB"}]}`, kid, modulus)
}

// TestKeysFollowTheIssuer: new keys are found within a refresh, and only a change is told of.
func TestKeysFollowTheIssuer(t *testing.T) {
	bubble(t, func(t *testing.T, f *Fetcher, net *fakeIssuers, changes func() []string) {
		net.set(keysURL, keySet("one"))
		if keys, err := f.Get(keysURL, "i"); keys != model.UnusableJWKS || !errors.Is(err, ErrPending) {
			t.Errorf("before any fetch: %q (%v)", keys, err)
		}
		if got := f.Condition(keysURL, "i"); got.OK || got.Reason != ReasonPending {
			t.Errorf("before any fetch: %+v", got)
		}
		if diff := cmp.Diff([]string{keysURL + "|i"}, changes()); diff != "" {
			t.Errorf("first keys: %s", diff)
		}
		if keys, err := f.Get(keysURL, "i"); keys != keySet("one") || err != nil {
			t.Errorf("got %q (%v)", keys, err)
		}
		time.Sleep(3 * refreshEvery)
		if got := changes(); len(got) != 0 || net.count(keysURL) < 3 {
			t.Errorf("same keys, asked %d times, told %q", net.count(keysURL), got)
		}
		net.set(keysURL, keySet("two"))
		time.Sleep(2 * refreshEvery)
		if diff := cmp.Diff([]string{keysURL + "|i"}, changes()); diff != "" {
			t.Errorf("new keys: %s", diff)
		}
		if keys, err := f.Get(keysURL, "i"); keys != keySet("two") || err != nil {
			t.Errorf("got %q (%v)", keys, err)
		}
	})
}

// TestLastKeysStay: an issuer that is away takes no keys away; one that never was there gives none.
func TestLastKeysStay(t *testing.T) {
	bubble(t, func(t *testing.T, f *Fetcher, net *fakeIssuers, changes func() []string) {
		net.set(keysURL, keySet("one"))
		_, _ = f.Get(keysURL, "i")
		_, _ = f.Get("https://absent.example/keys", "i")
		_ = changes()
		keys, err := f.Get("https://absent.example/keys", "i")
		if keys != model.UnusableJWKS || err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("an absent issuer: %q (%v)", keys, err)
		}
		if got := f.Condition("https://absent.example/keys", "i"); got.OK || got.Reason != ReasonFailed {
			t.Errorf("an absent issuer: %+v", got)
		}
		net.fail(keysURL)
		time.Sleep(2 * refreshEvery)
		if keys, err = f.Get(keysURL, "i"); keys != keySet("one") || err == nil {
			t.Errorf("issuer away: %q (%v)", keys, err)
		}
		if got := f.Condition(keysURL, "i"); !got.OK || got.Reason != ReasonKept {
			t.Errorf("issuer away: %+v", got)
		}
		net.set(keysURL, `{"keys":[]}`)
		time.Sleep(2 * lastRetry)
		if keys, err = f.Get(keysURL, "i"); keys != keySet("one") || err == nil {
			t.Errorf("issuer without keys: %q (%v)", keys, err)
		}
		net.set(keysURL, keySet("one"))
		time.Sleep(2 * lastRetry)
		if keys, err = f.Get(keysURL, "i"); keys != keySet("one") || err != nil {
			t.Errorf("issuer back: %q (%v)", keys, err)
		}
		if got := f.Condition(keysURL, "i"); !got.OK || got.Reason != ReasonFetched {
			t.Errorf("issuer back: %+v", got)
		}
	})
}

// TestBackoff: an issuer that fails is asked less and less often, and never more rarely than lastRetry.
func TestBackoff(t *testing.T) {
	bubble(t, func(t *testing.T, f *Fetcher, net *fakeIssuers, changes func() []string) {
		_, _ = f.Get(keysURL, "i")
		if got := changes(); len(got) != 1 {
			t.Errorf("first failure: told %q", got)
		}
		time.Sleep(10 * time.Second) // 1 + 2 + 4 s, then 8
		if got := changes(); len(got) != 0 || net.count(keysURL) != 4 {
			t.Errorf("after 10 s: asked %d times, told %q", net.count(keysURL), got)
		}
		time.Sleep(time.Hour)
		before := net.count(keysURL)
		time.Sleep(10 * lastRetry)
		if got := net.count(keysURL) - before; got != 10 {
			t.Errorf("asked %d times in ten of the longest pauses", got)
		}
	})
}

// TestSlowIssuers: issuers that never answer hold back neither others nor more than their share of fetches.
func TestSlowIssuers(t *testing.T) {
	bubble(t, func(t *testing.T, f *Fetcher, net *fakeIssuers, changes func() []string) {
		for i := range 10 * maxConcurrent {
			url := fmt.Sprintf("https://slow-%d.example/", i)
			net.set(url, "")
			_, _ = f.Get(url, "i")
		}
		time.Sleep(11 * fetchTimeout)
		net.mu.Lock()
		most := net.most
		net.mu.Unlock()
		if most != maxConcurrent {
			t.Errorf("%d fetches at a time, want %d", most, maxConcurrent)
		}
		if keys, err := f.Get("https://slow-3.example/", "i"); keys != model.UnusableJWKS || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a slow issuer: %q (%v)", keys, err)
		}
		net.set(keysURL, keySet("one"))
		_, _ = f.Get(keysURL, "i")
		time.Sleep(fetchTimeout)
		_ = changes()
		if keys, err := f.Get(keysURL, "i"); keys != keySet("one") || err != nil {
			t.Errorf("a new issuer after one timeout of the others: %q (%v)", keys, err)
		}
	})
}

// TestForget: nobody is asked for keys that nobody wants, and a set that two want stays for the other.
func TestForget(t *testing.T) {
	bubble(t, func(t *testing.T, f *Fetcher, net *fakeIssuers, changes func() []string) {
		net.set(keysURL, keySet("one"))
		waiting := 0 // the second comes before the keys do, or after
		for _, issuer := range []string{"a", "b"} {
			if _, err := f.Get(keysURL, issuer); errors.Is(err, ErrPending) {
				waiting++
			}
		}
		if got := changes(); len(got) != waiting || waiting == 0 || net.count(keysURL) != 1 {
			t.Errorf("two issuers, one URI: asked %d times, %d wait, told %q", net.count(keysURL), waiting, got)
		}
		f.Forget(keysURL, "a")
		if keys, _ := f.Get(keysURL, "b"); keys != keySet("one") {
			t.Errorf("the other's keys: %q", keys)
		}
		f.Forget(keysURL, "b")
		f.Forget(keysURL, "b")
		before := net.count(keysURL)
		time.Sleep(3 * refreshEvery)
		if got := net.count(keysURL); got != before {
			t.Errorf("asked %d times more", got-before)
		}
		if got := f.Condition(keysURL, "b"); got.OK || got.Reason != ReasonUnknownSet {
			t.Errorf("got %+v", got)
		}
		// Forgotten while it is being fetched: the answer is nobody's.
		net.set("https://slow.example/", "")
		_, _ = f.Get("https://slow.example/", "c")
		synctest.Wait()
		f.Forget("https://slow.example/", "c")
		time.Sleep(2 * fetchTimeout)
		if got := changes(); len(got) != 0 {
			t.Errorf("told %q", got)
		}
	})
}

// TestBound: beyond the bound there are no keys, which is said, until others are forgotten.
func TestBound(t *testing.T) {
	f := New(Config{Log: slog.New(slog.DiscardHandler)})
	url := func(i int) string { return fmt.Sprintf("https://i%d.example/", i) }
	for i := range maxSets {
		if _, err := f.Get(url(i), ""); !errors.Is(err, ErrPending) {
			t.Fatalf("set %d: %v", i, err)
		}
	}
	if keys, err := f.Get(keysURL, ""); keys != model.UnusableJWKS || !errors.Is(err, ErrTooMany) {
		t.Errorf("one too many: %q (%v)", keys, err)
	}
	if got := f.Condition(keysURL, ""); got.OK || got.Reason != ReasonTooMany {
		t.Errorf("got %+v", got)
	}
	f.Forget(url(7), "")
	if _, err := f.Get(keysURL, ""); !errors.Is(err, ErrPending) {
		t.Errorf("after one was forgotten: %v", err)
	}
}

// TestBadSource: what cannot be fetched is not tried, and takes no place.
func TestBadSource(t *testing.T) {
	f := New(Config{})
	for _, in := range [][2]string{{"file:///etc/passwd", "i"}, {"", "accounts"}, {"", ""}} {
		if keys, err := f.Get(in[0], in[1]); keys != model.UnusableJWKS || err == nil || errors.Is(err, ErrPending) {
			t.Errorf("%q: %q (%v)", in, keys, err)
		}
	}
	if len(f.sets) != 0 {
		t.Errorf("%d sets", len(f.sets))
	}
}
