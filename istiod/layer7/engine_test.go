package layer7

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
)

func common(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/common/mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func scenario(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var waypointKey = model.Key{Namespace: "shop", Name: "waypoint"}

// service is a Service with an HTTPRoute of two rules, as one of many.
func service(n int, path string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: s%[1]d, namespace: shop}
spec: {clusterIP: 10.97.%[3]d.%[4]d, selector: {app: s%[1]d}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: s%[1]d-1, namespace: shop, uid: p%[1]d, labels: {app: s%[1]d}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: s%[1]d}
status: {phase: Running, podIP: 10.1.%[3]d.%[4]d, conditions: [{type: Ready, status: "True"}]}
---
`, n, path, n/250, n%250+1) + route(n, path)
}

func route(n int, path string) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: s%[1]d, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: s%[1]d}]
  rules:
  - matches: [{path: {value: %[2]s}}]
    backendRefs: [{name: s%[1]d, port: 80}]
  - backendRefs: [{name: s%[1]d, port: 80}]
`, n, path)
}

// A change of one service renders that service's parts and no others, and what did not change is not pushed.
func TestOneChangeTouchesOneService(t *testing.T) {
	w := newWorld(t)
	w.feed(common(t))
	for n := range 20 {
		w.feed([]byte(service(n, "/a")))
	}
	w.synced()
	cache := w.caches.Get(waypointKey)
	versions := func() map[string]string {
		out := map[string]string{}
		for _, typ := range push.EnvoyTypes() {
			for _, r := range cache.All(typ) {
				out[typ+" "+r.Name] = r.Version
			}
		}
		return out
	}
	before := versions()
	*w.render.count = 0
	w.feed([]byte(route(7, "/b")))
	after := versions()
	var changed []string
	for k, v := range after {
		if before[k] != v {
			changed = append(changed, k)
		}
	}
	if want := []string{push.TypeRoute + " shop/s7.shop.svc.cluster.local:80"}; !slices.Equal(changed, want) || len(before) != len(after) {
		t.Errorf("a route's change changed %v, want %v", changed, want)
	}
	if *w.render.count > 4 {
		t.Errorf("%d parts were rendered for one route", *w.render.count)
	}
	// The same again, as when only its status changed, does nothing.
	*w.render.count = 0
	w.feed([]byte(route(7, "/b")))
	if *w.render.count != 0 {
		t.Errorf("%d parts were rendered for nothing", *w.render.count)
	}
}

// A service that goes takes its scope, table, cluster and endpoints with it.
func TestServiceGoes(t *testing.T) {
	w := newWorld(t)
	w.feed(common(t))
	w.feed([]byte(service(1, "/a")))
	w.synced()
	cache := w.caches.Get(waypointKey)
	names := func() []string {
		var out []string
		for _, typ := range push.EnvoyTypes() {
			for _, r := range cache.All(typ) {
				if strings.Contains(r.Name, "s1.shop") {
					out = append(out, typ+" "+r.Name)
				}
			}
		}
		return out
	}
	if got := names(); len(got) != 4 {
		t.Fatalf("the service has %v", got)
	}
	w.feed([]byte(`
apiVersion: v1
kind: Service
metadata: {name: s1, namespace: shop, annotations: {test/deleted: "yes"}}
`))
	if got := names(); len(got) != 0 {
		t.Errorf("left of the service: %v", got)
	}
	if st := w.told.statuses["HTTPRoute shop/s1"]; st == nil || st.Parents[0].Conditions[0].OK {
		t.Errorf("the route of a service that is gone is still accepted: %+v", st)
	}
}

// What cannot be rendered leaves the last state with the proxy, is named, and disturbs no other part.
func TestPartThatCannotBeRendered(t *testing.T) {
	w := newWorld(t)
	w.feed(common(t))
	w.feed([]byte(service(1, "/a")))
	w.synced()
	cache := w.caches.Get(waypointKey)
	table := "shop/s1.shop.svc.cluster.local:80"
	before := cache.Get(push.TypeRoute, table).Version
	w.render.fail[table] = true
	w.feed([]byte(route(1, "/b")))
	w.feed([]byte(service(2, "/a")))
	if got := cache.Get(push.TypeRoute, table); got == nil || got.Version != before {
		t.Error("the last state is gone")
	}
	if cache.Get(push.TypeRoute, "shop/s2.shop.svc.cluster.local:80") == nil {
		t.Error("another service was disturbed")
	}
	if p := w.engine.Problems(); len(p) != 1 || !strings.Contains(p[0].Reason, "cannot write") {
		t.Errorf("problems %+v", p)
	}
	delete(w.render.fail, table)
	w.feed([]byte(route(1, "/c")))
	if got := cache.Get(push.TypeRoute, table); got.Version == before || len(w.engine.Problems()) != 0 {
		t.Errorf("it did not recover: %v", w.engine.Problems())
	}
}

