package jwks

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	// refreshEvery is how old keys get before they are fetched again. Issuers publish a new key days before they sign
	// with it; 20 minutes is also what Istio does.
	refreshEvery = 20 * time.Minute
	// refreshJitter is the share by which that varies, so that a thousand sets are not fetched in one second.
	refreshJitter = 0.1
	// firstRetry after a failure; each further one doubles it, up to lastRetry.
	firstRetry = time.Second
	lastRetry  = 2 * time.Minute
	// maxSets bounds memory (1,000 sets of at most 1 MiB) and the load on issuers. A large installation has tens.
	maxSets = 1000
	// maxConcurrent fetches at a time: issuers that do not answer hold one each for fetchTimeout.
	maxConcurrent = 8
	// maxIdle connections are kept for no longer than idleTimeout: a refresh is far away.
	maxIdle     = 2
	idleTimeout = 10 * time.Second
)

// Condition type and reasons that a fetcher gives for the status of a policy.
const (
	ConditionKeys    = "KeysResolved"
	ReasonFetched    = "Fetched"
	ReasonPending    = "Pending"
	ReasonFailed     = "FetchFailed"
	ReasonKept       = "LastKeysKept"
	ReasonTooMany    = "TooManyKeySets"
	ReasonUnknownSet = "NotRequested"
)

// Config of a Fetcher.
type Config struct {
	// Changed is called after keys changed or, with no keys yet, after the error did; Get then gives the new ones. It is
	// called from Run, one call at a time, without locks held; arguments are those of Get.
	Changed func(uri, issuer string)
	// Log receives what goes wrong; nil is slog.Default.
	Log *slog.Logger
	// Transport carries requests; nil is one of the fetcher's own that trusts the system's roots and honours proxy variables.
	Transport http.RoundTripper
}

// source is where keys come from: a URI, or an issuer to discover it from.
type source struct{ uri, issuer string }

func sourceOf(uri, issuer string) source {
	if uri != "" {
		return source{uri: uri}
	}
	return source{issuer: issuer}
}

// set is what is known of a source.
type set struct {
	keys     string // "" until the first success
	err      error  // of the last fetch
	failures int
	due      time.Time // zero is at once
	running  bool
	// issuers are those that callers named beside a URI; Changed is called for each.
	issuers map[string]bool
}

// Fetcher keeps key sets. Its methods may be called at any time, from any goroutine.
type Fetcher struct {
	cfg    Config
	log    *slog.Logger
	client *http.Client
	own    *http.Transport
	wake   chan struct{}

	mu   sync.Mutex
	sets map[source]*set
}

// New makes a fetcher that does nothing until Run.
func New(cfg Config) *Fetcher {
	f := &Fetcher{cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1), sets: map[source]*set{}}
	if f.log == nil {
		f.log = slog.Default()
	}
	if cfg.Transport == nil {
		f.own = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: fetchTimeout}).DialContext,
			TLSHandshakeTimeout:   fetchTimeout,
			ResponseHeaderTimeout: fetchTimeout,
			MaxIdleConns:          maxIdle,
			IdleConnTimeout:       idleTimeout,
			MaxConnsPerHost:       maxConcurrent,
			ForceAttemptHTTP2:     true,
		}
		cfg.Transport = f.own
	}
	f.client = client(cfg.Transport)
	return f
}

// Get returns the keys that are known now, never waits, and from then on keeps them fresh. Keys are usable even with an
// error, which is that of the last fetch: without any success they are model.UnusableJWKS, and the error is ErrPending
// until the first fetch ended.
func (f *Fetcher) Get(uri, issuer string) (keys string, err error) {
	key := sourceOf(uri, issuer)
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.sets[key]
	if !ok {
		if err := CheckURL(key.uri + key.issuer); err != nil {
			return model.UnusableJWKS, err
		}
		if len(f.sets) >= maxSets {
			return model.UnusableJWKS, ErrTooMany
		}
		s = &set{err: ErrPending, issuers: map[string]bool{}}
		f.sets[key] = s
		f.nudge()
	}
	if len(s.issuers) < maxSets {
		s.issuers[issuer] = true
	}
	if s.keys == "" {
		return model.UnusableJWKS, s.err
	}
	return s.keys, s.err
}

// Forget drops a set that Get was called for with the same arguments. A set that two issuers share stays until both are forgotten.
func (f *Fetcher) Forget(uri, issuer string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := sourceOf(uri, issuer)
	s, ok := f.sets[key]
	if !ok {
		return
	}
	delete(s.issuers, issuer)
	if len(s.issuers) == 0 {
		delete(f.sets, key)
	}
}

