package identity

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/identity/rotate"
)

// maintain is the life of one entry: fetch, wait until renewal or retry, again.
func (m *Manager) maintain(ctx context.Context, e *entry) {
	for {
		cert, err := m.fetch(ctx, e)
		if ctx.Err() != nil {
			return
		}
		next, keep := m.settle(e, cert, err)
		if !keep {
			return
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if !m.due(e) {
			return
		}
	}
}

// due says whether an entry whose time has come is still wanted.
func (m *Manager) due(e *entry) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.gone || e.refs == 0 && e.failures == 0 {
		m.forget(e)
		return false
	}
	e.renewAt = time.Time{}
	return true
}

// fetch gets one certificate, when a slot is free.
func (m *Manager) fetch(ctx context.Context, e *entry) (*Certificate, error) {
	if err := m.slots.take(ctx, e.cert.Load() == nil); err != nil {
		return nil, err
	}
	defer m.slots.give()
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	cert, err := m.request(ctx, e.id)
	if m.cfg.Metrics.Fetched != nil && context.Cause(ctx) != context.Canceled {
		m.cfg.Metrics.Fetched(e.id, time.Since(began), err)
	}
	return cert, err
}

func (m *Manager) request(ctx context.Context, id Identity) (*Certificate, error) {
	key, csr, err := NewRequest(id)
	if err != nil {
		return nil, err
	}
	chain, err := m.cfg.Signer.Sign(ctx, id, csr, m.cfg.Validity)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %q: %w", id, err)
	}
	return NewCertificate(id, key, chain)
}

// settle publishes the outcome of a fetch and says when the next one is due. keep
// is false when nobody wants the identity any more.
func (m *Manager) settle(e *entry, cert *Certificate, err error) (next time.Time, keep bool) {
	now, random := time.Now(), m.cfg.Random()
	if err == nil {
		next = rotate.RenewAt(cert.NotBefore, cert.NotAfter, random)
		if floor := now.Add(rotate.FirstRetry); next.Before(floor) {
			next = floor // an authority that hands out nearly expired certificates gets no storm
		}
	}
	m.mu.Lock()
	if e.gone {
		m.mu.Unlock()
		return time.Time{}, false
	}
	if err == nil {
		e.cert.Store(cert)
		e.failures, e.err = 0, nil
	} else {
		e.failures++
		e.err = err
		next = now.Add(rotate.Retry(e.failures, random))
		if old := e.cert.Load(); old != nil && now.Before(old.NotAfter) && next.After(old.NotAfter) {
			next = old.NotAfter // a last attempt just when the old one ends
		}
	}
	e.renewAt = next
	failures, refs := e.failures, e.refs
	keep = err == nil || refs > 0 || failures < patience
	if keep {
		close(e.changed)
		e.changed = make(chan struct{})
	} else {
		m.forget(e) // only Get ever asked for it, and Get has given up
	}
	m.mu.Unlock()
	m.report(e, err, failures, next)
	return next, keep
}

func (m *Manager) report(e *entry, err error, failures int, next time.Time) {
	old := e.cert.Load()
	attrs := []any{slog.String("identity", e.id.String()), slog.Time("next", next)}
	if err == nil {
		m.cfg.Log.Info("certificate fetched", append(attrs, slog.Time("expires", old.NotAfter))...)
		return
	}
	attrs = append(attrs, slog.Int("failures", failures), slog.Any("error", err))
	switch {
	case old == nil:
		m.cfg.Log.Warn("certificate not available", attrs...)
	case time.Now().Before(old.NotAfter):
		m.cfg.Log.Error("certificate renewal failed, the old one stays in use",
			append(attrs, slog.Time("expires", old.NotAfter), slog.Duration("left", time.Until(old.NotAfter)))...)
	default:
		m.cfg.Log.Error("certificate renewal failed and the old one has expired: connections of this identity fail",
			append(attrs, slog.Time("expired", old.NotAfter))...)
	}
}

// slots bounds concurrent fetches. Those that somebody waits for go first.
type slots struct {
	mu     sync.Mutex
	free   int
	urgent []chan struct{}
	rest   []chan struct{}
}

func (s *slots) take(ctx context.Context, urgent bool) error {
	s.mu.Lock()
	if s.free > 0 {
		s.free--
		s.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	if urgent {
		s.urgent = append(s.urgent, turn)
	} else {
		s.rest = append(s.rest, turn)
	}
	s.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	gone := remove(&s.urgent, turn) || remove(&s.rest, turn)
	s.mu.Unlock()
	if !gone {
		s.give() // the turn came together with the end of ctx: pass it on
	}
	return ctx.Err()
}

func (s *slots) give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range []*[]chan struct{}{&s.urgent, &s.rest} {
		if len(*q) > 0 {
			close((*q)[0])
			*q = (*q)[1:]
			return
		}
	}
	s.free++
}

func remove(q *[]chan struct{}, c chan struct{}) bool {
	for i, x := range *q {
		if x == c {
			*q = append((*q)[:i:i], (*q)[i+1:]...)
			return true
		}
	}
	return false
}
