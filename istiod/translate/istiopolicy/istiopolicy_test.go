package istiopolicy

import (
	"encoding"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/ratelimit/v1alpha1"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

var update = flag.Bool("update", false, "write the golden files anew")

func testConfig() translate.Config {
	return translate.Config{ClusterID: "Kubernetes", TrustDomain: "cluster.local", Domain: "cluster.local", RootNamespace: "istio-system"}
}

// translated is the result of one input, of whatever kind.
func translated(t testing.TB, kind string, b []byte) (any, error) {
	t.Helper()
	read := func(o any) bool { return yaml.Unmarshal(b, o) == nil }
	switch kind {
	case "AuthorizationPolicy":
		if o := (&securityv1.AuthorizationPolicy{}); read(o) {
			return Authorization(testConfig(), o)
		}
	case "RequestAuthentication":
		if o := (&securityv1.RequestAuthentication{}); read(o) {
			return RequestAuthentication(testConfig(), o)
		}
	case "Telemetry":
		if o := (&telemetryv1.Telemetry{}); read(o) {
			return Telemetry(testConfig(), o)
		}
	case "RateLimit":
		if o := (&v1alpha1.RateLimit{}); read(o) {
			return RateLimit(testConfig(), o)
		}
	case "":
		return MeshConfig(b)
	}
	t.Fatalf("cannot read an object of kind %q", kind)
	return nil, nil
}

// plainValue makes what a golden file shows: set fields only, durations and addresses as text.
func plainValue(v reflect.Value) any {
	if v.IsValid() && v.CanInterface() {
		switch x := v.Interface().(type) {
		case time.Duration:
			return x.String()
		case encoding.TextMarshaler:
			b, err := x.MarshalText()
			if err != nil {
				return err.Error()
			}
			return string(b)
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		return plainValue(v.Elem())
	case reflect.Struct:
		out := map[string]any{}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if v.Field(i).IsZero() {
				continue
			}
			inner := plainValue(v.Field(i))
			if m, ok := inner.(map[string]any); ok && f.Anonymous {
				for k, e := range m {
					out[k] = e
				}
				continue
			}
			out[f.Name] = inner
		}
		return out
	case reflect.Slice:
		out := []any{}
		for i := range v.Len() {
			out = append(out, plainValue(v.Index(i)))
		}
		return out
	case reflect.Map:
		out := map[string]any{}
		for _, k := range v.MapKeys() {
			out[k.String()] = plainValue(v.MapIndex(k))
		}
		return out
	}
	return v.Interface()
}

func show(t testing.TB, v any, err error) string {
	t.Helper()
	b, merr := yaml.Marshal(plainValue(reflect.ValueOf(v)))
	if merr != nil {
		t.Fatal(merr)
	}
	out := string(b)
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			out += "error: " + strings.TrimSuffix(line, "\n") + "\n"
		}
	}
	return out
}

func kindOf(t testing.TB, name string, b []byte) string {
	t.Helper()
	if strings.HasPrefix(name, "mesh-") {
		return ""
	}
	var head struct{ Kind string }
	if err := yaml.Unmarshal(b, &head); err != nil {
		t.Fatal(err)
	}
	return head.Kind
}

// inputs are the files of testdata by name.
func inputs(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no inputs: %v", err)
	}
	out := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimSuffix(filepath.Base(f), ".yaml")] = b
	}
	return out
}

func TestGolden(t *testing.T) {
	for name, in := range inputs(t) {
		t.Run(name, func(t *testing.T) {
			v, err := translated(t, kindOf(t, name, in), in)
			if isBad := strings.Contains(name, "-bad"); isBad != (err != nil) {
				t.Errorf("error %v, of an input that is bad: %v", err, isBad)
			}
			got := show(t, v, err)
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got; -update writes it)\n%s", diff)
			}
		})
	}
}

