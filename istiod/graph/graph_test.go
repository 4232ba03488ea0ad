package graph

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/proto"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"net/netip"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/translate"
	"github.com/ambit-mesh/ambit/istiod/watch"
)

const rootNS = "istio-system"

// record is a sink that adds changes up.
type record struct {
	state   map[string]string // type name → version
	touched int
	synced  bool
}

func (r *record) Apply(changes []push.Change) {
	for _, c := range changes {
		for _, res := range c.Upsert {
			r.state[c.Type+" "+res.Name] = res.Version
			r.touched++
		}
		for _, n := range c.Removed {
			delete(r.state, c.Type+" "+n)
			r.touched++
		}
	}
}

func (r *record) Synced() { r.synced = true }

func newGraph(t testing.TB) (*Graph, *record) {
	t.Helper()
	sink := &record{state: map[string]string{}}
	g, err := New(Config{
		Config: translate.Config{ClusterID: "c", TrustDomain: "cluster.local", Domain: "cluster.local", RootNamespace: rootNS},
		Log:    slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	}, sink)
	if err != nil {
		t.Fatal(err)
	}
	return g, sink
}

func event(kind model.Kind, o metav1.Object) watch.Event {
	return watch.Event{Kind: kind, Key: model.Key{Namespace: o.GetNamespace(), Name: o.GetName()}, Object: o}
}

func deletion(e watch.Event) watch.Event { e.Object = nil; return e }

func meta(ns, name string, labels map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID("uid-" + name), Labels: labels}
}

func podEvent(ns, name, ip, node string, labels map[string]string) watch.Event {
	return event(model.KindPod, &corev1.Pod{ObjectMeta: meta(ns, name, labels),
		Spec:   corev1.PodSpec{NodeName: node, ServiceAccountName: "sa"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip}})
}

func serviceEvent(ns, name string, selector map[string]string, port int32) watch.Event {
	return event(model.KindService, &corev1.Service{ObjectMeta: meta(ns, name, nil), Spec: corev1.ServiceSpec{
		ClusterIP: "10.96.0.1", Selector: selector, Ports: []corev1.ServicePort{{Port: port, TargetPort: intstr.FromInt32(8080)}}}})
}

func sliceEvent(ns, name, service string, pods ...string) watch.Event {
	s := &discoveryv1.EndpointSlice{ObjectMeta: meta(ns, name, map[string]string{discoveryv1.LabelServiceName: service}), AddressType: discoveryv1.AddressTypeIPv4}
	for _, p := range pods {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: p, UID: types.UID("uid-" + p)}})
	}
	return event(model.KindEndpointSlice, s)
}

func policyEvent(ns, name string, selector map[string]string, action securityapi.AuthorizationPolicy_Action, sources ...string) watch.Event {
	o := &securityv1.AuthorizationPolicy{ObjectMeta: meta(ns, name, nil)}
	o.Spec.Action = action
	if selector != nil {
		o.Spec.Selector = &typeapi.WorkloadSelector{MatchLabels: selector}
	}
	o.Spec.Rules = []*securityapi.Rule{{From: []*securityapi.Rule_From{{Source: &securityapi.Source{IpBlocks: sources}}}}}
	return event(model.KindAuthorizationPolicy, o)
}

func peerEvent(ns, name string, selector map[string]string, mode securityapi.PeerAuthentication_MutualTLS_Mode, portModes map[uint32]securityapi.PeerAuthentication_MutualTLS_Mode) watch.Event {
	o := &securityv1.PeerAuthentication{ObjectMeta: meta(ns, name, nil)}
	o.CreationTimestamp = metav1.NewTime(time.Unix(int64(len(name)), 0))
	if selector != nil {
		o.Spec.Selector = &typeapi.WorkloadSelector{MatchLabels: selector}
	}
	o.Spec.Mtls = &securityapi.PeerAuthentication_MutualTLS{Mode: mode}
	for p, m := range portModes {
		if o.Spec.PortLevelMtls == nil {
			o.Spec.PortLevelMtls = map[uint32]*securityapi.PeerAuthentication_MutualTLS{}
		}
		o.Spec.PortLevelMtls[p] = &securityapi.PeerAuthentication_MutualTLS{Mode: m}
	}
	return event(model.KindPeerAuthentication, o)
}

