package graph

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
	"github.com/ambit-mesh/ambit/istiod/watch"
)

// clock is a time that a test moves.
type clock struct{ now time.Time }

func (c *clock) pass(g *Graph, d time.Duration) { c.now = c.now.Add(d); g.Require() }

// shop is a graph with a namespace that uses waypoint a/w, which is ready and serves the service web.
func shop(t *testing.T, mesh model.Bypass, events ...watch.Event) (*Graph, *clock) {
	t.Helper()
	c := &clock{now: time.Unix(1e9, 0)}
	g, err := New(Config{
		Config: translate.Config{ClusterID: "c", TrustDomain: "cluster.local", Domain: "cluster.local", RootNamespace: rootNS},
		Log:    slog.New(slog.DiscardHandler), Now: func() time.Time { return c.now }, Bypass: mesh,
	}, &record{state: map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	g.Handle(namespaceEvent("a", map[string]string{ports.LabelUseWaypoint: "w"}))
	for _, e := range events {
		g.Handle(e)
	}
	g.Synced()
	g.SetCallers(key("a", "w"), "w", []string{"web.a.svc.cluster.local"})
	g.SetWaypoint(key("a", "w"), waypoint("w"))
	g.SetServed(key("a", "w"), []string{"a/web.a.svc.cluster.local"}, true)
	return g, c
}

func waypoint(name string) *model.Waypoint {
	return &model.Waypoint{Key: key("a", name), Hostname: name + ".a.svc.cluster.local", HBONEPort: ports.HBONE, Ready: true}
}

// svc is a service of namespace a for the pods app=web, with a virtual address unless it is headless.
func svc(name, vip string, target intstr.IntOrString, change ...func(*corev1.Service)) watch.Event {
	s := &corev1.Service{ObjectMeta: meta("a", name, map[string]string{}), Spec: corev1.ServiceSpec{
		ClusterIP: vip, Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: target}}}}
	s.Annotations = map[string]string{}
	for _, f := range change {
		f(s)
	}
	return event(model.KindService, s)
}

func annotated(bypass string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations[ports.AnnotationWaypointBypass] = bypass }
}

func noWaypoint(s *corev1.Service) { s.Labels[ports.LabelUseWaypoint] = "none" }

func pod() watch.Event { return namedPort("web-1", "10.0.0.1", 8080) }

// namedPort is a pod whose port "web" has a number.
func namedPort(name, ip string, port int32) watch.Event {
	return event(model.KindPod, &corev1.Pod{ObjectMeta: meta("a", name, map[string]string{"app": "web"}),
		Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "sa", Containers: []corev1.Container{
			{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: port}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip}})
}

// required lists the policies that keep pods for their waypoints, each with whom it lets in.
func (g *Graph) requiredPolicies(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for name, r := range g.outputs[ports.TypeAuthorization] {
		if !strings.Contains(name, ports.WaypointRequiredPrefix) {
			continue
		}
		a := &security.Authorization{}
		if err := proto.Unmarshal(r.Content(), a); err != nil {
			t.Fatal(err)
		}
		m := a.GetRules()[0].GetClauses()[0].GetMatches()[0]
		var who []string
		if len(m.GetPrincipals()) > 0 {
			who = append(who, "plaintext")
		}
		for _, p := range m.GetNotPrincipals() {
			who = append(who, strings.TrimPrefix(p.GetExact(), "cluster.local/ns/"))
		}
		out[strings.TrimPrefix(name, "a/"+ports.WaypointRequiredPrefix)] = strings.Join(who, " ")
	}
	return out
}

func (g *Graph) attachedTo(t *testing.T, pod string) []string {
	var out []string
	for _, n := range g.workload(t, "a", pod).GetAuthorizationPolicies() {
		if rest, is := strings.CutPrefix(n, "a/"+ports.WaypointRequiredPrefix); is {
			out = append(out, rest)
		}
	}
	return out
}

