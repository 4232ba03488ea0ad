package layer7

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/graph"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
)

// noted is a mesh that takes down which callers it is told of.
type noted struct {
	*graph.Graph
	callers map[string]string
}

func (n noted) SetCallers(proxy model.Key, account string, hosts []string) {
	if account == "" {
		delete(n.callers, proxy.String())
	} else {
		n.callers[proxy.String()] = account + " " + strings.Join(hosts, " ")
	}
	n.Graph.SetCallers(proxy, account, hosts)
}

// The mesh is told as whom proxies run and where they send, before they send there, and when they are gone.
func TestCallersAreTold(t *testing.T) {
	w := newWorld(t)
	mesh := noted{w.graph, map[string]string{}}
	caches := push.NewDirectory()
	engine, err := New(Config{Config: w.engine.cfg.Config, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }}, mesh, w.render, caches)
	if err != nil {
		t.Fatal(err)
	}
	w.engine = engine
	w.feed(common(t))
	w.feed([]byte(service(1, "/a")))
	w.synced()
	told := mesh.callers[waypointKey.String()]
	if !strings.HasPrefix(told, "waypoint ") || !slices.Contains(strings.Fields(told), "s1.shop.svc.cluster.local") {
		t.Fatalf("told %q", mesh.callers)
	}
	before := maps.Clone(mesh.callers)
	w.feed([]byte(route(1, "/b")))
	if diff := cmp.Diff(before, mesh.callers); diff != "" {
		t.Errorf("a route that leads to the same place changes callers (-before +after):\n%s", diff)
	}
	w.feed([]byte(strings.ReplaceAll(route(1, "/b"), "name: s1, port", "name: s2, port") + "---\n" + service(2, "/a")))
	if got := mesh.callers[waypointKey.String()]; !strings.Contains(got, "s2.shop.") {
		t.Errorf("another destination: %q", got)
	}
	w.feed([]byte(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, annotations: {` + deleted + `: "true"}}
spec: {gatewayClassName: istio-waypoint}
`))
	if got, is := mesh.callers[waypointKey.String()]; is {
		t.Errorf("a waypoint that is gone: %q", got)
	}
}
