// Package certs keeps the one certificate of a waypoint or gateway fresh, and the
// roots that it trusts. The agent runs a Keeper; package sds hands out what it has.
//
// It always holds that the key is made here and only ever in memory, that a
// certificate is used only if it carries exactly the proxy's own identity, that a
// failed renewal keeps the old certificate, and that the roots are those that came
// with the certificate together with those in the file that istiod publishes: a
// new root is trusted as soon as the file has it, long before the next renewal.
//
// It serves nothing, and keeps no certificate but the proxy's own.
package certs

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/identity/rotate"
)

const (
	// fetchTimeout bounds one request, whatever the signer does.
	fetchTimeout = 30 * time.Second
	// DefaultRootCheck is how often the file of roots is read: the kubelet takes up to a minute to write it anew,
	// and reading a few KiB costs nothing.
	DefaultRootCheck = 5 * time.Second
	// maxRootBytes bounds the file of roots; a ConfigMap holds at most 1 MiB.
	maxRootBytes = 1 << 20
)

// errNone is the state before the first answer.
var errNone = errors.New("not asked for yet")

// Config configures a Keeper.
type Config struct {
	Identity  identity.Identity
	Signer    identity.Signer
	Validity  time.Duration // asked for; zero means identity.DefaultValidity
	RootFile  string        // PEM; empty trusts only what comes with the certificate
	RootCheck time.Duration // zero means DefaultRootCheck
	Log       *slog.Logger
	// Fetched, if set, is called after each request to the signer.
	Fetched func(took time.Duration, err error)
	// Random returns a number in [0,1) for jitter; nil means math/rand/v2.
	Random func() float64
}

// Secrets is what Envoy needs to know. Immutable.
type Secrets struct {
	Certificate *identity.Certificate
	ChainPEM    []byte // leaf first, without the root
	KeyPEM      []byte
	RootsPEM    []byte
}

// Keeper keeps the certificate. Run it once; the other methods may be called from any goroutine.
type Keeper struct {
	cfg Config

	mu        sync.Mutex
	cert      *identity.Certificate
	fileRoots []byte
	fileError string // of the last look, so that a lasting one is told once
	current   *Secrets
	changed   chan struct{} // closed and replaced when current is
	failure   error         // of the last request; nil after a success
}

// New makes a Keeper; it fetches nothing before Run.
func New(cfg Config) *Keeper {
	if cfg.Validity <= 0 {
		cfg.Validity = identity.DefaultValidity
	}
	if cfg.RootCheck <= 0 {
		cfg.RootCheck = DefaultRootCheck
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	return &Keeper{cfg: cfg, changed: make(chan struct{}), failure: errNone}
}

// Current returns what there is, nil before the first certificate, and a channel that is closed when that changes.
func (k *Keeper) Current() (*Secrets, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current, k.changed
}

// Check says why there is no valid certificate, or nothing.
func (k *Keeper) Check() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.current == nil:
		return fmt.Errorf("no certificate of %q yet: %w", k.cfg.Identity, k.failure)
	case time.Now().After(k.current.Certificate.NotAfter):
		return fmt.Errorf("the certificate of %q expired at %v: %w", k.cfg.Identity, k.current.Certificate.NotAfter.UTC(), k.failure)
	}
	return nil
}

// Run fetches, renews and watches roots until ctx ends, then returns nil.
func (k *Keeper) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	k.readRoots()
	g.Go(func() error { return k.renew(ctx) })
	if k.cfg.RootFile != "" {
		g.Go(func() error { return k.watchRoots(ctx) })
	}
	return g.Wait()
}

func (k *Keeper) renew(ctx context.Context) error {
	for failures := 0; ; {
		cert, err := k.fetch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		now, random := time.Now(), k.cfg.Random()
		var next time.Time
		if err == nil {
			failures = 0
			next = rotate.RenewAt(cert.NotBefore, cert.NotAfter, random)
			if floor := now.Add(rotate.FirstRetry); next.Before(floor) {
				next = floor // an authority that hands out nearly expired certificates gets no storm
			}
		} else {
			failures++
			next = now.Add(rotate.Retry(failures, random))
		}
		k.settle(cert, err, next)
		if !wait(ctx, time.Until(next)) {
			return nil
		}
	}
}

