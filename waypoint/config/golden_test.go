package config

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/tests/envoybin"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// minGolden is how many inputs the project promises to keep golden files of here.
const minGolden = 40

// build writes everything that the case's proxy is told; own says how many of the resources are the proxy's own.
func build(t testing.TB, c *testCase) (all []Resource, own int) {
	t.Helper()
	add := func(r []Resource, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r...)
	}
	add(Proxy(c.proxy))
	own = len(all)
	for i := range c.proxy.Scopes {
		all = append(all, Scope(c.proxy, &c.proxy.Scopes[i])...)
	}
	if c.partOnly {
		own = len(all)
	}
	for _, table := range c.tables {
		add(RouteTable(c.proxy, table))
	}
	for _, cluster := range c.clusters {
		add(Cluster(c.proxy, cluster))
	}
	for _, e := range c.endpoints {
		r, err := Endpoints(c.proxy, e)
		add([]Resource{r}, err)
	}
	return all, own
}

// plain is a resource as JSON would have it.
func plain(t testing.TB, m proto.Message) map[string]any {
	t.Helper()
	b, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func render(t testing.TB, resources []Resource) string {
	t.Helper()
	var s strings.Builder
	for _, r := range resources {
		b, err := yaml.Marshal(elide(plain(t, r.Message)))
		if err != nil {
			t.Fatal(err)
		}
		s.WriteString("---\n# " + r.Type[strings.LastIndex(r.Type, ".")+1:] + " " + r.Name + "\n")
		s.Write(b)
	}
	return s.String()
}

// elide leaves out what package route writes: it has golden files of its own.
func elide(v any) any {
	const elsewhere = "see package route"
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = elide(v[i])
		}
	case map[string]any:
		if _, ok := v["httpFilters"]; ok && v["statPrefix"] != names.ConnectTerminate {
			v["httpFilters"] = elsewhere
		}
		if v["name"] == "envoy.filters.network.rbac" {
			return elsewhere
		}
		if _, ok := v["virtualHosts"]; ok && v["name"] != names.RouteConnect {
			v["virtualHosts"] = elsewhere
		}
		if _, ok := v["typedPerFilterConfig"]; ok {
			v["typedPerFilterConfig"] = elsewhere
		}
		for k := range v {
			v[k] = elide(v[k])
		}
	}
	return v
}

func TestGolden(t *testing.T) {
	all := cases(t)
	if len(all) < minGolden {
		t.Errorf("%d cases, want at least %d", len(all), minGolden)
	}
	seen := map[string]bool{}
	for _, c := range all {
		if seen[c.name] {
			t.Errorf("two cases are called %q", c.name)
		}
		seen[c.name] = true
		t.Run(c.name, func(t *testing.T) {
			resources, own := build(t, &c)
			if !c.partOnly {
				own = 0
			}
			got := render(t, resources[own:])
			path := filepath.Join("testdata", "golden", c.name+".yaml")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got; -update accepts it):\n%s", path, diff)
			}
		})
	}
	files, err := filepath.Glob(filepath.Join("testdata", "golden", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".yaml"); !seen[name] {
			t.Errorf("%s is of no case", f)
		}
	}
}

// TestSameInputSameBytes: a pusher compares resources by their bytes, so a map's order must not show.
func TestSameInputSameBytes(t *testing.T) {
	for _, c := range cases(t) {
		one, _ := build(t, &c)
		for range 3 {
			two, _ := build(t, &c)
			for i := range one {
				x, errX := proto.MarshalOptions{Deterministic: true}.Marshal(one[i].Message)
				y, errY := proto.MarshalOptions{Deterministic: true}.Marshal(two[i].Message)
				if errX != nil || errY != nil || string(x) != string(y) {
					t.Errorf("%s: %s %q differs from one call to the next (%v, %v)", c.name, one[i].Type, one[i].Name, errX, errY)
				}
			}
		}
	}
}

// TestEnvoyAcceptsEveryGoldenConfiguration asks the real binary.
func TestEnvoyAcceptsEveryGoldenConfiguration(t *testing.T) {
	bin := envoybin.Path(t)
	for _, c := range cases(t) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			resources, _ := build(t, &c)
			if out, err := validate(t, bin, bootstrap(t, resources)); err != nil {
				t.Errorf("Envoy refuses it: %v\n%s", err, out)
			}
		})
	}
}

// TestEnvoyRefusesABrokenConfiguration shows that the test above can fail.
func TestEnvoyRefusesABrokenConfiguration(t *testing.T) {
	c := testCase{proxy: waypoint(telemetry(model.HTTPFilters{Logs: []model.AccessLog{{LogFile: model.LogFile{Text: "%NO_SUCH_COMMAND%"}}}}))}
	resources, _ := build(t, &c)
	if _, err := validate(t, envoybin.Path(t), bootstrap(t, resources)); err == nil {
		t.Error("Envoy accepted an access log with a format that does not exist")
	}
}

// validateTimeout bounds one start of Envoy on a machine that does other things too.
const validateTimeout = time.Minute

