package istiod

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/istiod/graph"
	"github.com/ambit-mesh/ambit/istiod/layer7"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/translate"
	"github.com/ambit-mesh/ambit/istiod/watch"
)

// rendered is a mesh whose proxies' configurations are written as Envoy's.
type rendered struct {
	layers
	directory *push.Directory
}

func newRendered(t testing.TB) rendered {
	t.Helper()
	cfg := translate.Config{ClusterID: "c", TrustDomain: "cluster.local", Domain: "cluster.local", RootNamespace: "istio-system"}
	log := slog.New(slog.DiscardHandler)
	g, err := graph.New(graph.Config{Config: cfg, Log: log, Metrics: prometheus.NewRegistry()}, push.NewCache(push.Types()...))
	if err != nil {
		t.Fatal(err)
	}
	d := push.NewDirectory()
	e, err := layer7.New(layer7.Config{Config: cfg, Log: log, Metrics: prometheus.NewRegistry()}, g, renderer{}, d)
	if err != nil {
		t.Fatal(err)
	}
	return rendered{layers{g, e}, d}
}

func (r rendered) feed(t testing.TB, text string) {
	t.Helper()
	events, err := watch.Parse([]byte(text), "test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		r.Handle(e)
	}
}

// TestScenariosAreRendered: whatever layer 7 computes can be written as Envoy's configuration.
func TestScenariosAreRendered(t *testing.T) {
	files, err := filepath.Glob("layer7/testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios (%v)", err)
	}
	common, err := os.ReadFile("layer7/testdata/common/mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			in, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r := newRendered(t)
			first, _, _ := strings.Cut(string(in), "\n# then\n")
			if !strings.Contains(first, "# without common\n") {
				r.feed(t, string(common))
			}
			r.feed(t, first)
			r.Synced()
			if pod := r.graph.Pod(model.Key{Namespace: "shop", Name: "edge-1"}); pod != nil {
				r.engine.Join(model.Key{Namespace: "shop", Name: "edge"}, pod)
			}
			for _, p := range r.engine.Problems() {
				if p.Kind == "Proxy" {
					t.Errorf("%s/%s: %s", p.Namespace, p.Name, p.Reason)
				}
			}
		})
	}
}

func manyServices(n int) string {
	var out strings.Builder
	for i := range n {
		fmt.Fprintf(&out, `---
apiVersion: v1
kind: Service
metadata: {name: s%[1]d, namespace: shop}
spec: {clusterIP: 10.97.%[2]d.%[3]d, selector: {app: s%[1]d}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: s%[1]d-1, namespace: shop, uid: p%[1]d, labels: {app: s%[1]d}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: s%[1]d}
status: {phase: Running, podIP: 10.1.%[2]d.%[3]d, conditions: [{type: Ready, status: "True"}]}
%[4]s`, i, i/250, i%250+1, oneRoute(i, "/a"))
	}
	return out.String()
}

func oneRoute(i int, path string) string {
	return fmt.Sprintf(`---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: s%[1]d, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: s%[1]d}]
  rules: [{matches: [{path: {value: %[2]s}}], backendRefs: [{name: s%[1]d, port: 80}]}, {backendRefs: [{name: s%[1]d, port: 80}]}]
`, i, path)
}

// BenchmarkWaypointFull computes and renders 1,000 services with two rules each; the goal is 1.5 s.
func BenchmarkWaypointFull(b *testing.B) {
	text := waypointYAML + manyServices(1000)
	for range b.N {
		b.StopTimer()
		r := newRendered(b)
		r.feed(b, text)
		b.StartTimer()
		r.Synced()
	}
}

// BenchmarkWaypointChange changes one route of 1,000; the goal is 10 ms.
func BenchmarkWaypointChange(b *testing.B) {
	r := newRendered(b)
	r.feed(b, waypointYAML+manyServices(1000))
	r.Synced()
	b.ResetTimer()
	for i := range b.N {
		r.feed(b, oneRoute(500, fmt.Sprintf("/x%d", i)))
		r.engine.Flush()
	}
}
