package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	// servingTTL of istiod's own certificate. Short, since renewing it costs nothing.
	servingTTL = 24 * time.Hour
	// servingRetry is how soon a renewal that failed is tried again.
	servingRetry = 30 * time.Second
)

// Serving keeps istiod's own serving certificate fresh.
type Serving struct {
	authority *Authority
	names     []string
	log       *slog.Logger
	current   atomic.Pointer[tls.Certificate]
}

// NewServing makes the first certificate for the given DNS names.
func NewServing(authority *Authority, names []string, log *slog.Logger) (*Serving, error) {
	s := &Serving{authority: authority, names: names, log: log}
	return s, s.renew(time.Now())
}

// Run renews the certificate at half of its life until ctx ends. One that cannot be renewed stays in use.
func (s *Serving) Run(ctx context.Context) error {
	t := time.NewTimer(time.Until(s.renewAt()))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		next := servingRetry
		if err := s.renew(time.Now()); err != nil {
			s.log.Error("serving certificate not renewed", "error", err)
		} else {
			next = time.Until(s.renewAt())
		}
		t.Reset(max(next, servingRetry))
	}
}

func (s *Serving) renewAt() time.Time {
	leaf := s.current.Load().Leaf
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
}

func (s *Serving) renew(now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make serving key: %w", err)
	}
	tmpl, err := serverTemplate(s.names, servingTTL, now)
	if err != nil {
		return err
	}
	chain, err := s.authority.Sign(tmpl, key.Public())
	if err != nil {
		return err
	}
	out := &tls.Certificate{PrivateKey: key}
	for _, p := range chain[:len(chain)-1] {
		block, _ := pem.Decode([]byte(p))
		out.Certificate = append(out.Certificate, block.Bytes)
	}
	if out.Leaf, err = x509.ParseCertificate(out.Certificate[0]); err != nil {
		return fmt.Errorf("read serving certificate: %w", err)
	}
	s.current.Store(out)
	s.log.Info("serving certificate made", "names", s.names, "expires", out.Leaf.NotAfter)
	return nil
}

// TLS is the server's configuration. A client certificate is not needed, but one that is given must be ours.
func (s *Serving) TLS() *tls.Config {
	base := func() *tls.Config {
		return &tls.Config{
			MinVersion:     tls.VersionTLS13,
			NextProtos:     []string{"h2"},
			ClientAuth:     tls.VerifyClientCertIfGiven,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.current.Load(), nil },
		}
	}
	out := base()
	out.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := base()
		c.ClientCAs = s.authority.Bundle().Roots()
		return c, nil
	}
	return out
}