// A certificate that expires takes its listener out of service and says so, without an event.
func TestCertificateExpires(t *testing.T) {
	at := now
	w := newWorld(t)
	w.engine.cfg.Now = func() time.Time { return at }
	w.feed(common(t))
	w.feed(scenario(t, "gateway-https"))
	w.synced()
	listener := func() model.Condition {
		for _, l := range w.told.statuses["Gateway shop/gw"].Listeners {
			if l.Name == "a" {
				return l.Conditions[3]
			}
		}
		t.Fatal("no listener a")
		return model.Condition{}
	}
	if c := listener(); !c.OK {
		t.Fatalf("a good certificate: %+v", c)
	}
	at = at.AddDate(200, 0, 0)
	w.engine.expire()
	w.engine.Flush()
	if c := listener(); c.OK || c.Reason != "InvalidCertificateRef" || !strings.Contains(c.Message, "expired") {
		t.Errorf("an expired certificate: %+v", c)
	}
	ports := w.engine.units[unit{kind: unitProxy, proxy: model.Key{Namespace: "shop", Name: "gw"}}].output.(*proxyOutput).proxy.Ports
	if len(ports) != 1 || !ports[0].Chains[0].Reject {
		t.Errorf("the listener goes on: %+v", ports)
	}
}

// The pods that an Istio Gateway chooses become a proxy when one of them connects.
func TestIstioGateway(t *testing.T) {
	w := newWorld(t)
	w.feed(common(t))
	w.feed(scenario(t, "istio-gateway"))
	w.synced()
	key := model.Key{Namespace: "shop", Name: "edge"}
	pod := w.graph.Pod(model.Key{Namespace: "shop", Name: "edge-1"})
	if !w.engine.Join(key, pod) {
		t.Fatal("the pod did not join")
	}
	if w.engine.Join(key, w.graph.Pod(model.Key{Namespace: "shop", Name: "web-1"})) {
		t.Error("a pod of another service account took the proxy's name")
	}
	none := model.Key{Namespace: "shop", Name: "none"}
	if !w.engine.Join(none, w.graph.Pod(model.Key{Namespace: "shop", Name: "web-1"})) {
		t.Error("a gateway that no Gateway chooses yet cannot start")
	}
	if p := w.engine.units[unit{kind: unitProxy, proxy: none}].output.(*proxyOutput).proxy; len(p.Ports) != 0 {
		t.Errorf("it has %+v", p.Ports)
	}
	p := w.engine.units[unit{kind: unitProxy, proxy: key}].output.(*proxyOutput).proxy
	var chains []string
	for _, port := range p.Ports {
		for _, c := range port.Chains {
			chains = append(chains, fmt.Sprintf("%d→%d %s %v tls=%v tcp=%v", port.Port, port.Bind, c.Routes, c.SNI, c.TLS != nil, c.TCP != nil))
		}
	}
	want := []string{
		"80→8080 http.80 [] tls=false tcp=false",
		"443→8443 https.443.shop.edge.https [*.example.com] tls=true tcp=false",
		"8444→8444  [pass.example.com] tls=false tcp=true",
	}
	if !slices.Equal(chains, want) {
		t.Errorf("chains\n%s\nwant\n%s", strings.Join(chains, "\n"), strings.Join(want, "\n"))
	}
	cache := w.caches.Get(key)
	for _, table := range []string{"http.80", "https.443.shop.edge.https"} {
		if cache.Get(push.TypeRoute, table) == nil {
			t.Errorf("no table %q", table)
		}
	}
	table := w.engine.units[unit{kind: unitTable, proxy: key, name: "http.80"}]
	if text := fmt.Sprintf("%+v", table.output); !strings.Contains(text, "Tables") {
		t.Errorf("table: %s", text)
	}
}

// A new service is announced to node proxies only after the waypoint has taken it; one that leaves is served on for a
// while, and taken up again at once if it comes back.
func TestMakeBeforeBreak(t *testing.T) {
	at := now
	w := newWorld(t)
	connected, settled := true, false
	w.engine.cfg.Settled = func(model.Key) (bool, bool) { return connected, settled }
	w.engine.cfg.Now = func() time.Time { return at }
	w.feed(common(t))
	w.synced()
	served := func(name string) bool { return w.graph.Serves(waypointKey, "shop/"+name+".shop.svc.cluster.local") }
	if !served("web") {
		t.Error("what was there at the start is not served at once")
	}
	w.feed([]byte(service(1, "/a")))
	at = at.Add(settleMin)
	if waiting := w.engine.Announce(); !waiting || served("s1") {
		t.Error("announced before the proxy had it")
	}
	settled = true
	if waiting := w.engine.Announce(); waiting || !served("s1") {
		t.Error("not announced although the proxy has it")
	}
	// A proxy that answers never holds it up for a bounded time only.
	settled = false
	w.feed([]byte(service(2, "/a")))
	at = at.Add(settleMax)
	if w.engine.Announce(); !served("s2") {
		t.Error("not announced although it was waited for long enough")
	}
	connected = false
	w.feed([]byte(service(3, "/a")))
	at = at.Add(settleAlone)
	if w.engine.Announce(); !served("s3") {
		t.Error("not announced although no proxy is connected")
	}

	cache := w.caches.Get(waypointKey)
	scope := "shop/web.shop.svc.cluster.local:80"
	label := "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {%s}}\n"
	w.feed([]byte(fmt.Sprintf(label, "")))
	if cache.Get(push.TypeScope, scope) == nil {
		t.Fatal("a service that left is forgotten at once")
	}
	at = at.Add(linger / 2)
	w.feed([]byte(fmt.Sprintf(label, "istio.io/use-waypoint: waypoint")))
	at = at.Add(linger)
	w.engine.expire()
	if cache.Get(push.TypeScope, scope) == nil || !served("web") {
		t.Fatal("a service that came back is forgotten")
	}
	w.feed([]byte(fmt.Sprintf(label, "")))
	at = at.Add(linger + time.Second)
	w.engine.expire()
	w.engine.Flush()
	if cache.Get(push.TypeScope, scope) != nil || served("web") {
		t.Error("a service that left long ago is still served")
	}
}