func validate(t testing.TB, bin string, config map[string]any) (string, error) {
	t.Helper()
	b, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), validateTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, bin, "--mode", "validate", "-c", path, "--log-level", "error").CombinedOutput()
	return string(out), err
}

// bootstrap makes one static configuration of the resources, so that Envoy reads all of it at once: what refers to
// another resource by name gets that resource in its place.
func bootstrap(t testing.TB, resources []Resource) map[string]any {
	t.Helper()
	s := static{byName: map[string]map[string]any{}}
	var scopes []any
	for _, r := range resources {
		m := plain(t, r.Message)
		s.byName[r.Type+"/"+r.Name] = m
		if r.Type == names.TypeScopedRoute {
			scopes = append(scopes, m)
		}
	}
	if len(scopes) == 0 {
		// Envoy wants a static list of scopes to have one.
		scopes = []any{map[string]any{"name": "none", "routeConfigurationName": "none", "key": map[string]any{"fragments": []any{map[string]any{"stringKey": "none"}}}}}
	}
	for _, m := range scopes {
		s.scopes = append(s.scopes, s.scope(m.(map[string]any)))
	}
	lists := map[string][]any{}
	for _, r := range resources {
		m := s.byName[r.Type+"/"+r.Name]
		if r.Type == names.TypeCluster {
			s.endpoints(m)
		}
		lists[r.Type] = append(lists[r.Type], s.inline(m))
	}
	secrets := append(lists[names.TypeSecret], map[string]any{
		"name": names.SecretRoots, "validationContext": map[string]any{"trustedCa": map[string]any{"filename": "testdata/tls/ca.pem"}},
	}, map[string]any{
		"name": names.SecretIdentity, "tlsCertificate": map[string]any{
			"certificateChain": map[string]any{"filename": "testdata/tls/server.pem"}, "privateKey": map[string]any{"filename": "testdata/tls/server.key"},
		},
	})
	clusters := append(lists[names.TypeCluster], map[string]any{
		"name": names.XDS, "type": "STATIC", "typedExtensionProtocolOptions": map[string]any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": map[string]any{
				"@type":              "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
				"explicitHttpConfig": map[string]any{"http2ProtocolOptions": map[string]any{}},
			},
		},
	})
	for _, name := range s.missing(lists[names.TypeCluster]) {
		clusters = append(clusters, map[string]any{"name": name, "type": "STATIC"})
	}
	return map[string]any{
		"node": map[string]any{"id": "test", "cluster": "test"},
		"bootstrapExtensions": []any{map[string]any{"name": "envoy.bootstrap.internal_listener", "typedConfig": map[string]any{
			"@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
		}}},
		"dynamicResources": map[string]any{"adsConfig": map[string]any{
			"apiType": "DELTA_GRPC", "transportApiVersion": "V3",
			"grpcServices": []any{map[string]any{"envoyGrpc": map[string]any{"clusterName": names.XDS}}},
		}},
		"staticResources": map[string]any{"listeners": lists[names.TypeListener], "clusters": clusters, "secrets": secrets},
	}
}

// static replaces references by what they refer to.
type static struct {
	byName map[string]map[string]any
	scopes []any
	refs   []string
}

// scope is a scoped route with its table inside.
func (s *static) scope(m map[string]any) map[string]any {
	out := map[string]any{"name": m["name"], "key": m["key"]}
	out["routeConfiguration"] = s.table(m["routeConfigurationName"].(string))
	return out
}

func (s *static) table(name string) map[string]any {
	if m := s.byName[names.TypeRoute+"/"+name]; m != nil {
		return m
	}
	return map[string]any{"name": name}
}

func (s *static) endpoints(m map[string]any) {
	if m["type"] != "EDS" {
		return
	}
	m["type"] = "STATIC"
	delete(m, "edsClusterConfig")
	m["loadAssignment"] = map[string]any{"clusterName": m["name"]}
	if e := s.byName[names.TypeEndpoints+"/"+m["name"].(string)]; e != nil {
		m["loadAssignment"] = e
	}
}

func (s *static) inline(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = s.inline(v[i])
		}
	case map[string]any:
		delete(v, "sdsConfig")
		if rds, ok := v["rds"].(map[string]any); ok {
			delete(v, "rds")
			v["routeConfig"] = s.table(rds["routeConfigName"].(string))
		}
		if sr, ok := v["scopedRoutes"].(map[string]any); ok {
			delete(sr, "scopedRds")
			delete(sr, "rdsConfigSource")
			sr["scopedRouteConfigurationsList"] = map[string]any{"scopedRouteConfigurations": s.scopes}
		}
		for _, k := range []string{"cluster", "clusterName"} {
			if name, ok := v[k].(string); ok {
				s.refs = append(s.refs, name)
			}
		}
		for k := range v {
			v[k] = s.inline(v[k])
		}
	}
	return v
}

// missing are clusters that something static refers to, which Envoy checks, and that are not part of the case.
func (s *static) missing(have []any) []string {
	known := map[string]bool{names.XDS: true}
	for _, c := range have {
		known[c.(map[string]any)["name"].(string)] = true
	}
	var out []string
	for _, name := range s.refs {
		if !known[name] {
			known[name] = true
			out = append(out, name)
		}
	}
	return out
}