func namespaceEvent(name string, labels map[string]string) watch.Event {
	return event(model.KindNamespace, &corev1.Namespace{ObjectMeta: meta("", name, labels)})
}

func nodeEvent(name, zone string) watch.Event {
	return event(model.KindNode, &corev1.Node{ObjectMeta: meta("", name, map[string]string{corev1.LabelTopologyZone: zone})})
}

func (g *Graph) workload(t testing.TB, ns, name string) *workload.Workload {
	t.Helper()
	r := g.outputs[ports.TypeAddress]["c//Pod/"+ns+"/"+name]
	if r == nil {
		return nil
	}
	a := &workload.Address{}
	if err := proto.Unmarshal(r.Content(), a); err != nil {
		t.Fatal(err)
	}
	return a.GetWorkload()
}

// randomEvent draws from a small world, so that objects meet each other often.
func randomEvent(r *rand.Rand) watch.Event {
	ns := []string{"a", "b", rootNS}[r.IntN(3)]
	name := fmt.Sprintf("x%d", r.IntN(4))
	labels := func() map[string]string {
		out := map[string]string{}
		for _, k := range []string{"app", "tier"} {
			if r.IntN(3) > 0 {
				out[k] = []string{"p", "q"}[r.IntN(2)]
			}
		}
		return out
	}
	selector := func() map[string]string {
		if r.IntN(3) == 0 {
			return nil
		}
		return labels()
	}
	modes := securityapi.PeerAuthentication_MutualTLS_Mode(r.IntN(4))
	var e watch.Event
	switch r.IntN(7) {
	case 0:
		e = podEvent(ns, name, fmt.Sprintf("10.0.0.%d", 1+r.IntN(9)), fmt.Sprintf("n%d", r.IntN(2)), labels())
	case 1:
		e = serviceEvent(ns, name, selector(), int32(80+r.IntN(2)))
	case 2:
		e = sliceEvent(ns, name, fmt.Sprintf("x%d", r.IntN(4)), fmt.Sprintf("x%d", r.IntN(4)), fmt.Sprintf("x%d", r.IntN(4)))
	case 3:
		e = policyEvent(ns, name, selector(), securityapi.AuthorizationPolicy_Action(r.IntN(3)), fmt.Sprintf("10.0.0.%d", r.IntN(3)))
	case 4:
		e = peerEvent(ns, name, selector(), modes, map[uint32]securityapi.PeerAuthentication_MutualTLS_Mode{8080: securityapi.PeerAuthentication_MutualTLS_Mode(r.IntN(4))})
	case 5:
		l := labels()
		if r.IntN(2) == 0 {
			l[ports.LabelUseWaypoint] = "wp"
		}
		e = namespaceEvent(ns, l)
	default:
		e = nodeEvent(fmt.Sprintf("n%d", r.IntN(2)), fmt.Sprintf("z%d", r.IntN(2)))
	}
	if r.IntN(4) == 0 {
		return deletion(e)
	}
	return e
}

// Whatever the order of events, the outputs are those of the inputs that are left:
// an index that forgets a dependency shows here.
func TestIncrementalEqualsFresh(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		g, sink := newGraph(t)
		wp := &model.Waypoint{Key: model.Key{Namespace: "a", Name: "wp"}, For: model.TrafficAll, AllNamespaces: true, Address: netip.MustParseAddr("10.9.9.9")}
		last := map[input]watch.Event{}
		syncAt := r.IntN(200)
		for i := range 400 {
			if i == syncAt {
				g.Synced()
			}
			if i == 300 {
				g.SetWaypoint(wp.Key, wp)
			}
			e := randomEvent(r)
			g.Handle(e)
			last[input{e.Kind, e.Key}] = e
		}
		fresh, want := newGraph(t)
		fresh.SetWaypoint(wp.Key, wp)
		for _, id := range slices.SortedFunc(maps.Keys(last), func(a, b input) int {
			return strings.Compare(string(b.kind)+b.key.String(), string(a.kind)+a.key.String())
		}) {
			fresh.Handle(last[id])
		}
		fresh.Synced()
		if diff := cmp.Diff(want.state, sink.state); diff != "" {
			t.Fatalf("seed %d: outputs after events differ from those of a fresh graph (-fresh +incremental):\n%s", seed, diff)
		}
		if len(want.state) == 0 {
			t.Fatalf("seed %d: the world is empty, nothing was compared", seed)
		}
	}
}