// A proxy's rejection shows in its Gateway's status until it is mended.
func TestRejection(t *testing.T) {
	w := newWorld(t)
	w.feed(common(t))
	w.synced()
	r := push.Rejection{Proxy: waypointKey, Type: push.TypeRoute, Names: []string{"x"}, Reason: "no such thing"}
	says := func() string { return fmt.Sprint(w.told.statuses["Gateway shop/waypoint"].Conditions) }
	w.engine.Rejected(r)
	w.engine.Flush()
	if !strings.Contains(says(), "no such thing") {
		t.Errorf("status %s", says())
	}
	r.Reason = ""
	w.engine.Rejected(r)
	w.engine.Flush()
	if strings.Contains(says(), "no such thing") {
		t.Errorf("status %s", says())
	}
}

// Every unit's notes are taken back when it goes, so that nothing grows while objects come and go.
func TestNothingIsLeft(t *testing.T) {
	w := newWorld(t)
	w.feed(common(t))
	w.synced()
	units, subs := len(w.engine.units), len(w.engine.subs)
	for n := range 5 {
		w.feed([]byte(service(n, "/a")))
	}
	for n := range 5 {
		for _, kind := range []string{"v1/Service", "v1/Pod", "gateway.networking.k8s.io/v1/HTTPRoute"} {
			i := strings.LastIndex(kind, "/")
			name := fmt.Sprintf("s%d", n)
			if strings.HasSuffix(kind, "Pod") {
				name += "-1"
			}
			w.feed([]byte(fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: %s, namespace: shop, annotations: {test/deleted: \"yes\"}}\n", kind[:i], kind[i+1:], name)))
		}
	}
	if got := len(w.engine.units); got != units {
		t.Errorf("%d units, want %d", got, units)
	}
	if got := len(w.engine.subs); got != subs {
		t.Errorf("%d questions, want %d: %v", got, subs, slices.Collect(maps.Keys(w.engine.subs)))
	}
	p := w.engine.proxies[waypointKey]
	if len(p.references) != 1 || len(p.parts) != 1 {
		t.Errorf("left: clusters %v, %d parts", p.references, len(p.parts))
	}
}

// many feeds a mesh of n services with two rules each.
func many(b testing.TB, n int) *world {
	w := newWorld(b)
	w.feed(common(b))
	for i := range n {
		w.feed([]byte(service(i, "/a")))
	}
	return w
}

// BenchmarkFull computes 1,000 services with two rules each for a waypoint, from nothing; the goal is 1.5 s.
func BenchmarkFull(b *testing.B) {
	for range b.N {
		b.StopTimer()
		w := many(b, 1000)
		b.StartTimer()
		w.engine.Synced()
	}
}

// BenchmarkOneChange changes one of 1,000 services' routes; the goal is 10 ms.
func BenchmarkOneChange(b *testing.B) {
	w := many(b, 1000)
	w.synced()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		w.feed([]byte(route(500, fmt.Sprintf("/x%d", i))))
	}
}

// BenchmarkEndpointChange changes one pod of 1,000 services.
func BenchmarkEndpointChange(b *testing.B) {
	w := many(b, 1000)
	w.synced()
	pod := strings.Split(service(500, "/a"), "---")[1]
	b.ResetTimer()
	for i := range b.N {
		status := `"True"`
		if i%2 == 0 {
			status = `"False"`
		}
		w.feed([]byte(strings.Replace(pod, `"True"`, status, 1)))
	}
}

// BenchmarkNewService adds and removes a service among 1,000.
func BenchmarkNewService(b *testing.B) {
	w := many(b, 1000)
	w.synced()
	b.ResetTimer()
	for i := range b.N {
		if i%2 == 0 {
			w.feed([]byte(service(2000, "/a")))
		} else {
			w.feed([]byte("apiVersion: v1\nkind: Service\nmetadata: {name: s2000, namespace: shop, annotations: {test/deleted: \"yes\"}}\n"))
		}
	}
}
