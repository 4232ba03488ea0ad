package route

import "encoding/json"

// nobodysKey is a point of P-256 whose private key nobody can know: its x is the first coordinate that is on the curve,
// counted up from SHA-256 of nobodysSeed, and its y is even. It is part of every key set that proxies get. Envoy refuses
// its whole listener, and so every change to it, for one key set in which it finds no good key; with this one a set is
// never empty, whatever the issuer publishes, and no token passes that would not pass without it.
const (
	nobodysSeed = "ambit: a key that nobody has"
	nobodysX    = "9Ex7F8aLzIiXk7Jncnl-H0__xYesX83T5e_8_ReXe_g"
	nobodysY    = "IJ2tVOHFAvyC3hXkyggc5CMzpwuFozsA6cAkRucUaqg"
)

// keySet gives a key set (RFC 7517) that Envoy takes: the keys of one, as far as it can be read, and nobodysKey.
func keySet(jwks string) (string, error) {
	var in struct{ Keys []any }
	// What cannot be read has no keys.
	_ = json.Unmarshal([]byte(jwks), &in)
	out := []map[string]any{}
	for _, k := range in.Keys {
		object, ok := k.(map[string]any)
		if !ok {
			continue
		}
		key := map[string]any{}
		for name, value := range object {
			// All that Envoy reads is text, but for the certificates of x5c.
			switch value.(type) {
			case string, []any:
				key[name] = value
			}
		}
		out = append(out, key)
	}
	out = append(out, map[string]any{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "none", "x": nobodysX, "y": nobodysY})
	b, err := json.Marshal(map[string]any{"keys": out})
	return string(b), err
}
