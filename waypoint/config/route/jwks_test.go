package route

import (
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
)

// TestNobodysKeyIsNobodys: the key comes out of a hash, so that nobody can have chosen it by its private key.
func TestNobodysKeyIsNobodys(t *testing.T) {
	curve := elliptic.P256().Params()
	sum := sha256.Sum256([]byte(nobodysSeed))
	x := new(big.Int).Mod(new(big.Int).SetBytes(sum[:]), curve.P)
	y := new(big.Int)
	for {
		// y² = x³ - 3x + b
		square := new(big.Int).Exp(x, big.NewInt(3), curve.P)
		square.Sub(square, new(big.Int).Mul(big.NewInt(3), x)).Add(square, curve.B).Mod(square, curve.P)
		if y = new(big.Int).ModSqrt(square, curve.P); y != nil {
			break
		}
		x.Add(x, big.NewInt(1))
	}
	if y.Bit(0) == 1 {
		y.Sub(curve.P, y)
	}
	var xb, yb [32]byte
	if b64(x.FillBytes(xb[:])) != nobodysX || b64(y.FillBytes(yb[:])) != nobodysY {
		t.Errorf("the key is %s, %s", b64(xb[:]), b64(yb[:]))
	}
}

func TestKeySet(t *testing.T) {
	none, err := keySet("")
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{"no JSON", "null", "[]", `{"keys":[]}`, `{"keys":5}`, `{"keys":[1,"a",null,[]]}`} {
		if got, err := keySet(in); err != nil || got != none {
			t.Errorf("keys of %s: %s, %v; want no user's", in, got, err)
		}
	}
	got, err := keySet(`{"keys":[{"kty":"RSA","n":"a","e":"b","kid":"1","x5c":["c"],"exp":5}],"more":1}`)
	if err != nil || !strings.Contains(got, `{"e":"b","kid":"1","kty":"RSA","n":"a","x5c":["c"]}`) {
		t.Errorf("keys: %s, %v", got, err)
	}
}

// FuzzKeySet: whatever an issuer publishes, Envoy gets a key set with at least one good key.
func FuzzKeySet(f *testing.F) {
	f.Add(`{"keys":[{"kty":"EC","x":1}]}`)
	f.Fuzz(func(t *testing.T, in string) {
		out, err := keySet(in)
		if err != nil {
			t.Fatalf("keys of %q: %v", in, err)
		}
		var set struct{ Keys []map[string]any }
		if err := json.Unmarshal([]byte(out), &set); err != nil {
			t.Fatal(err)
		}
		if last := set.Keys[len(set.Keys)-1]; last["x"] != nobodysX || last["y"] != nobodysY {
			t.Errorf("the last key is %v", last)
		}
	})
}