func TestRequiredPolicies(t *testing.T) {
	eight := intstr.FromInt32(8080)
	for name, c := range map[string]struct {
		mesh   model.Bypass
		events []watch.Event
		// more are served beside web.
		more []string
		want map[string]string
	}{
		"a service": {events: []watch.Event{svc("web", "10.96.0.1", eight), pod()},
			want: map[string]string{"web_8080": "plaintext a/sa/w"}},
		"strict": {events: []watch.Event{svc("web", "10.96.0.1", eight, annotated("strict")), pod()},
			want: map[string]string{"web_8080": "a/sa/w"}},
		"strict mesh": {mesh: model.BypassStrict, events: []watch.Event{svc("web", "10.96.0.1", eight), pod()},
			want: map[string]string{"web_8080": "a/sa/w"}},
		"allowed": {events: []watch.Event{svc("web", "10.96.0.1", eight, annotated("allow")), pod()}, want: map[string]string{}},
		"allowed by the mesh": {mesh: model.BypassAllow, events: []watch.Event{svc("web", "10.96.0.1", eight), pod()},
			want: map[string]string{}},
		"refused against the mesh": {mesh: model.BypassAllow, events: []watch.Event{svc("web", "10.96.0.1", eight, annotated("refuse")), pod()},
			want: map[string]string{"web_8080": "plaintext a/sa/w"}},
		"no pods": {events: []watch.Event{svc("web", "10.96.0.1", eight)}, want: map[string]string{}},
		"ports by name": {events: []watch.Event{svc("web", "10.96.0.1", intstr.FromString("web")), pod(), namedPort("web-2", "10.0.0.2", 9090)},
			want: map[string]string{"web_8080": "plaintext a/sa/w", "web_9090": "plaintext a/sa/w"}},
		"another service without waypoint": {
			events: []watch.Event{svc("web", "10.96.0.1", eight), svc("old", "10.96.0.2", eight, noWaypoint), pod()}, want: map[string]string{}},
		"another service without waypoint at another port": {
			events: []watch.Event{svc("web", "10.96.0.1", eight), svc("old", "10.96.0.2", intstr.FromInt32(9090), noWaypoint), pod()},
			want:   map[string]string{"web_8080": "plaintext a/sa/w"}},
		"another service that is not served yet": {
			events: []watch.Event{svc("web", "10.96.0.1", eight), svc("new", "10.96.0.2", eight), pod()}, want: map[string]string{}},
		"two services of the waypoint": {more: []string{"new"},
			events: []watch.Event{svc("web", "10.96.0.1", eight), svc("new", "10.96.0.2", eight, annotated("strict")), pod()},
			want:   map[string]string{"new.web_8080": "plaintext a/sa/w"}},
		"headless beside it": {events: []watch.Event{svc("web", "10.96.0.1", eight), svc("pods", "None", eight), pod()},
			want: map[string]string{"web_8080": "plaintext a/sa/w"}},
		"headless beside it, without waypoint": {events: []watch.Event{svc("web", "10.96.0.1", eight), svc("pods", "None", eight, noWaypoint), pod()},
			want: map[string]string{}},
		"headless beside it, allowed": {events: []watch.Event{svc("web", "10.96.0.1", eight), svc("pods", "None", eight, annotated("allow")), pod()},
			want: map[string]string{}},
		"headless alone": {events: []watch.Event{svc("web", "None", eight), pod()}, want: map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			g, clock := shop(t, c.mesh, c.events...)
			for _, n := range c.more {
				g.SetServed(key("a", "w"), []string{"a/" + n + ".a.svc.cluster.local"}, true)
			}
			if got := g.requiredPolicies(t); len(got) > 0 {
				t.Errorf("before ztunnels could hear of the waypoint: %v", got)
			}
			clock.pass(g, requiredAfter)
			got := g.requiredPolicies(t)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			for p := range got {
				if on := "web-1"; !strings.HasSuffix(p, "_9090") && !slices.Equal(g.attachedTo(t, on), []string{p}) {
					t.Errorf("%s has %v", on, g.attachedTo(t, on))
				}
			}
		})
	}
}

// The policy comes a while after the waypoint, and goes a while before it.
func TestRequiredOrder(t *testing.T) {
	g, clock := shop(t, 0, svc("web", "10.96.0.1", intstr.FromInt32(8080)), pod())
	told := func() bool { return g.service(t, "a", "web").GetWaypoint() != nil }
	refused := func() bool { return len(g.attachedTo(t, "web-1")) > 0 }
	check := func(what string, wantTold, wantRefused bool) {
		t.Helper()
		if told() != wantTold || refused() != wantRefused || refused() != (len(g.requiredPolicies(t)) > 0) {
			t.Errorf("%s: told %v, refused %v with %v", what, told(), refused(), g.requiredPolicies(t))
		}
	}
	check("at first", true, false)
	clock.pass(g, requiredAfter-time.Second)
	check("too early", true, false)
	clock.pass(g, time.Second)
	check("in time", true, true)

	g.Handle(namespaceEvent("a", nil))
	check("as the label goes", true, false)
	clock.pass(g, withdrawLead-time.Millisecond)
	check("still", true, false)
	clock.pass(g, time.Millisecond)
	check("after that", false, false)

	g.Handle(namespaceEvent("a", map[string]string{ports.LabelUseWaypoint: "w"}))
	check("back", true, false)
	clock.pass(g, requiredAfter)
	check("back for a while", true, true)

	// A label that comes back before the waypoint went: the policy waits again.
	g.Handle(namespaceEvent("a", nil))
	clock.pass(g, time.Second)
	g.Handle(namespaceEvent("a", map[string]string{ports.LabelUseWaypoint: "w"}))
	clock.pass(g, requiredAfter-time.Second)
	check("changed one's mind", true, false)
	clock.pass(g, time.Second)
	check("changed one's mind for good", true, true)

	// Nothing can be held of a waypoint that is no more.
	g.SetWaypoint(key("a", "w"), nil)
	check("without the waypoint", false, false)
}

