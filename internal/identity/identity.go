// Package identity is who a workload is: its SPIFFE identity, the certificate
// that proves it, the check of a peer's certificate, and the Manager that keeps
// one fresh certificate for every identity in use.
//
// ztunnel calls it for each pod it serves; istiod's CA and the waypoint agent use
// Parse, so that all parts agree on what an identity is. It always holds that an
// Identity made by Parse prints back to the very string it was made from, that a
// private key never leaves memory, and that a certificate is used only if it
// carries exactly the identity it was asked for.
//
// It does not talk to a certificate authority (package ca does), and decides
// nothing about who may call whom (ztunnel/policy does).
package identity

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxURIBytes is the longest SPIFFE id that we accept, in bytes (SPIFFE-ID §2.3:
// implementations must support 2048 and must not generate more).
const MaxURIBytes = 2048

// ErrInvalid is wrapped by every refusal of Parse.
var ErrInvalid = errors.New("invalid SPIFFE identity")

// Identity names a service account of a namespace within a trust domain. It is
// comparable; the zero value is no identity.
type Identity struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// Parse reads spiffe://<trust domain>/ns/<namespace>/sa/<service account>. It is
// strict: no port, user information, query or fragment, no upper case in the
// trust domain, no percent-encoding, no empty or dot segment, no other path.
// Namespace and service account are lower case, as Kubernetes wants them.
func Parse(uri string) (Identity, error) {
	if len(uri) > MaxURIBytes {
		return Identity{}, fmt.Errorf("parse identity of %d bytes: %w: longer than %d bytes", len(uri), ErrInvalid, MaxURIBytes)
	}
	if !utf8.ValidString(uri) {
		return Identity{}, fmt.Errorf("parse identity %q: %w: not UTF-8", uri, ErrInvalid)
	}
	id, err := spiffeid.FromString(uri)
	if err != nil {
		return Identity{}, fmt.Errorf("parse identity %q: %w: %w", uri, ErrInvalid, err)
	}
	segments := strings.Split(id.Path(), "/")
	if len(segments) != 5 || segments[1] != "ns" || segments[3] != "sa" {
		return Identity{}, fmt.Errorf("parse identity %q: %w: path is not /ns/<namespace>/sa/<service account>", uri, ErrInvalid)
	}
	for _, s := range []string{segments[2], segments[4]} {
		if s != strings.ToLower(s) {
			return Identity{}, fmt.Errorf("parse identity %q: %w: upper case in %q", uri, ErrInvalid, s)
		}
	}
	return Identity{TrustDomain: id.TrustDomain().Name(), Namespace: segments[2], ServiceAccount: segments[4]}, nil
}

// String is the SPIFFE id, or empty for the zero Identity.
func (i Identity) String() string {
	if i.IsZero() {
		return ""
	}
	return "spiffe://" + i.TrustDomain + "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
}

// IsZero reports whether i is no identity.
func (i Identity) IsZero() bool { return i == Identity{} }

// Validate reports what Parse would say of i's string form: an Identity that was
// put together from fields is valid only if it parses back to itself.
func (i Identity) Validate() error {
	back, err := Parse(i.String())
	if err != nil {
		return err
	}
	if back != i {
		return fmt.Errorf("check identity %q: %w: fields hold a separator", i.String(), ErrInvalid)
	}
	return nil
}
