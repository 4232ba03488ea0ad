package layer7

import (
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/wrapperspb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/istiod/graph"
	"github.com/ambit-mesh/ambit/istiod/layer7/resolve"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/translate"
	"github.com/ambit-mesh/ambit/istiod/watch"
)

var update = flag.Bool("update", false, "write the golden files")

// now is the time of all scenarios.
var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// plain is a renderer that writes the model down as it is. Fail names parts that it refuses, flaw tables of which it
// refuses a rule.
type plain struct {
	fail map[string]bool
	flaw map[string]error
	// count is how many parts were rendered.
	count *int
}

func (p plain) message(v any) *wrapperspb.BytesValue {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // the model has nothing that JSON lacks
	}
	return wrapperspb.Bytes(b)
}

func (p plain) render(typ, name string, v any) ([]Resource, error) {
	*p.count++
	if p.fail[name] {
		return nil, fmt.Errorf("cannot write %q", name)
	}
	if typ == push.TypeCluster {
		// The server of proxies looks into clusters.
		return []Resource{{Type: typ, Name: name, Message: &clusterv3.Cluster{Name: name, AltStatName: string(p.message(v).GetValue())}}}, nil
	}
	return []Resource{{Type: typ, Name: name, Message: p.message(v)}}, nil
}

func (p plain) Proxy(m *model.Proxy) ([]Resource, error) {
	return p.render(push.TypeListener, "main", m)
}

func (p plain) Scope(_ *model.Proxy, s *model.Scope) []Resource {
	out, _ := p.render(push.TypeScope, s.Name, s)
	return out
}

func (p plain) RouteTable(_ *model.Proxy, t *model.RouteTable) ([]Resource, error) {
	out, err := p.render(push.TypeRoute, t.Name, t)
	if flaw := p.flaw[t.Name]; flaw != nil && err == nil {
		out[0].Problems = []error{flaw}
	}
	return out, err
}

func (p plain) Cluster(_ *model.Proxy, c *model.Cluster) ([]Resource, error) {
	return p.render(push.TypeCluster, c.Name, c)
}

func (p plain) Endpoints(_ *model.Proxy, e *model.Endpoints) (Resource, error) {
	out, err := p.render(push.TypeEndpoints, e.Cluster, e)
	if err != nil {
		return Resource{}, err
	}
	return out[0], nil
}

// told collects statuses and deployments.
type told struct {
	statuses map[string]*model.Status
	deployed map[string]bool
	writes   int
}

func (t *told) Set(s *model.Status) {
	t.writes++
	t.statuses[string(s.Kind)+" "+s.Key.String()] = s
}

func (t *told) Delete(kind model.Kind, key model.Key) {
	delete(t.statuses, string(kind)+" "+key.String())
}

// deployments is told as the deployer.
type deployments struct{ *told }

func (d deployments) Set(g *model.Gateway) { d.deployed[g.Key.String()] = true }
func (d deployments) Delete(k model.Key)   { delete(d.deployed, k.String()) }

// keys is a fetcher of one issuer.
type keys struct{}

func (keys) Get(uri, _ string) (string, error) {
	if strings.Contains(uri, "good") {
		return `{"keys":[{"kid":"1"}]}`, nil
	}
	return model.UnusableJWKS, fmt.Errorf("fetch %q: refused", uri)
}

func (k keys) Condition(uri, issuer string) model.Condition {
	if _, err := k.Get(uri, issuer); err != nil {
		return model.Condition{Type: "KeysResolved", Reason: "FetchFailed", Message: err.Error()}
	}
	return model.Condition{Type: "KeysResolved", Reason: "Fetched", OK: true}
}

func (keys) Forget(string, string) {}

// discard takes what the graph publishes to ztunnels.
type discard struct{}

func (discard) Apply([]push.Change) {}
func (discard) Synced()             {}

// world is a mesh and its engine.
type world struct {
	t      testing.TB
	graph  *graph.Graph
	engine *Engine
	caches *push.Directory
	told   *told
	render plain
}

func newWorld(t testing.TB) *world {
	t.Helper()
	cfg := translate.Config{ClusterID: "c", TrustDomain: "cluster.local", Domain: "cluster.local", RootNamespace: "istio-system"}
	log := slog.New(slog.DiscardHandler)
	g, err := graph.New(graph.Config{Config: cfg, Log: log, Metrics: prometheus.NewRegistry()}, discard{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, graph: g, caches: push.NewDirectory(), told: &told{statuses: map[string]*model.Status{}, deployed: map[string]bool{}},
		render: plain{fail: map[string]bool{}, flaw: map[string]error{}, count: new(int)},
	}
	w.engine, err = New(Config{
		Config: cfg, Statuses: w.told, Deployments: deployments{w.told}, Keys: keys{}, Log: log, Metrics: prometheus.NewRegistry(),
		Now: func() time.Time { return now },
	}, g, w.render, w.caches)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// deleted marks an object of a later stage that goes.
const deleted = "test/deleted"

// feed hands over the objects of YAML documents.
func (w *world) feed(b []byte) {
	w.t.Helper()
	events, err := watch.Parse(b, "test.yaml")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range events {
		if e.Object.(metav1.Object).GetAnnotations()[deleted] != "" {
			e.Object = nil
		}
		w.graph.Handle(e)
		w.engine.Handle(e)
	}
	w.engine.Flush()
}

func (w *world) synced() {
	w.engine.Synced()
	w.graph.Synced()
	w.engine.Flush()
}

// compact makes a value of the model readable: what is zero is left out.
func compact(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return compact(v.Elem())
	case reflect.Struct:
		if s, ok := v.Interface().(fmt.Stringer); ok && !strings.HasPrefix(v.Type().PkgPath(), "github.com/ambit") {
			return s.String()
		}
		out := map[string]any{}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.IsExported() && !v.Field(i).IsZero() {
				out[f.Name] = compact(v.Field(i))
			}
		}
		return out
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return fmt.Sprintf("%d bytes", v.Len())
		}
		out := []any{}
		for i := range v.Len() {
			out = append(out, compact(v.Index(i)))
		}
		return out
	case reflect.Map:
		out := map[string]any{}
		for _, k := range v.MapKeys() {
			out[fmt.Sprint(k.Interface())] = compact(v.MapIndex(k))
		}
		return out
	}
	return v.Interface()
}

