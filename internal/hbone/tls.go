package hbone

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
)

// alpn is the only protocol of HBONE.
const alpn = "h2"

// noALPN makes crypto/tls refuse a client that offers other protocols only. With alpn alone it would let one that offers
// http/1.1 in, as if it had offered nothing.
const noALPN = "none"

// fixTLS returns a copy of cfg with what HBONE fixes: TLS 1.3 alone, ALPN h2, no resumption (a ticket would outlive the
// verification of the peer, and takes bytes on every connection), full-size records from the first byte.
func fixTLS(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.MaxVersion = tls.VersionTLS13
	cfg.NextProtos = []string{alpn}
	cfg.SessionTicketsDisabled = true
	cfg.ClientSessionCache = nil
	cfg.DynamicRecordSizingDisabled = true
	return cfg
}

func clientTLS(cfg *tls.Config) (*tls.Config, error) {
	if cfg == nil {
		return nil, errors.New("hbone: no TLS configuration")
	}
	cfg = fixTLS(cfg)
	// Identity is a URI name, checked by the caller's verification; no name goes out in the clear. crypto/tls insists on
	// one of the two.
	if cfg.ServerName == "" && !cfg.InsecureSkipVerify {
		return nil, errors.New("hbone: client TLS configuration verifies nothing: set ServerName, or InsecureSkipVerify and VerifyConnection")
	}
	if cfg.InsecureSkipVerify && cfg.VerifyConnection == nil && cfg.VerifyPeerCertificate == nil {
		return nil, errors.New("hbone: client TLS configuration verifies nothing: set VerifyConnection")
	}
	return cfg, nil
}

func serverTLS(cfg *tls.Config) (*tls.Config, error) {
	if cfg == nil {
		return nil, errors.New("hbone: no TLS configuration")
	}
	choose := cfg.GetConfigForClient
	cfg = fixTLS(cfg)
	base := cfg
	cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		chosen := base
		if choose != nil {
			other, err := choose(h)
			if err != nil {
				return nil, err
			}
			if other != nil {
				chosen = fixTLS(other)
			}
		}
		if len(h.SupportedProtos) > 0 && !slices.Contains(h.SupportedProtos, alpn) {
			chosen = chosen.Clone()
			chosen.NextProtos = []string{noALPN}
		}
		return chosen, nil
	}
	return cfg, nil
}

// checkALPN refuses a peer that negotiated another protocol, or, as a server of ours has to speak h2, none at all. A
// client that offers nothing is let in, as Istio does.
func checkALPN(s *tls.ConnectionState, client bool) error {
	if s.NegotiatedProtocol == alpn || !client && s.NegotiatedProtocol == "" {
		return nil
	}
	return fmt.Errorf("hbone: peer negotiated ALPN %q, not %q", s.NegotiatedProtocol, alpn)
}
