package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// protoHTTP2 is the only application protocol of the tunnel (RFC 9113 §3.2).
const protoHTTP2 = "h2"

// protoNone is offered to a client that does not speak h2. Go's TLS server lets a
// client that offers only http/1.1 into an h2 server as if it had no ALPN; a server
// that offers this instead answers with the alert no_application_protocol.
const protoNone = "ambit-speaks-h2-only"

// ErrPeer is wrapped by every refusal of a peer's certificate.
var ErrPeer = errors.New("peer certificate refused")

// ServerTLS is the server side of mutual TLS 1.3. The certificate and the roots are
// taken by get at each handshake, so renewal and root rotation need no restart. The
// client's certificate must chain to the roots, be meant for clients, and carry one
// SPIFFE id whose trust domain is one of trustDomains, or the server's own if none
// is given. A client without ALPN is accepted, one without h2 in it is not.
// Sessions are never resumed: each connection proves its identity afresh.
func ServerTLS(get func(ctx context.Context) (*Certificate, error), trustDomains ...string) *tls.Config {
	type built struct {
		from *Certificate
		cfg  *tls.Config
	}
	var last atomic.Pointer[built]
	base := baseTLS()
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := get(hello.Context())
		if err != nil {
			return nil, fmt.Errorf("get server certificate: %w", err)
		}
		if len(hello.SupportedProtos) > 0 && !slices.Contains(hello.SupportedProtos, protoHTTP2) {
			cfg := serverTLS(c, trustDomains)
			cfg.NextProtos = []string{protoNone}
			return cfg, nil
		}
		b := last.Load()
		if b == nil || b.from != c {
			b = &built{c, serverTLS(c, trustDomains)}
			last.Store(b)
		}
		return b.cfg, nil
	}
	return base
}

func serverTLS(c *Certificate, trustDomains []string) *tls.Config {
	if len(trustDomains) == 0 {
		trustDomains = []string{c.Identity.TrustDomain}
	}
	cfg := baseTLS()
	cfg.Certificates = []tls.Certificate{c.TLS}
	// Any certificate at this step; VerifyConnection does the verification, because
	// the standard one knows neither SPIFFE nor roots that change.
	cfg.ClientAuth = tls.RequireAnyClientCert
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifyChain(cs.PeerCertificates, c.Roots, x509.ExtKeyUsageClientAuth); err != nil {
			return err
		}
		id, err := Peer(cs)
		if err != nil {
			return err
		}
		if !slices.Contains(trustDomains, id.TrustDomain) {
			return fmt.Errorf("verify client %q: %w: trust domain is not one of %q", id, ErrPeer, trustDomains)
		}
		return nil
	}
	return cfg
}

// ClientTLS is the client side with certificate c. The server's certificate must
// chain to c's roots and be meant for servers, and one of its URI SANs must be in
// allowed; with nothing allowed, no server is. No server name is sent.
func ClientTLS(c *Certificate, allowed []string) *tls.Config {
	cfg := baseTLS()
	cfg.Certificates = []tls.Certificate{c.TLS}
	// The name in the certificate is a SPIFFE id, not a DNS name: VerifyConnection
	// replaces the standard verification, it does not weaken it.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifyChain(cs.PeerCertificates, c.Roots, x509.ExtKeyUsageServerAuth); err != nil {
			return err
		}
		var got []string
		for _, u := range cs.PeerCertificates[0].URIs {
			s := u.String()
			if slices.Contains(allowed, s) {
				return nil
			}
			got = append(got, s)
		}
		return fmt.Errorf("verify server: %w: its identity %q is not one of %q", ErrPeer, got, allowed)
	}
	return cfg
}

func baseTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		NextProtos:             []string{protoHTTP2},
		SessionTicketsDisabled: true,
		// Full records from the first byte: tunnels carry bulk data, and the latency of
		// a first short record is that of a header frame, which is short anyway.
		DynamicRecordSizingDisabled: true,
	}
}

// verifyChain checks that certs, leaf first, lead to one of roots.
func verifyChain(certs []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage) error {
	if len(certs) == 0 {
		return fmt.Errorf("verify peer: %w: no certificate", ErrPeer)
	}
	if certs[0].IsCA {
		return fmt.Errorf("verify peer: %w: it is an authority's own certificate", ErrPeer) // X509-SVID §4.1
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return fmt.Errorf("verify peer: %w: %w", ErrPeer, err)
	}
	return nil
}

// Peer is the identity of the other side of a finished handshake: the one URI SAN
// of its certificate (X509-SVID §2: exactly one).
func Peer(cs tls.ConnectionState) (Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, fmt.Errorf("read peer identity: %w: no certificate", ErrPeer)
	}
	id, err := certificateIdentity(cs.PeerCertificates[0])
	if err != nil {
		return Identity{}, fmt.Errorf("read peer identity: %w: %w", ErrPeer, err)
	}
	return id, nil
}

func certificateIdentity(c *x509.Certificate) (Identity, error) {
	if len(c.URIs) != 1 {
		return Identity{}, fmt.Errorf("read certificate: %w: %d URI SANs, want exactly one", ErrInvalid, len(c.URIs))
	}
	return Parse(c.URIs[0].String())
}
