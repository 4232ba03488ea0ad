package token

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

func TestTokensAreGoodForTheirIssuersKeysOnly(t *testing.T) {
	mine, err := NewIssuer("a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewIssuer("a")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := mine.Token("anna", time.Minute, map[string]any{"group": "staff"})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		keys string
		good bool
	}{{mine.Keys(), true}, {other.Keys(), false}} {
		var set jose.JSONWebKeySet
		if err := json.Unmarshal([]byte(c.keys), &set); err != nil {
			t.Fatal(err)
		}
		claims := map[string]any{}
		err := parsed.Claims(set, &claims)
		if (err == nil) != c.good || c.good && (claims["iss"] != "a" || claims["sub"] != "anna" || claims["group"] != "staff") {
			t.Errorf("good %v: %v, %v", c.good, claims, err)
		}
	}
}
