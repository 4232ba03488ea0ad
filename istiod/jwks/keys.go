package jwks

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

// Errors that callers tell apart.
var (
	// ErrPending is given while the first fetch has not ended.
	ErrPending = errors.New("keys are being fetched")
	// ErrTooMany is given for a key set beyond the bound on their number.
	ErrTooMany = errors.New("too many key sets")
)

const (
	// minRSABits and maxRSABits of a modulus. RFC 7518 section 3.3 wants 2,048; 1,024 is the least that Go's own TLS
	// takes, and nothing above 8,192 is worth the time that a signature then takes.
	minRSABits = 1024
	maxRSABits = 8192
	// Exponents of RSA that Envoy takes; nobody uses others.
	exponentThree, exponentF4 = 3, 65537
)

// key is what of a JSON Web Key (RFC 7517 section 4, RFC 7518 section 6) takes part in verifying a signature. Everything
// else stays behind: certificate chains, which nobody checks here, and private parts, which nobody should have published.
type key struct {
	Kty string `json:"kty"`
	Kid string `json:"kid,omitempty"`
	Use string `json:"use,omitempty"`
	Alg string `json:"alg,omitempty"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`
	Crv string `json:"crv,omitempty"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
	// K is a symmetric key, which verifies and signs: it is the user's choice to publish it to the mesh.
	K string `json:"k,omitempty"`
}

// usable tells whether a signature can be verified by the key, and writes its numbers in the one form that RFC 7515 section
// 2 knows, without padding. It is as strict as Envoy: a set without any key that Envoy takes would be refused together
// with everything around it.
func (k *key) usable() bool {
	if k.Use != "" && k.Use != "sig" {
		return false
	}
	switch k.Kty {
	case "RSA":
		n, okN := number(&k.N)
		e, okE := number(&k.E)
		return okN && okE && k.algorithm("RS256", "RS384", "RS512", "PS256", "PS384", "PS512") &&
			n.BitLen() >= minRSABits && n.BitLen() <= maxRSABits && n.Bit(0) == 1 &&
			e.IsUint64() && (e.Uint64() == exponentThree || e.Uint64() == exponentF4)
	case "EC":
		curve, alg := curveOf(k.Crv)
		return curve != nil && k.algorithm(alg) && k.onCurve(curve)
	case "OKP":
		x, ok := octets(&k.X)
		return ok && k.Crv == "Ed25519" && k.algorithm("EdDSA") && len(x) == ed25519.PublicKeySize
	case "oct":
		b, ok := octets(&k.K)
		return ok && len(b) > 0 && k.algorithm("HS256", "HS384", "HS512")
	}
	return false
}

// algorithm tells whether the key is for one of these, or says nothing.
func (k *key) algorithm(allowed ...string) bool {
	return k.Alg == "" || slices.Contains(allowed, k.Alg)
}

func curveOf(name string) (c ecdh.Curve, alg string) {
	switch name {
	case "P-256":
		return ecdh.P256(), "ES256"
	case "P-384":
		return ecdh.P384(), "ES384"
	case "P-521":
		return ecdh.P521(), "ES512"
	}
	return nil, ""
}

// onCurve checks a point. RFC 7518 section 6.2.1.2 gives coordinates their full length; shorter ones are forgiven.
func (k *key) onCurve(c ecdh.Curve) bool {
	x, okX := octets(&k.X)
	y, okY := octets(&k.Y)
	size := map[ecdh.Curve]int{ecdh.P256(): 32, ecdh.P384(): 48, ecdh.P521(): 66}[c]
	if !okX || !okY || len(x) > size || len(y) > size {
		return false
	}
	point := make([]byte, 1+2*size)
	point[0] = 4 // uncompressed (SEC 1 section 2.3.3)
	copy(point[1+size-len(x):], x)
	copy(point[1+2*size-len(y):], y)
	_, err := c.NewPublicKey(point)
	return err == nil
}

// octets decodes base64url and writes it anew without padding.
func octets(s *string) ([]byte, bool) {
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(*s, "="))
	if err != nil {
		return nil, false
	}
	*s = base64.RawURLEncoding.EncodeToString(b)
	return b, true
}

func number(s *string) (*big.Int, bool) {
	b, ok := octets(s)
	return new(big.Int).SetBytes(b), ok
}

// Normalize reads a JSON Web Key Set and writes it with its usable keys only, in an order that does not depend on the
// publisher's, so that a set which did not change is the same bytes. A set without a usable key is an error.
func Normalize(raw []byte) (string, error) {
	var in struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return "", fmt.Errorf("parse key set: %w", err)
	}
	var out []string
	for _, r := range in.Keys {
		// One key of a kind that nobody knows yet must not take the others along (RFC 7517 section 5).
		var k key
		if json.Unmarshal(r, &k) != nil || !k.usable() {
			continue
		}
		b, err := json.Marshal(k)
		if err != nil {
			return "", fmt.Errorf("write key %q: %w", k.Kid, err)
		}
		out = append(out, string(b))
	}
	if len(out) == 0 {
		return "", fmt.Errorf("parse key set: none of its %d keys verifies signatures", len(in.Keys))
	}
	slices.Sort(out)
	set := `{"keys":[`
	for i, k := range slices.Compact(out) {
		if i > 0 {
			set += ","
		}
		set += k
	}
	return set + `]}`, nil
}