// wait waits for d, and says whether ctx lives on.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (k *Keeper) fetch(ctx context.Context) (*identity.Certificate, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	cert, err := k.request(ctx)
	if k.cfg.Fetched != nil && !errors.Is(context.Cause(ctx), context.Canceled) {
		k.cfg.Fetched(time.Since(began), err)
	}
	return cert, err
}

func (k *Keeper) request(ctx context.Context) (*identity.Certificate, error) {
	key, csr, err := identity.NewRequest(k.cfg.Identity)
	if err != nil {
		return nil, err
	}
	chain, err := k.cfg.Signer.Sign(ctx, k.cfg.Identity, csr, k.cfg.Validity)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %q: %w", k.cfg.Identity, err)
	}
	return identity.NewCertificate(k.cfg.Identity, key, chain)
}

// settle publishes the outcome of a request and writes it to the log.
func (k *Keeper) settle(cert *identity.Certificate, err error, next time.Time) {
	k.mu.Lock()
	if err == nil {
		old := k.cert
		k.cert = cert
		if err = k.publish(); err != nil {
			k.cert = old
		}
	}
	k.failure = err
	current := k.current
	k.mu.Unlock()
	attrs := []any{slog.String("identity", k.cfg.Identity.String()), slog.Time("next", next)}
	switch {
	case err == nil:
		k.cfg.Log.Info("certificate fetched", append(attrs, slog.Time("expires", cert.NotAfter))...)
	case current == nil:
		k.cfg.Log.Warn("certificate not available", append(attrs, slog.Any("error", err))...)
	default:
		k.cfg.Log.Error("certificate renewal failed, the old one stays in use",
			append(attrs, slog.Any("error", err), slog.Time("expires", current.Certificate.NotAfter))...)
	}
}

// publish makes new secrets of certificate and roots. The caller holds mu.
func (k *Keeper) publish() error {
	if k.cert == nil {
		return nil
	}
	key, err := x509.MarshalPKCS8PrivateKey(k.cert.TLS.PrivateKey)
	if err != nil {
		return fmt.Errorf("encode key of %q: %w", k.cfg.Identity, err)
	}
	roots, err := union(k.cert.RootsPEM, k.fileRoots)
	if err != nil {
		return fmt.Errorf("join roots: %w", err)
	}
	k.current = &Secrets{
		Certificate: k.cert, ChainPEM: k.cert.ChainPEM(), RootsPEM: roots,
		KeyPEM: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	}
	close(k.changed)
	k.changed = make(chan struct{})
	return nil
}

func (k *Keeper) watchRoots(ctx context.Context) error {
	for wait(ctx, k.cfg.RootCheck) {
		k.readRoots()
	}
	return nil
}

// readRoots takes the file of roots if it changed and can be read; else the last good one stays.
func (k *Keeper) readRoots() {
	if k.cfg.RootFile == "" {
		return
	}
	data, err := readBounded(k.cfg.RootFile)
	if err == nil {
		_, err = union(data)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err != nil:
		if text := err.Error(); text != k.fileError {
			k.fileError = text
			k.cfg.Log.Warn("cannot read roots, the last good ones stay", slog.String("file", k.cfg.RootFile), slog.Any("error", err))
		}
		return
	case !bytes.Equal(data, k.fileRoots):
		k.fileRoots = data
		if err := k.publish(); err != nil {
			k.cfg.Log.Error("cannot use roots", slog.String("file", k.cfg.RootFile), slog.Any("error", err))
			return
		}
		k.cfg.Log.Info("roots read", slog.String("file", k.cfg.RootFile))
	}
	k.fileError = ""
}

func readBounded(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxRootBytes {
		return nil, fmt.Errorf("read %q: %d bytes are more than %d", file, info.Size(), maxRootBytes)
	}
	return os.ReadFile(file)
}

// union is every certificate of the bundles once, in order.
func union(bundles ...[]byte) ([]byte, error) {
	var out []byte
	seen := map[string]bool{}
	for _, rest := range bundles {
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type != "CERTIFICATE" || seen[string(block.Bytes)] {
				continue
			}
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				return nil, fmt.Errorf("parse root certificate: %w", err)
			}
			seen[string(block.Bytes)] = true
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})...)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("read roots: no certificate in them")
	}
	return out, nil
}