func TestNothingIsComputedBeforeSync(t *testing.T) {
	g, sink := newGraph(t)
	g.Handle(podEvent("a", "p", "10.0.0.1", "n", nil))
	if sink.touched != 0 || sink.synced {
		t.Error("outputs before the inputs are complete")
	}
	g.Synced()
	if sink.touched != 1 || !sink.synced {
		t.Errorf("after sync: %+v", sink)
	}
}

func TestOnlyWhatChangedIsHandedOn(t *testing.T) {
	g, sink := newGraph(t)
	for i := range 50 {
		g.Handle(podEvent("a", fmt.Sprintf("p%d", i), fmt.Sprintf("10.0.0.%d", i+1), "n1", map[string]string{"app": "x"}))
	}
	g.Handle(serviceEvent("a", "s", map[string]string{"app": "x"}, 80))
	g.Handle(nodeEvent("n1", "z1"))
	g.Synced()
	for _, tt := range []struct {
		name string
		e    watch.Event
		want int
	}{
		{"pod repeated", podEvent("a", "p1", "10.0.0.2", "n1", map[string]string{"app": "x"}), 0},
		{"pod changed", podEvent("a", "p1", "10.0.0.99", "n1", map[string]string{"app": "x"}), 1},
		{"slice of a service with selector", sliceEvent("a", "s-1", "s", "p1", "p2"), 0},
		{"node without a move", nodeEvent("n1", "z1"), 0},
		{"node moved", nodeEvent("n1", "z2"), 50},
		{"service port", serviceEvent("a", "s", map[string]string{"app": "x"}, 81), 51},
		{"policy of the namespace", policyEvent("a", "all", nil, securityapi.AuthorizationPolicy_ALLOW, "10.0.0.1"), 1},
		{"policy with selector", policyEvent("a", "sel", map[string]string{"app": "x"}, securityapi.AuthorizationPolicy_ALLOW, "10.0.0.1"), 51},
		{"its rules", policyEvent("a", "sel", map[string]string{"app": "x"}, securityapi.AuthorizationPolicy_ALLOW, "10.0.0.2"), 1},
		{"unrelated namespace", namespaceEvent("b", map[string]string{"x": "y"}), 0},
	} {
		before := sink.touched
		g.Handle(tt.e)
		if got := sink.touched - before; got != tt.want {
			t.Errorf("%s: %d outputs, want %d", tt.name, got, tt.want)
		}
	}
}

func TestBadObjectKeepsItsLastGoodForm(t *testing.T) {
	g, sink := newGraph(t)
	good := policyEvent("a", "p", nil, securityapi.AuthorizationPolicy_ALLOW, "10.0.0.0/8")
	g.Handle(good)
	g.Synced()
	before := maps.Clone(sink.state)
	g.Handle(policyEvent("a", "p", nil, securityapi.AuthorizationPolicy_ALLOW, "not an address"))
	if diff := cmp.Diff(before, sink.state); diff != "" {
		t.Errorf("the last good form did not stay (-want +got):\n%s", diff)
	}
	p := g.Problems()
	if len(p) != 1 || p[0].Name != "p" || p[0].Namespace != "a" || p[0].Kind != "AuthorizationPolicy" || !p[0].LastGood ||
		!strings.Contains(p[0].Reason, "spec.rules[0].from[0].source.ipBlocks") {
		t.Errorf("problems %+v", p)
	}
	if v := testutil.ToFloat64(g.errors.WithLabelValues("AuthorizationPolicy", "a", "p")); v != 1 {
		t.Errorf("metric is %v", v)
	}
	g.Handle(good)
	if p := g.Problems(); len(p) != 0 {
		t.Errorf("still a problem: %+v", p)
	}
	if n := testutil.CollectAndCount(g.errors); n != 0 {
		t.Errorf("metric still has %d series", n)
	}
}