// What istiod tells at its start holds already: a restart opens nothing.
func TestRequiredAtTheStart(t *testing.T) {
	g, _ := newGraph(t)
	g.Handle(namespaceEvent("a", map[string]string{ports.LabelUseWaypoint: "w"}))
	g.Handle(svc("web", "10.96.0.1", intstr.FromInt32(8080)))
	g.Handle(pod())
	g.SetCallers(key("a", "w"), "w", nil)
	g.SetWaypoint(key("a", "w"), waypoint("w"))
	g.SetServed(key("a", "w"), []string{"a/web.a.svc.cluster.local"}, true)
	g.Synced()
	if got := g.attachedTo(t, "web-1"); len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

// Proxies that send to the pods are let in when they begin to, and for a while after they end.
func TestRequiredCallers(t *testing.T) {
	g, clock := shop(t, 0, svc("web", "10.96.0.1", intstr.FromInt32(8080)), pod())
	clock.pass(g, requiredAfter)
	who := func() string { return g.requiredPolicies(t)["web_8080"] }
	expect := func(what, want string) {
		t.Helper()
		if who() != "plaintext "+want {
			t.Errorf("%s: %q, want %q", what, who(), want)
		}
	}
	web := []string{"web.a.svc.cluster.local"}
	g.SetCallers(key("b", "gw"), "gw-istio", []string{"other.a.svc.cluster.local"})
	expect("a gateway to elsewhere", "a/sa/w")
	g.SetCallers(key("b", "gw"), "gw-istio", web)
	expect("a gateway", "a/sa/w b/sa/gw-istio")
	g.SetCallers(key("b", "gw"), "gw-istio", nil)
	expect("a gateway that has just left", "a/sa/w b/sa/gw-istio")
	clock.pass(g, callerLinger)
	expect("a gateway that left", "a/sa/w")

	// A waypoint takes over from another without a gap, and the old one may come as long as it serves.
	g.SetCallers(key("a", "v"), "v", web)
	g.SetWaypoint(key("a", "v"), waypoint("v"))
	g.SetServed(key("a", "v"), []string{"a/web.a.svc.cluster.local"}, true)
	expect("a second waypoint", "a/sa/v a/sa/w")
	g.Handle(namespaceEvent("a", map[string]string{ports.LabelUseWaypoint: "v"}))
	expect("the second takes over", "a/sa/v a/sa/w")
	g.SetWaypoint(key("a", "w"), nil)
	g.SetCallers(key("a", "w"), "", nil)
	expect("the first ends its requests", "a/sa/v a/sa/w")
	clock.pass(g, callerLinger)
	expect("the first is gone", "a/sa/v")
	if len(g.required.callers) != 2 {
		t.Errorf("%d callers are kept", len(g.required.callers))
	}
}

// Nothing is kept of what is gone.
func TestRequiredForgets(t *testing.T) {
	web := svc("web", "10.96.0.1", intstr.FromInt32(8080))
	for name, gone := range map[string]watch.Event{"pod": deletion(pod()), "service": deletion(web)} {
		t.Run(name, func(t *testing.T) {
			g, clock := shop(t, 0, web, pod())
			clock.pass(g, requiredAfter)
			if len(g.requiredPolicies(t)) != 1 {
				t.Fatal("there is nothing to forget")
			}
			g.Handle(gone)
			if n := len(g.required.groups) + len(g.required.ofPod) + len(g.requiredPolicies(t)); n != 0 {
				t.Errorf("kept: %+v", g.required)
			}
		})
	}
}

// Run enforces in time, without any further event.
func TestRunRequires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGraph(t)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- g.Run(ctx) }()
		g.Handle(namespaceEvent("a", map[string]string{ports.LabelUseWaypoint: "w"}))
		g.Handle(svc("web", "10.96.0.1", intstr.FromInt32(8080)))
		g.Handle(pod())
		g.Synced()
		g.SetCallers(key("a", "w"), "w", nil)
		g.SetWaypoint(key("a", "w"), waypoint("w"))
		g.SetServed(key("a", "w"), []string{"a/web.a.svc.cluster.local"}, true)
		refused := func() bool {
			g.mu.RLock()
			defer g.mu.RUnlock()
			return len(g.attachedTo(t, "web-1")) > 0
		}
		// The clock of the bubble moves when everything in it waits.
		<-time.After(requiredAfter - time.Millisecond)
		synctest.Wait()
		if refused() {
			t.Error("refused too early")
		}
		<-time.After(2 * time.Millisecond)
		synctest.Wait()
		if !refused() {
			t.Error("not refused in time")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
