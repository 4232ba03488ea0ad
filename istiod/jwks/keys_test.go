package jwks

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	rsaKey = `{"kty":"RSA","kid":"a","n":"AQAB","e":"AQAB"}`
	ecKey  = `{"kty":"EC","kid":"b","crv":"P-256","x":"AA","y":"BB"}`
)

func TestNormalize(t *testing.T) {
	for _, tt := range []struct{ name, in, want, err string }{
		{name: "one", in: `{"keys":[` + rsaKey + `]}`, want: `{"keys":[` + rsaKey + `]}`},
		{name: "order of the publisher", in: `{"keys":[` + rsaKey + `,` + ecKey + `]}`, want: `{"keys":[` + ecKey + `,` + rsaKey + `]}`},
		{name: "order turned", in: `{"keys":[` + ecKey + `,` + rsaKey + `]}`, want: `{"keys":[` + ecKey + `,` + rsaKey + `]}`},
		{name: "twice the same", in: `{"keys":[` + rsaKey + `,` + rsaKey + `]}`, want: `{"keys":[` + rsaKey + `]}`},
		{name: "spaces and order of fields", in: `{ "keys": [ {"n":"AQAB", "kid":"a", "e":"AQAB", "kty":"RSA"} ], "x": 1 }`, want: `{"keys":[` + rsaKey + `]}`},
		{name: "private parts and certificates", in: `{"keys":[{"kty":"RSA","kid":"a","n":"AQAB","e":"AQAB","d":"secret","p":"secret","x5c":["MII"]}]}`, want: `{"keys":[` + rsaKey + `]}`},
		{name: "others are kept", in: `{"keys":[{"kty":"new"},{"kty":"RSA"},{"kty":3},"x",null,` + rsaKey + `]}`, want: `{"keys":[` + rsaKey + `]}`},
		{name: "octets and edwards", in: `{"keys":[{"kty":"oct","k":"AA"},{"kty":"OKP","crv":"Ed25519","x":"AA","use":"sig","alg":"EdDSA","key_ops":["verify"]}]}`,
			want: `{"keys":[{"kty":"OKP","use":"sig","alg":"EdDSA","key_ops":["verify"],"crv":"Ed25519","x":"AA"},{"kty":"oct","k":"AA"}]}`},
		{name: "empty", in: `{"keys":[]}`, err: "none of its 0 keys"},
		{name: "no set", in: `{}`, err: "none of its 0 keys"},
		{name: "nothing usable", in: `{"keys":[{"kty":"EC","crv":"P-256","x":"AA"}]}`, err: "none of its 1 keys"},
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

// TestUnusable: the set that stands for missing keys is a key set, and holds none.
func TestUnusable(t *testing.T) {
	var set struct{ Keys []any }
	if err := json.Unmarshal([]byte(model.UnusableJWKS), &set); err != nil || set.Keys == nil || len(set.Keys) != 0 {
		t.Errorf("got %v (%v)", set.Keys, err)
	}
	if _, err := Normalize([]byte(model.UnusableJWKS)); err == nil {
		t.Error("it is usable")
	}
}

// Whatever an issuer publishes: what comes out is a key set, is its own normal form, and holds no private part.
func FuzzNormalize(f *testing.F) {
	for _, s := range []string{`{"keys":[` + rsaKey + `,` + ecKey + `]}`, `{"keys":[{"kty":"oct","k":"\u0000"}]}`, `{}`, `{"keys":[{"kty":"RSA","n":"1","e":"2","d":"3"}]}`} {
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
