package ca

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"time"

	"github.com/ambit-mesh/ambit/internal/identity"
)

// Lifetimes bounds what callers may ask for.
type Lifetimes struct{ Default, Max time.Duration }

// choose gives the default to who asks for none and refuses what is over the maximum or makes no sense.
func (l Lifetimes) choose(seconds int64) (time.Duration, error) {
	switch {
	case seconds == 0:
		return l.Default, nil
	case seconds < 0:
		return 0, fmt.Errorf("choose lifetime: %d s is negative", seconds)
	case seconds > int64(l.Max/time.Second):
		return 0, fmt.Errorf("choose lifetime: %d s is more than %s", seconds, l.Max)
	}
	return time.Duration(seconds) * time.Second, nil
}

// workloadTemplate is the certificate of an identity. Its name is the URI alone
// (X.509-SVID §2), so the subject is empty and the name is critical
// (RFC 5280 §4.2.1.6), which crypto/x509 marks by itself.
func workloadTemplate(id identity.Identity, ttl time.Duration, now time.Time) (*x509.Certificate, error) {
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, fmt.Errorf("build certificate for %q: %w", id, err)
	}
	tmpl, err := leafTemplate(ttl, now)
	if err != nil {
		return nil, err
	}
	tmpl.URIs = []*url.URL{uri}
	return tmpl, nil
}

// serverTemplate is istiod's own serving certificate.
func serverTemplate(names []string, ttl time.Duration, now time.Time) (*x509.Certificate, error) {
	tmpl, err := leafTemplate(ttl, now)
	if err != nil {
		return nil, err
	}
	tmpl.DNSNames = names
	return tmpl, nil
}

func leafTemplate(ttl time.Duration, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(ttl),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, nil
}
