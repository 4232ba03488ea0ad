// Package token issues JSON Web Tokens for the demo and the end-to-end tests, with
// keys that live as long as the issuer. Its tokens are for tests of who checks
// them: it is no identity provider.
package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// keyID is the name of an issuer's only key.
const keyID = "k1"

// Issuer signs tokens with a key of its own.
type Issuer struct {
	name   string
	signer jose.Signer
	keys   string
}

// NewIssuer makes a key.
func NewIssuer(name string) (*Issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key for issuer %q: %w", name, err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: keyID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("make a signer for issuer %q: %w", name, err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: keyID, Algorithm: string(jose.ES256), Use: "sig"}}})
	if err != nil {
		return nil, fmt.Errorf("encode the keys of issuer %q: %w", name, err)
	}
	return &Issuer{name: name, signer: signer, keys: string(set)}, nil
}

// Keys is the key set (RFC 7517), on one line.
func (i *Issuer) Keys() string { return i.keys }

// Token is one for the subject that is good for the given time, with more claims if there are any.
func (i *Issuer) Token(subject string, lives time.Duration, more map[string]any) (string, error) {
	now := time.Now()
	claims := map[string]any{"iss": i.name, "sub": subject, "iat": now.Unix(), "exp": now.Add(lives).Unix()}
	maps.Copy(claims, more)
	token, err := jwt.Signed(i.signer).Claims(claims).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign a token of issuer %q: %w", i.name, err)
	}
	return token, nil
}
