package jwks

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/tests/envoybin"
)

// validateTimeout bounds one start of Envoy on a machine that does other things too.
const validateTimeout = time.Minute

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// TestEnvoyTakesEverySet: a set that Envoy refuses would stop everything that is sent to a proxy together with it, so that
// a set with any one key that is kept here must be one that it takes.
func TestEnvoyTakesEverySet(t *testing.T) {
	keys := []string{rsaKey, ecKey, `{"kty":"oct","k":"AA"}`, `{"kty":"oct","k":"AA","alg":"HS512"}`,
		`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","alg":"EdDSA"}`}
	small, err := rsa.GenerateKey(rand.Reader, minRSABits)
	if err != nil {
		t.Fatal(err)
	}
	keys = append(keys, fmt.Sprintf(`{"kty":"RSA","alg":"PS256","n":%q,"e":"Aw"}`, b64(small.N.Bytes())))
	large := new(big.Int).Lsh(big.NewInt(1), maxRSABits-1)
	keys = append(keys, fmt.Sprintf(`{"kty":"RSA","use":"sig","n":%q,"e":"AQAB"}`, b64(large.SetBit(large, 0, 1).Bytes())))
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		point, err := k.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		half := len(point) / 2
		keys = append(keys, fmt.Sprintf(`{"kty":"EC","crv":%q,"x":%q,"y":%q}`, c.Params().Name, b64(point[1:1+half]), b64(point[1+half:])))
	}
	sets := []string{model.UnusableJWKS}
	for _, k := range keys {
		set, err := Normalize([]byte(`{"keys":[` + k + `]}`))
		if err != nil {
			t.Fatalf("%s: %v", k, err)
		}
		sets = append(sets, set)
	}
	if out, err := envoyTakes(t, sets...); err != nil {
		t.Errorf("Envoy refuses it: %v\n%s", err, out)
	}
	// It does refuse a set without keys, which is why the unusable one has a key.
	if _, err := envoyTakes(t, `{"keys":[]}`); err == nil {
		t.Error("Envoy takes an empty set")
	}
}

func envoyTakes(t *testing.T, sets ...string) (string, error) {
	t.Helper()
	providers := map[string]any{}
	for i, s := range sets {
		providers[fmt.Sprint(i)] = map[string]any{"issuer": fmt.Sprint(i), "local_jwks": map[string]any{"inline_string": s}}
	}
	typed := func(name string, m map[string]any) map[string]any {
		m["@type"] = "type.googleapis.com/envoy.extensions.filters." + name
		return map[string]any{"name": name, "typed_config": m}
	}
	hcm := typed("network.http_connection_manager.v3.HttpConnectionManager", map[string]any{
		"stat_prefix": "x", "route_config": map[string]any{"name": "r"},
		"http_filters": []any{typed("http.jwt_authn.v3.JwtAuthentication", map[string]any{"providers": providers}), typed("http.router.v3.Router", map[string]any{})},
	})
	b, err := json.Marshal(map[string]any{"static_resources": map[string]any{"listeners": []any{map[string]any{
		"name": "l", "address": map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": 1}},
		"filter_chains": []any{map[string]any{"filters": []any{hcm}}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), validateTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, envoybin.Path(t), "--mode", "validate", "-c", path, "--log-level", "error").CombinedOutput()
	return string(out), err
}