// A new ALLOW policy that makes no sense must not be as if there were none: that would allow everything.
func TestNewBadAllowPolicyAllowsNothing(t *testing.T) {
	g, sink := newGraph(t)
	g.Synced()
	g.Handle(policyEvent("a", "p", nil, securityapi.AuthorizationPolicy_ALLOW, "not an address"))
	if _, ok := sink.state[ports.TypeAuthorization+" a/p"]; !ok {
		t.Error("the policy is not there at all")
	}
	if p := g.Problems(); len(p) != 1 || p[0].LastGood {
		t.Errorf("problems %+v", p)
	}
	g.Handle(deletion(policyEvent("a", "p", nil, 0)))
	if len(sink.state) != 0 || len(g.Problems()) != 0 {
		t.Errorf("after deletion: %v %v", sink.state, g.Problems())
	}
}

func TestBadPodKeepsItsWorkload(t *testing.T) {
	g, _ := newGraph(t)
	g.Handle(podEvent("a", "p", "10.0.0.1", "n", nil))
	g.Synced()
	g.Handle(podEvent("a", "p", "garbage", "n", nil))
	if w := g.workload(t, "a", "p"); w == nil || len(g.Problems()) != 1 {
		t.Errorf("workload %v, problems %v", w, g.Problems())
	}
}

func TestServiceWithoutSelectorByReference(t *testing.T) {
	g, _ := newGraph(t)
	g.Synced()
	g.Handle(sliceEvent("a", "s-1", "s", "p"))
	g.Handle(serviceEvent("a", "s", nil, 80))
	g.Handle(podEvent("a", "p", "10.0.0.1", "n", nil))
	if w := g.workload(t, "a", "p"); w.GetServices()["a/s.a.svc.cluster.local"] == nil {
		t.Errorf("services %v", w.GetServices())
	}
	// A new pod of the old name is not what the slice means.
	e := podEvent("a", "p", "10.0.0.1", "n", nil)
	e.Object.(*corev1.Pod).UID = "another"
	g.Handle(e)
	if w := g.workload(t, "a", "p"); len(w.GetServices()) != 0 {
		t.Errorf("services %v", w.GetServices())
	}
}

func TestPoliciesOfAWorkload(t *testing.T) {
	strict, permissive := securityapi.PeerAuthentication_MutualTLS_STRICT, securityapi.PeerAuthentication_MutualTLS_PERMISSIVE
	app := map[string]string{"app": "x"}
	g, sink := newGraph(t)
	g.Handle(podEvent("a", "p", "10.0.0.1", "n", app))
	g.Synced()
	steps := []struct {
		name string
		e    watch.Event
		want []string
	}{
		{"none", namespaceEvent("a", nil), nil},
		{"namespace-wide is by scope", policyEvent("a", "wide", nil, 0, "10.0.0.1"), nil},
		{"own namespace", policyEvent("a", "own", app, 0, "10.0.0.1"), []string{"a/own"}},
		{"root namespace", policyEvent(rootNS, "root", app, 0, "10.0.0.1"), []string{"a/own", rootNS + "/root"}},
		{"other namespace", policyEvent("b", "other", app, 0, "10.0.0.1"), []string{"a/own", rootNS + "/root"}},
		{"mesh strict", peerEvent(rootNS, "mesh", nil, strict, nil), []string{"a/own", rootNS + "/root", rootNS + "/" + translate.StaticStrictName}},
		{"namespace permissive", peerEvent("a", "ns", nil, permissive, nil), []string{"a/own", rootNS + "/root"}},
		{"strict port", peerEvent("a", "ports", app, 0, map[uint32]securityapi.PeerAuthentication_MutualTLS_Mode{80: strict}),
			[]string{"a/own", rootNS + "/root", "a/converted_peer_authentication_ports"}},
		{"unsupported action", policyEvent("a", "own", app, securityapi.AuthorizationPolicy_AUDIT, "10.0.0.1"), []string{rootNS + "/root", "a/converted_peer_authentication_ports"}},
	}
	for _, s := range steps {
		g.Handle(s.e)
		if diff := cmp.Diff(s.want, g.workload(t, "a", "p").GetAuthorizationPolicies()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s.name, diff)
		}
		// Whatever a workload refers to must exist.
		for _, name := range g.workload(t, "a", "p").GetAuthorizationPolicies() {
			if _, ok := sink.state[ports.TypeAuthorization+" "+name]; !ok {
				t.Errorf("%s: policy %q is referred to and not served", s.name, name)
			}
		}
	}
}

