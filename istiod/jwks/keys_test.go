package jwks

import (
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Keys of RFC 7517 appendix A.1.
const (
	modulus = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
	rsaKey  = `{"kty":"RSA","kid":"rsa","n":"` + modulus + `","e":"AQAB"}`
	ecKey   = `{"kty":"EC","kid":"ec","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}`
)

func TestNormalize(t *testing.T) {
	for _, tt := range []struct{ name, in, want, err string }{
		{name: "one", in: `{"keys":[` + rsaKey + `]}`, want: `{"keys":[` + rsaKey + `]}`},
		{name: "order of the publisher", in: `{"keys":[` + rsaKey + `,` + ecKey + `]}`, want: `{"keys":[` + ecKey + `,` + rsaKey + `]}`},
		{name: "order turned", in: `{"keys":[` + ecKey + `,` + rsaKey + `]}`, want: `{"keys":[` + ecKey + `,` + rsaKey + `]}`},
		{name: "twice the same", in: `{"keys":[` + rsaKey + `,` + rsaKey + `]}`, want: `{"keys":[` + rsaKey + `]}`},
		{name: "spaces and order of fields", in: `{ "keys": [ {"n":"` + modulus + `==", "kid":"rsa", "e":"AQAB", "kty":"RSA"} ], "x": 1 }`, want: `{"keys":[` + rsaKey + `]}`},
		{name: "private parts and certificates", in: `{"keys":[` + strings.Replace(rsaKey, `"e"`, `"d":"secret","p":"secret","x5c":["MII"],"e"`, 1) + `]}`, want: `{"keys":[` + rsaKey + `]}`},
		{name: "others are left out", in: `{"keys":[{"kty":"new"},{"kty":"RSA"},{"kty":3},"x",null,` + rsaKey + `]}`, want: `{"keys":[` + rsaKey + `]}`},
		{name: "octets and edwards", in: `{"keys":[{"kty":"oct","k":"AA"},{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","use":"sig","alg":"EdDSA","key_ops":["verify"]}]}`,
			want: `{"keys":[{"kty":"OKP","use":"sig","alg":"EdDSA","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},{"kty":"oct","k":"AA"}]}`},
		{name: "empty", in: `{"keys":[]}`, err: "none of its 0 keys"},
		{name: "no set", in: `{}`, err: "none of its 0 keys"},
		{name: "nothing usable", in: `{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`, err: "none of its 1 keys"},
		{name: "not JSON", in: `<html>`, err: "parse key set"},
		{name: "a list", in: `[` + rsaKey + `]`, err: "parse key set"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Normalize([]byte(tt.in))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestUnusableKeys: Envoy takes none of these, and would refuse a set of them together with everything around it.
func TestUnusableKeys(t *testing.T) {
	for name, change := range map[string][2]string{
		"for encryption":          {`"kid"`, `"use":"enc","kid"`},
		"of encryption":           {`"kid"`, `"alg":"RSA-OAEP","kid"`},
		"of another type":         {`"kid"`, `"alg":"ES256","kid"`},
		"even modulus":            {modulus, modulus[:len(modulus)-2] + "gg"},
		"short modulus":           {modulus, modulus[:100]},
		"long modulus":            {modulus, modulus + modulus + modulus + modulus + modulus},
		"modulus in bad base64":   {modulus, modulus + "!"},
		"no exponent":             {`"AQAB"`, `""`},
		"exponent one":            {`"AQAB"`, `"AQ"`},
		"even exponent":           {`"AQAB"`, `"AQAC"`},
		"exponent of 40 bits":     {`"AQAB"`, `"gAAAAAE"`},
		"exponent of 33 bits":     {`"AQAB"`, `"AQAAAAE"`},
		"exponent seventeen":      {`"AQAB"`, `"EQ"`},
		"unknown algorithm":       {`"kid"`, `"alg":"RS999","kid"`},
		"unknown type":            {`"RSA"`, `"DSA"`},
		"curve, but a modulus":    {`"RSA"`, `"EC"`},
		"octets, but a modulus":   {`"RSA"`, `"oct"`},
		"edwards, but a modulus":  {`"RSA"`, `"OKP"`},
		"name that is not a name": {`"rsa"`, `7`},
	} {
		if got, err := Normalize([]byte(`{"keys":[` + strings.Replace(rsaKey, change[0], change[1], 1) + `]}`)); err == nil {
			t.Errorf("%s: %s", name, got)
		}
	}
	for name, change := range map[string][2]string{
		"not on the curve": {"4Etl", "4Etm"}, "unknown curve": {"P-256", "P-192"}, "too long": {`"y":"`, `"y":"AAAA`},
		"other curve": {"P-256", "P-384"}, "other algorithm": {`"crv"`, `"alg":"ES384","crv"`}, "no y": {`"y"`, `"z"`},
	} {
		if got, err := Normalize([]byte(`{"keys":[` + strings.Replace(ecKey, change[0], change[1], 1) + `]}`)); err == nil {
			t.Errorf("%s: %s", name, got)
		}
	}
	for _, in := range []string{`{"kty":"oct","k":""}`, `{"kty":"oct","k":"AA","alg":"RS256"}`, `{"kty":"OKP","crv":"Ed25519","x":"AA"}`, `{"kty":"OKP","crv":"X25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`} {
		if got, err := Normalize([]byte(`{"keys":[` + in + `]}`)); err == nil {
			t.Errorf("%s: %s", in, got)
		}
	}
}

// TestUnusable: the set that stands for missing keys is one that Envoy takes, and its key comes out of a hash: to know its
// private half is to solve the discrete logarithm.
func TestUnusable(t *testing.T) {
	hash := sha256.Sum256([]byte("ambit: a key that nobody holds 0"))
	p := elliptic.P256().Params()
	x := new(big.Int).SetBytes(hash[:])
	// y² = x³ - 3x + b
	y := new(big.Int).Exp(x, big.NewInt(3), p.P)
	y.Sub(y, new(big.Int).Mul(big.NewInt(3), x)).Add(y, p.B).Mod(y, p.P)
	if y.ModSqrt(y, p.P) == nil {
		t.Fatal("no point has this x")
	}
	if y.Bit(0) == 1 {
		y.Sub(p.P, y)
	}
	text := func(n *big.Int) string { return base64.RawURLEncoding.EncodeToString(n.FillBytes(make([]byte, 32))) }
	want := fmt.Sprintf(`{"keys":[{"kty":"EC","kid":"nobody","alg":"ES256","crv":"P-256","x":%q,"y":%q}]}`, text(x), text(y))
	if diff := cmp.Diff(want, model.UnusableJWKS); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, err := Normalize([]byte(model.UnusableJWKS)); err != nil || got != model.UnusableJWKS {
		t.Errorf("got %q (%v)", got, err)
	}
}

// Whatever an issuer publishes: what comes out is a key set, is its own normal form, and holds no private part.
func FuzzNormalize(f *testing.F) {
	for _, s := range []string{`{"keys":[` + rsaKey + `,` + ecKey + `]}`, `{"keys":[{"kty":"oct","k":"\u0000"}]}`, `{}`, `{"keys":[` + strings.Replace(rsaKey, `"e"`, `"d":"AQ","e"`, 1) + `]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Normalize(b)
		if err != nil {
			return
		}
		again, err := Normalize([]byte(got))
		if err != nil || again != got {
			t.Errorf("%q became %q (%v)", got, again, err)
		}
		var set struct{ Keys []map[string]any }
		if err := json.Unmarshal([]byte(got), &set); err != nil || len(set.Keys) == 0 {
			t.Errorf("not a key set: %q (%v)", got, err)
		}
		for _, k := range set.Keys {
			for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth"} {
				if _, ok := k[private]; ok {
					t.Errorf("private part %q in %q", private, got)
				}
			}
		}
	})
}
