package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"time"
)

// Signer turns a certificate request into a chain.
type Signer interface {
	// Sign asks for a certificate of id for the public key in csrPEM. The chain is
	// PEM, leaf first; its last element holds the root certificates.
	Sign(ctx context.Context, id Identity, csrPEM []byte, validity time.Duration) (chainPEM []string, err error)
}

// Certificate is a key pair with the roots that its authority names. Immutable.
type Certificate struct {
	Identity  Identity
	TLS       tls.Certificate
	Roots     *x509.CertPool
	RootsPEM  []byte
	NotBefore time.Time
	NotAfter  time.Time
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
	RenewAt     time.Time
	Failures    int // since the last success
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
	Log      *slog.Logger
	Metrics  Hooks
	// Random returns a number in [0,1) for jitter; nil means math/rand/v2.
	Random func() float64
}

// Manager keeps a certificate for each identity in use.
type Manager struct{ cfg ManagerConfig }

// NewManager makes a Manager; it does nothing before Run.
func NewManager(cfg ManagerConfig) *Manager { return &Manager{cfg: cfg} }

// Run fetches and renews until ctx ends.
func (m *Manager) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Acquire keeps id's certificate warm until as many Release calls.
func (m *Manager) Acquire(id Identity) {}

// Release undoes one Acquire.
func (m *Manager) Release(id Identity) {}

// Get returns id's certificate, waiting for the first one; concurrent callers share a fetch.
func (m *Manager) Get(ctx context.Context, id Identity) (*Certificate, error) { return nil, ErrInvalid }

// List is the state of every identity, sorted.
func (m *Manager) List() []CertificateStatus { return nil }

// ServerTLS is the server side of mutual TLS 1.3 with a certificate taken at each
// handshake; the peer's trust domain must be one of trustDomains, or the
// certificate's own if none is given.
func ServerTLS(get func(ctx context.Context) (*Certificate, error), trustDomains ...string) *tls.Config {
	return nil
}

// ClientTLS is the client side with certificate c: any URI SAN of the server must
// be in allowed.
func ClientTLS(c *Certificate, allowed []string) *tls.Config { return nil }

// Peer is the identity of the other side of a finished handshake.
func Peer(cs tls.ConnectionState) (Identity, error) { return Identity{}, ErrInvalid }