// dump is everything that came out, as YAML.
func (w *world) dump() []byte {
	w.t.Helper()
	out := map[string]any{}
	proxies := map[string]any{}
	for key, p := range w.engine.proxies {
		m := map[string]any{}
		tables, clusters, endpoints := map[string]any{}, map[string]any{}, map[string]any{}
		for u, s := range w.engine.units {
			if u.proxy != key {
				continue
			}
			switch o := s.output.(type) {
			case *proxyOutput:
				m["proxy"] = compact(reflect.ValueOf(o.proxy))
			case *resolve.Output:
				for _, t := range o.Tables {
					tables[t.Name] = compact(reflect.ValueOf(t.Hosts))
				}
			case *clusterOutput:
				clusters[o.cluster.Name] = compact(reflect.ValueOf(o.cluster))
				if o.endpoints != nil {
					endpoints[o.cluster.Name] = compact(reflect.ValueOf(o.endpoints.Endpoints))
				}
			}
		}
		m["tables"], m["clusters"], m["endpoints"] = tables, clusters, endpoints
		_ = p
		proxies[key.String()] = m
	}
	out["proxies"] = proxies
	statuses := map[string]any{}
	for name, s := range w.told.statuses {
		if text := status(s); len(text) > 0 {
			statuses[name] = text
		}
	}
	out["statuses"] = statuses
	out["deployed"] = slices.Sorted(maps.Keys(w.told.deployed))
	var problems []string
	for _, p := range w.engine.Problems() {
		problems = append(problems, fmt.Sprintf("%s %s/%s: %s (last good: %v)", p.Kind, p.Namespace, p.Name, p.Reason, p.LastGood))
	}
	out["problems"] = problems
	b, err := yaml.Marshal(out)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// status is a verdict in few words.
func status(s *model.Status) map[string]any {
	out := map[string]any{}
	if c := conditions(s.Conditions); len(c) > 0 {
		out["conditions"] = c
	}
	for _, p := range s.Parents {
		out["parent "+p.Key.String()+"#"+p.Section+fmt.Sprint(p.Index)] = conditions(p.Conditions)
	}
	for _, l := range s.Listeners {
		out["listener "+l.Name] = append([]string{fmt.Sprintf("%d routes of %v", l.Attached, l.Kinds)}, conditions(l.Conditions)...)
	}
	for _, a := range s.Addresses {
		out["address"] = a.Type + " " + a.Value
	}
	return out
}

func conditions(in []model.Condition) []string {
	var out []string
	for _, c := range in {
		out = append(out, fmt.Sprintf("%s=%v %s: %s", c.Type, c.OK, c.Reason, c.Message))
	}
	return out
}

// stage separates what comes later.
const stage = "\n# then\n"

// TestScenarios: each file of testdata is a mesh, perhaps with later changes; its golden file is what comes out.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d scenarios (%v), want at least 40", len(files), err)
	}
	common, err := os.ReadFile("testdata/common/mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			in, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t)
			stages := strings.Split(string(in), stage)
			if !strings.Contains(stages[0], "# without common\n") {
				w.feed(common)
			}
			w.feed([]byte(stages[0]))
			w.synced()
			for _, s := range stages[1:] {
				w.feed([]byte(s))
			}
			got := w.dump()
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			// The same objects in another order, and all at once, give the same.
			again := newWorld(t)
			again.reversed(common, stages)
			if diff := cmp.Diff(string(got), string(again.dump())); diff != "" && len(stages) == 1 {
				t.Errorf("in another order (-first +second):\n%s", diff)
			}
		})
	}
}

// reversed hands over the objects of the first stage from the last to the first, after Synced.
func (w *world) reversed(common []byte, stages []string) {
	w.t.Helper()
	w.synced()
	all := stages[0]
	if !strings.Contains(all, "# without common\n") {
		all = string(common) + "\n---\n" + all
	}
	events, err := watch.Parse([]byte(all), "test.yaml")
	if err != nil {
		w.t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, e := range slices.Backward(events) {
		// Of an object that is written twice the later form is the one that is meant.
		if id := string(e.Kind) + e.Key.String(); seen[id] {
			continue
		} else {
			seen[id] = true
		}
		w.graph.Handle(e)
		w.engine.Handle(e)
		w.engine.Flush()
	}
}