// Condition says how it stands with a set, for the status of the policies that use it. It registers nothing.
func (f *Fetcher) Condition(uri, issuer string) model.Condition {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := model.Condition{Type: ConditionKeys}
	s, ok := f.sets[sourceOf(uri, issuer)]
	switch {
	case !ok && len(f.sets) >= maxSets:
		c.Reason, c.Message = ReasonTooMany, ErrTooMany.Error()
	case !ok:
		c.Reason, c.Message = ReasonUnknownSet, "nobody asked for these keys"
	case s.err == nil:
		c.Reason, c.Message, c.OK = ReasonFetched, "keys are fresh", true
	case errors.Is(s.err, ErrPending):
		c.Reason, c.Message = ReasonPending, s.err.Error()
	case s.keys != "":
		c.Reason, c.Message, c.OK = ReasonKept, "the last keys are used: "+s.err.Error(), true
	default:
		c.Reason, c.Message = ReasonFailed, "tokens are refused: "+s.err.Error()
	}
	return c
}

func (f *Fetcher) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// result of one fetch.
type result struct {
	source source
	set    *set
	keys   string
	err    error
}

// Run fetches until ctx ends, and returns when its last goroutine has.
func (f *Fetcher) Run(ctx context.Context) error {
	results := make(chan result)
	running := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait := time.Duration(-1)
		if ctx.Err() == nil {
			var start []result
			start, wait = f.due(maxConcurrent - running)
			for _, r := range start {
				running++
				go func() {
					r.keys, r.err = fetch(ctx, f.client, r.source)
					results <- r
				}()
			}
		} else if running == 0 {
			if f.own != nil {
				f.own.CloseIdleConnections()
			}
			return nil
		}
		timer.Stop()
		if wait >= 0 {
			timer.Reset(wait)
		}
		done := ctx.Done()
		if ctx.Err() != nil {
			done = nil // only the goroutines are still to be waited for
		}
		select {
		case <-done:
		case <-f.wake:
		case <-timer.C:
		case r := <-results:
			running--
			if ctx.Err() == nil {
				f.finish(r)
			}
		}
	}
}

// due marks up to n sets whose time has come as running, those that wait longest first, so that issuers that do not answer
// cannot keep new ones waiting. It tells how long until the next set is due; below zero if none is.
func (f *Fetcher) due(n int) (start []result, wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	wait = -1
	now := time.Now()
	for key, s := range f.sets {
		if left := s.due.Sub(now); s.running {
			continue
		} else if left <= 0 {
			start = append(start, result{source: key, set: s})
		} else if wait < 0 || left < wait {
			wait = left
		}
	}
	slices.SortFunc(start, func(a, b result) int { return a.set.due.Compare(b.set.due) })
	start = start[:min(n, len(start))]
	for _, r := range start {
		r.set.running = true
	}
	return start, wait
}

// finish takes a result over and tells of what changed.
func (f *Fetcher) finish(r result) {
	f.mu.Lock()
	s := r.set
	s.running = false
	if f.sets[r.source] != s { // forgotten meanwhile
		f.mu.Unlock()
		return
	}
	changed := false
	if r.err == nil {
		changed = s.keys != r.keys || s.err != nil
		s.keys, s.err, s.failures = r.keys, nil, 0
		s.due = time.Now().Add(refreshEvery + time.Duration((2*rand.Float64()-1)*refreshJitter*float64(refreshEvery)))
	} else {
		changed = s.err == nil || s.err.Error() != r.err.Error()
		s.err = r.err
		s.due = time.Now().Add(backoff(s.failures))
		s.failures++
	}
	var issuers []string
	for i := range s.issuers {
		issuers = append(issuers, i)
	}
	kept := s.keys != ""
	f.mu.Unlock()
	if r.err != nil {
		f.log.Warn("cannot fetch keys of a token issuer", "uri", r.source.uri, "issuer", r.source.issuer, "last_keys_kept", kept, "error", r.err)
	}
	if changed && f.cfg.Changed != nil {
		for _, i := range issuers {
			f.cfg.Changed(r.source.uri, i)
		}
	}
}

// backoff is the pause after a failure that followed n others.
func backoff(n int) time.Duration {
	d := firstRetry
	for range n {
		if d *= 2; d >= lastRetry {
			return lastRetry
		}
	}
	return d
}