func TestWhoRunsWhere(t *testing.T) {
	with := func(e watch.Event, f func(*corev1.Pod)) watch.Event { f(e.Object.(*corev1.Pod)); return e }
	for _, tt := range []struct {
		name   string
		events []watch.Event
		want   bool
	}{
		{"no pod", nil, false},
		{"not in the mesh", []watch.Event{podEvent("a", "p", "10.0.0.1", "n", nil)}, false},
		{"by namespace", []watch.Event{namespaceEvent("a", map[string]string{ports.LabelDataplaneMode: "ambient"}), podEvent("a", "p", "", "n", nil)}, true},
		{"opted out", []watch.Event{namespaceEvent("a", map[string]string{ports.LabelDataplaneMode: "ambient"}),
			podEvent("a", "p", "10.0.0.1", "n", map[string]string{ports.LabelDataplaneMode: "none"})}, false},
		{"by its own label", []watch.Event{podEvent("a", "p", "10.0.0.1", "n", map[string]string{ports.LabelDataplaneMode: "ambient"})}, true},
		{"captured still", []watch.Event{with(podEvent("a", "p", "10.0.0.1", "n", nil), func(p *corev1.Pod) {
			p.Annotations = map[string]string{ports.AnnotationRedirection: "enabled"}
		})}, true},
		{"host network", []watch.Event{with(podEvent("a", "p", "10.0.0.1", "n", map[string]string{ports.LabelDataplaneMode: "ambient"}), func(p *corev1.Pod) {
			p.Spec.HostNetwork = true
		})}, false},
		{"finished", []watch.Event{with(podEvent("a", "p", "10.0.0.1", "n", map[string]string{ports.LabelDataplaneMode: "ambient"}), func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodSucceeded
		})}, false},
		{"another node", []watch.Event{podEvent("a", "p", "10.0.0.1", "m", map[string]string{ports.LabelDataplaneMode: "ambient"})}, false},
		{"deleted", []watch.Event{podEvent("a", "p", "10.0.0.1", "n", map[string]string{ports.LabelDataplaneMode: "ambient"}), deletion(podEvent("a", "p", "", "n", nil))}, false},
	} {
		g, _ := newGraph(t)
		for _, e := range tt.events {
			g.Handle(e)
		}
		if got := g.Runs("n", "a", "sa"); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// BenchmarkOnePodAmong10k is the cost of one pod's change in a large cluster.
func BenchmarkOnePodAmong10k(b *testing.B) {
	g, _ := newGraph(b)
	for i := range 1000 {
		ns, app := fmt.Sprintf("ns%d", i%50), map[string]string{"app": fmt.Sprintf("app%d", i)}
		g.Handle(serviceEvent(ns, fmt.Sprintf("s%d", i), app, 80))
		for j := range 10 {
			labels := map[string]string{"app": fmt.Sprintf("app%d", i), "version": "v1", "pod-template-hash": "abc"}
			g.Handle(podEvent(ns, fmt.Sprintf("p%d-%d", i, j), fmt.Sprintf("10.%d.%d.%d", i/200, i%200, j+1), fmt.Sprintf("n%d", j), labels))
		}
	}
	for i := range 20 {
		g.Handle(policyEvent(fmt.Sprintf("ns%d", i), "pol", map[string]string{"version": "v1"}, 0, "10.0.0.1"))
	}
	g.Synced()
	labels := map[string]string{"app": "app500", "version": "v1", "pod-template-hash": "abc"}
	e := []watch.Event{podEvent("ns0", "p500-0", "10.2.100.1", "n0", labels), podEvent("ns0", "p500-0", "10.2.100.2", "n0", labels)}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		g.Handle(e[i%2])
	}
}

// BenchmarkFirstComputation10k is what a restart costs before anything is served.
func BenchmarkFirstComputation10k(b *testing.B) {
	var events []watch.Event
	for i := range 10_000 {
		labels := map[string]string{"app": fmt.Sprintf("app%d", i/10), "version": "v1"}
		events = append(events, podEvent(fmt.Sprintf("ns%d", i%50), fmt.Sprintf("p%d", i), fmt.Sprintf("10.%d.%d.1", i>>8, i&255), "n1", labels))
	}
	for b.Loop() {
		g, _ := newGraph(b)
		for _, e := range events {
			g.Handle(e)
		}
		g.Synced()
	}
}
