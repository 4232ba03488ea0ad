package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultValidity is the lifetime asked for when none is configured, as Istio does.
	DefaultValidity = 24 * time.Hour
	// maxFetches is how many requests are at the authority at once: a restarted node
	// asks for all its identities together and must not flood the control plane.
	maxFetches = 8
	// fetchTimeout bounds one request, so that a hanging authority cannot hold a slot.
	fetchTimeout = 30 * time.Second
	// patience is how many failures in a row Get sits out before it reports them: the
	// control plane may hear of a new pod a moment after the node does. With the
	// back-off of package rotate this is about two seconds.
	patience = 3
)

// ErrClosed is returned by Get once Run has returned.
var ErrClosed = errors.New("certificate manager is closed")

// Signer turns a certificate request into a chain.
type Signer interface {
	// Sign asks for a certificate of id for the public key in csrPEM. The chain is
	// PEM, leaf first; its last element holds the root certificates.
	Sign(ctx context.Context, id Identity, csrPEM []byte, validity time.Duration) (chainPEM []string, err error)
}

// State of an identity's certificate.
type State string

// The states of a certificate.
const (
	StateInitializing State = "Initializing" // no certificate yet, no failure yet
	StateAvailable    State = "Available"
	StateUnavailable  State = "Unavailable" // the first fetch fails, or the old certificate has expired
	StateStale        State = "Stale"       // renewal fails, the old certificate is still valid
)

// CertificateStatus is one row of Manager.List.
type CertificateStatus struct {
	Identity    Identity
	State       State
	Certificate *Certificate // nil if there is none
	References  int
	RenewAt     time.Time // next attempt; zero while one is under way
	Failures    int       // since the last success
	LastError   string
}

// Hooks are called by the Manager, never while it holds a lock; nil ones are skipped.
type Hooks struct {
	// Fetched is called after each request to the Signer.
	Fetched func(id Identity, took time.Duration, err error)
}

// ManagerConfig configures a Manager.
type ManagerConfig struct {
	Signer   Signer
	Validity time.Duration // asked for; zero means DefaultValidity
	Log      *slog.Logger  // nil means slog.Default
	Metrics  Hooks
	// Random returns a number in [0,1) for jitter; nil means math/rand/v2.
	Random func() float64
}

// Manager keeps a certificate for each identity in use. An identity is in use while
// it is acquired, or, if it was only ever asked for with Get, until its certificate
// would be renewed. All methods may be called at any time from any goroutine.
type Manager struct {
	cfg   ManagerConfig
	slots slots

	warm sync.Map // Identity → *entry; what Get reads without a lock

	mu      sync.Mutex
	entries map[Identity]*entry
	run     context.Context // of Run; nil before, ended after
	closed  bool
	wg      sync.WaitGroup
}

// entry is one identity. cert is written by its own goroutine only.
type entry struct {
	id   Identity
	cert atomic.Pointer[Certificate]
	stop context.CancelFunc // set once its goroutine runs

	// The rest is guarded by Manager.mu.
	refs     int
	changed  chan struct{} // closed and replaced after each fetch
	failures int
	err      error
	renewAt  time.Time
	gone     bool
}

// NewManager makes a Manager; it fetches nothing before Run.
func NewManager(cfg ManagerConfig) *Manager {
	if cfg.Validity <= 0 {
		cfg.Validity = DefaultValidity
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	return &Manager{cfg: cfg, entries: map[Identity]*entry{}, slots: slots{free: maxFetches}}
}

// Run fetches and renews until ctx ends. It may be called once.
func (m *Manager) Run(ctx context.Context) error {
	m.mu.Lock()
	if m.run != nil {
		m.mu.Unlock()
		return errors.New("run certificate manager: it runs or has run already")
	}
	m.run = ctx
	for _, e := range m.entries {
		m.start(e)
	}
	m.mu.Unlock()

	<-ctx.Done()
	m.mu.Lock()
	m.closed = true
	for id := range m.entries {
		m.forget(m.entries[id])
	}
	m.mu.Unlock()
	m.wg.Wait()
	return nil
}

// Acquire keeps id's certificate warm until as many Release calls.
func (m *Manager) Acquire(id Identity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entry(id); e != nil {
		e.refs++
	}
}

// Release undoes one Acquire. The last one forgets the key at once: a node holds
// no identity that none of its pods has.
func (m *Manager) Release(id Identity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[id]
	if e == nil || e.refs == 0 {
		return
	}
	if e.refs--; e.refs == 0 {
		m.forget(e)
	}
}

// Get returns id's certificate. If there is none yet it waits for one, sharing the
// fetch with every other caller, until ctx ends or the authority has refused several
// times in a row. With a valid certificate at hand it neither waits nor locks.
func (m *Manager) Get(ctx context.Context, id Identity) (*Certificate, error) {
	if v, ok := m.warm.Load(id); ok {
		if c := v.(*entry).cert.Load(); c != nil && time.Now().Before(c.NotAfter) {
			return c, nil
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entry(id)
	for e != nil {
		if c := e.cert.Load(); c != nil && time.Now().Before(c.NotAfter) {
			return c, nil
		}
		if e.failures >= patience {
			return nil, fmt.Errorf("get certificate of %q: %d attempts failed: %w", id, e.failures, e.err)
		}
		if e.gone {
			e = m.entry(id)
			continue
		}
		changed := e.changed
		m.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		m.mu.Lock()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("get certificate of %q: %w", id, errors.Join(ctx.Err(), e.err))
		}
	}
	return nil, fmt.Errorf("get certificate of %q: %w", id, ErrClosed)
}

// List is the state of every identity, sorted by identity.
func (m *Manager) List() []CertificateStatus {
	now := time.Now()
	m.mu.Lock()
	out := make([]CertificateStatus, 0, len(m.entries))
	for _, e := range m.entries {
		s := CertificateStatus{
			Identity: e.id, Certificate: e.cert.Load(), References: e.refs, RenewAt: e.renewAt, Failures: e.failures,
		}
		valid := s.Certificate != nil && now.Before(s.Certificate.NotAfter)
		switch {
		case valid && e.failures == 0:
			s.State = StateAvailable
		case valid:
			s.State = StateStale
		case s.Certificate == nil && e.failures == 0:
			s.State = StateInitializing
		default:
			s.State = StateUnavailable
		}
		if e.err != nil {
			s.LastError = e.err.Error()
		}
		out = append(out, s)
	}
	m.mu.Unlock()
	sort.Slice(out, func(i, j int) bool { return out[i].Identity.String() < out[j].Identity.String() })
	return out
}

// entry finds or makes the entry of id; nil once closed. The caller holds mu.
func (m *Manager) entry(id Identity) *entry {
	if m.closed {
		return nil
	}
	e := m.entries[id]
	if e == nil {
		e = &entry{id: id, changed: make(chan struct{})}
		m.entries[id] = e
		m.warm.Store(id, e)
		if m.run != nil {
			m.start(e)
		}
	}
	return e
}

// start runs the entry's goroutine. The caller holds mu.
func (m *Manager) start(e *entry) {
	ctx, stop := context.WithCancel(m.run)
	e.stop = stop
	m.wg.Go(func() { m.maintain(ctx, e) })
}

// forget drops an entry and whoever waits for it. The caller holds mu.
func (m *Manager) forget(e *entry) {
	if e.gone {
		return
	}
	e.gone = true
	delete(m.entries, e.id)
	m.warm.CompareAndDelete(e.id, e)
	if e.stop != nil {
		e.stop()
	}
	close(e.changed)
	e.changed = make(chan struct{})
}