// TestMetaIsTaken: order and status need the object's age and generation.
func TestMetaIsTaken(t *testing.T) {
	o := &v1alpha1.RateLimit{}
	if err := yaml.Unmarshal([]byte(`{metadata: {name: a, namespace: b, generation: 7, creationTimestamp: "2026-01-02T03:04:05Z"}}`), o); err != nil {
		t.Fatal(err)
	}
	got, _ := RateLimit(testConfig(), o)
	want := model.Meta{Kind: model.KindRateLimit, Key: model.Key{Namespace: "b", Name: "a"}, Generation: 7, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	if !got.Created.Equal(want.Created) || got.Key != want.Key || got.Generation != want.Generation || got.Kind != want.Kind {
		t.Errorf("got %+v", got.Meta)
	}
}

// TestAllowNeverAllowsMore: whichever one value of a rule is broken, an ALLOW policy loses the rule and a DENY policy keeps it.
func TestAllowNeverAllowsMore(t *testing.T) {
	good := `{from: [{source: {namespaces: [shop]}}], to: [{operation: {methods: [GET]}}], when: [{key: source.ip, values: [10.0.0.1]}]}`
	for _, broken := range []string{
		`from: [{source: {ipBlocks: [x]}}]`, `from: [{source: {notIpBlocks: [x]}}]`, `from: [{source: {remoteIpBlocks: [x]}}]`,
		`from: [{source: {notRemoteIpBlocks: [x]}}]`, `from: [{source: {namespaces: ["a*b"]}}]`, `from: [{source: {notNamespaces: ["*a*"]}}]`,
		`from: [{source: {principals: [""]}}]`, `from: [{source: {notPrincipals: [""]}}]`, `from: [{source: {requestPrincipals: [""]}}]`,
		`from: [{source: {notRequestPrincipals: [""]}}]`, `from: [{source: {serviceAccounts: ["/"]}}]`, `from: [{source: {notServiceAccounts: ["*"]}}]`,
		`from: [{source: {trustDomains: ["*.a"]}}]`, `from: [{source: {notTrustDomains: ["a/b"]}}]`, `from: [{source: {}}]`, `from: [{}]`,
		`to: [{operation: {ports: [x]}}]`, `to: [{operation: {notPorts: ["-1"]}}]`, `to: [{operation: {hosts: [""]}}]`, `to: [{operation: {notHosts: [""]}}]`,
		`to: [{operation: {methods: [""]}}]`, `to: [{operation: {notMethods: [""]}}]`, `to: [{operation: {paths: ["/{x}"]}}]`, `to: [{operation: {notPaths: ["/{**}/x"]}}]`, `to: [{}]`,
		`when: [{key: nonsense, values: [a]}]`, `when: [{key: source.ip, values: [a]}]`, `when: [{key: source.ip, notValues: [a]}]`, `when: [{key: source.ip}]`, `when: [{}]`,
		`when: [{key: destination.port, notValues: [a]}]`, `when: [{key: source.trustDomain, values: [a/b]}]`, `when: [{key: source.serviceAccount, values: ["*"]}]`,
	} {
		for action, want := range map[string]int{"ALLOW": 1, "DENY": 2, "AUDIT": 2, "CUSTOM": 2} {
			o := &securityv1.AuthorizationPolicy{}
			doc := fmt.Sprintf(`{metadata: {name: a, namespace: b}, spec: {action: %s, rules: [{%s}, %s]}}`, action, broken, good)
			if action == "CUSTOM" {
				doc = strings.Replace(doc, "action:", "provider: {name: x}, action:", 1)
			}
			if err := yaml.Unmarshal([]byte(doc), o); err != nil {
				t.Fatalf("%s: %v", broken, err)
			}
			got, err := Authorization(testConfig(), o)
			if err == nil || !strings.Contains(err.Error(), "spec.rules[0].") {
				t.Errorf("%s: error %v does not name the field", broken, err)
			}
			if len(got.Rules) != want {
				t.Errorf("%s %s: %d rules, want %d", action, broken, len(got.Rules), want)
			}
		}
	}
}

// No object may crash istiod, be changed, or give another result the second time; an error leaves an ALLOW policy with
// fewer rules, and no policy without its targets.
func FuzzAuthorization(f *testing.F) {
	fuzzSeeds(f, "authz-")
	f.Fuzz(func(t *testing.T, b []byte) {
		o := &securityv1.AuthorizationPolicy{}
		if yaml.Unmarshal(b, o) != nil {
			return
		}
		before := o.DeepCopy()
		got, err := Authorization(testConfig(), o)
		again, _ := Authorization(testConfig(), before)
		if !proto.Equal(&o.Spec, &before.Spec) {
			t.Error("the input was changed")
		}
		if diff := cmp.Diff(show(t, got, err), show(t, again, err)); diff != "" {
			t.Errorf("two results of one input:\n%s", diff)
		}
		if n := len(o.Spec.GetTargetRefs()); n > 0 && len(got.Targets) < n {
			t.Errorf("%d targets of %d", len(got.Targets), n)
		}
		if rules := o.Spec.GetRules(); len(rules) == 1 && len(got.Rules) > 0 {
			sources := 0
			for _, r := range got.Rules {
				sources += len(r.From)
			}
			if sources != len(rules[0].GetFrom()) {
				t.Errorf("%d sources of %d", sources, len(rules[0].GetFrom()))
			}
		}
	})
}

func FuzzRequestAuthentication(f *testing.F) {
	fuzzSeeds(f, "jwt-")
	f.Fuzz(func(t *testing.T, b []byte) {
		o := &securityv1.RequestAuthentication{}
		if yaml.Unmarshal(b, o) != nil {
			return
		}
		got, _ := RequestAuthentication(testConfig(), o)
		if len(got.Rules) != len(o.Spec.GetJwtRules()) {
			t.Error("a rule is missing: its tokens would be overlooked")
		}
		for i, r := range got.Rules {
			if r.JWKS == "" && r.JWKSURI == "" && r.Issuer == "" {
				t.Errorf("rule %d has no keys, not even unusable ones", i)
			}
			if len(r.Audiences) == 0 && len(o.Spec.GetJwtRules()[i].GetAudiences()) > 0 && r.JWKS != model.UnusableJWKS {
				t.Errorf("rule %d lost its audiences", i)
			}
		}
	})
}

func FuzzTelemetry(f *testing.F) {
	fuzzSeeds(f, "telemetry-")
	f.Fuzz(func(t *testing.T, b []byte) {
		o := &telemetryv1.Telemetry{}
		if yaml.Unmarshal(b, o) != nil {
			return
		}
		got, err := Telemetry(testConfig(), o)
		again, _ := Telemetry(testConfig(), o)
		if diff := cmp.Diff(show(t, got, err), show(t, again, err)); diff != "" {
			t.Errorf("two results of one input:\n%s", diff)
		}
	})
}

func FuzzMeshConfig(f *testing.F) {
	fuzzSeeds(f, "mesh-")
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := MeshConfig(b)
		again, _ := MeshConfig(b)
		if diff := cmp.Diff(show(t, got, err), show(t, again, err)); diff != "" {
			t.Errorf("two results of one input:\n%s", diff)
		}
		if got.ConnectTimeout < minConnectTimeout || got.Sampling < 0 || got.Sampling > 100 || got.Providers[providerPrometheus] == nil {
			t.Errorf("out of bounds: %+v", got)
		}
	})
}

func FuzzRateLimit(f *testing.F) {
	fuzzSeeds(f, "ratelimit-")
	f.Fuzz(func(t *testing.T, b []byte) {
		o := &v1alpha1.RateLimit{}
		if yaml.Unmarshal(b, o) != nil {
			return
		}
		got, _ := RateLimit(testConfig(), o)
		for _, l := range got.Local {
			if l.Requests == 0 || l.Burst == 0 || l.Per < minPer || l.Status < 400 {
				t.Errorf("a limit that no proxy takes: %+v", l)
			}
		}
		if len(got.Targets) != len(o.Spec.TargetRefs) {
			t.Errorf("%d targets of %d", len(got.Targets), len(o.Spec.TargetRefs))
		}
	})
}

func fuzzSeeds(f *testing.F, prefix string) {
	for name, b := range inputs(f) {
		if strings.HasPrefix(name, prefix) {
			f.Add(b)
		}
	}
}
