package jwks

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Errors that callers tell apart.
var (
	// ErrPending is given while the first fetch has not ended.
	ErrPending = errors.New("keys are being fetched")
	// ErrTooMany is given for a key set beyond the bound on their number.
	ErrTooMany = errors.New("too many key sets")
)

// key is what of a JSON Web Key (RFC 7517 section 4, RFC 7518 section 6) takes part in verifying a signature. Everything
// else stays behind: certificate chains, which nobody checks here, and private parts, which nobody should have published.
type key struct {
	Kty    string   `json:"kty"`
	Kid    string   `json:"kid,omitempty"`
	Use    string   `json:"use,omitempty"`
	Alg    string   `json:"alg,omitempty"`
	KeyOps []string `json:"key_ops,omitempty"`
	N      string   `json:"n,omitempty"`
	E      string   `json:"e,omitempty"`
	Crv    string   `json:"crv,omitempty"`
	X      string   `json:"x,omitempty"`
	Y      string   `json:"y,omitempty"`
	// K is a symmetric key, which verifies and signs: it is the user's choice to publish it to the mesh.
	K string `json:"k,omitempty"`
}

// complete tells whether the key has the parameters of its type.
func (k key) complete() bool {
	switch k.Kty {
	case "RSA":
		return k.N != "" && k.E != ""
	case "EC":
		return k.Crv != "" && k.X != "" && k.Y != ""
	case "OKP":
		return k.Crv != "" && k.X != ""
	case "oct":
		return k.K != ""
	}
	return false
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
		if json.Unmarshal(r, &k) != nil || !k.complete() {
			continue
		}
		b, err := json.Marshal(k)
		if err != nil {
			return "", fmt.Errorf("write key %q: %w", k.Kid, err)
		}
		out = append(out, string(b))
	}
	if len(out) == 0 {
		return "", fmt.Errorf("parse key set: none of its %d keys is complete and of a known type", len(in.Keys))
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
