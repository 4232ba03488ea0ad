package translate

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// The golden files are also what the node proxy's test of these policies enforces (ztunnel/policy).
func TestWaypointRequired(t *testing.T) {
	cfg := Config{TrustDomain: "cluster.local"}
	callers := []string{Principal(cfg, "ingress", "gateway-istio"), Principal(cfg, "shop", "waypoint")}
	for name, r := range map[string]WaypointRequired{
		"refuse": {Namespace: "shop", Services: []string{"cart"}, Port: 8080, Callers: callers},
		"strict": {Namespace: "shop", Services: []string{"cart", "cart-v2"}, Port: 8080, Callers: callers, Plaintext: true},
		"nobody": {Namespace: "shop", Services: []string{"cart"}, Port: 8080},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := protojson.Marshal(r.Wire())
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			// protojson varies its spaces on purpose.
			if err := json.Indent(&got, raw, "", "  "); err != nil {
				t.Fatal(err)
			}
			got.WriteByte('\n')
			file := filepath.Join("testdata", "waypointrequired", name+".json")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if n := r.Name(); !strings.HasPrefix(n, ports.WaypointRequiredPrefix) || strings.Contains(n, "/") {
				t.Errorf("name %q", n)
			}
		})
	}
}

func TestBypass(t *testing.T) {
	for value, want := range map[string]model.Bypass{
		"allow": model.BypassAllow, "Strict": model.BypassStrict, "refuse": model.BypassRefuse, "": model.BypassUnset, "yes": model.BypassUnset,
	} {
		if got := bypass(map[string]string{ports.AnnotationWaypointBypass: value}); got != want {
			t.Errorf("%q: got %v, want %v", value, got, want)
		}
		if _, err := Bypass(value); (err != nil) != (want == model.BypassUnset) {
			t.Errorf("%q: error %v", value, err)
		}
	}
}
