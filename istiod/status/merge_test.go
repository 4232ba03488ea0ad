package status

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kjson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// clock is when the tests write; before is when somebody wrote earlier.
var clock = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func fromYAML(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	if err := kjson.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: out}
}

func meta(kind model.Kind, name string, generation int64) model.Meta {
	return model.Meta{Kind: kind, Key: model.Key{Namespace: "shop", Name: name}, Generation: generation}
}

func yes(t, reason, message string) model.Condition {
	return model.Condition{Type: t, Reason: reason, Message: message, OK: true}
}

func no(t, reason, message string) model.Condition {
	return model.Condition{Type: t, Reason: reason, Message: message}
}

func parent(index int, c ...model.Condition) model.ParentStatus {
	return model.ParentStatus{Parent: model.Parent{Index: index}, Conditions: c}
}

// mergeCases: what is in the cluster, what istiod says, and the fields that change. An empty want is no change.
var mergeCases = []struct {
	name   string
	live   string
	status model.Status
	want   string
	stale  bool
}{
	{
		name: "class: replaces the default, adds features",
		live: `
metadata: {name: istio, generation: 1}
status:
  conditions:
  - {type: Accepted, status: Unknown, reason: Pending, message: Waiting for controller, lastTransitionTime: "1970-01-01T00:00:00Z"}
`,
		status: model.Status{Meta: meta(model.KindGatewayClass, "istio", 1), Conditions: []model.Condition{yes("Accepted", "Accepted", "ours")}, Features: []string{"Gateway", "HTTPRoute"}},
		want: `
conditions:
- {type: Accepted, status: "True", reason: Accepted, message: ours, lastTransitionTime: "2026-11-22T12:00:00Z", observedGeneration: 1}
supportedFeatures: [{name: Gateway}, {name: HTTPRoute}]
`,
	},
	{
		name: "class: nothing new",
		live: `
metadata: {name: istio, generation: 1}
status:
  conditions:
  - {type: Accepted, status: "True", reason: Accepted, message: ours, lastTransitionTime: "2026-01-01T00:00:00Z", observedGeneration: 1}
  supportedFeatures: [{name: Gateway}]
`,
		status: model.Status{Meta: meta(model.KindGatewayClass, "istio", 1), Conditions: []model.Condition{yes("Accepted", "Accepted", "ours")}, Features: []string{"Gateway"}},
	},
	{
		name: "gateway: another message keeps the time, another status does not, others' conditions stay, ours go",
		live: `
metadata: {name: g, namespace: shop, generation: 3}
status:
  addresses: [{type: IPAddress, value: 10.0.0.1}]
  conditions:
  - {type: example.org/Checked, status: "True", reason: R, message: theirs, lastTransitionTime: "2026-01-01T00:00:00Z"}
  - {type: Accepted, status: "True", reason: Accepted, message: old, lastTransitionTime: "2026-01-02T00:00:00Z", observedGeneration: 2}
  - {type: Programmed, status: "False", reason: Pending, message: "", lastTransitionTime: "2026-01-03T00:00:00Z", observedGeneration: 2}
  - {type: ResolvedRefs, status: "False", reason: X, message: "", lastTransitionTime: "2026-01-04T00:00:00Z", observedGeneration: 2}
  - {type: InsecureFrontendValidationMode, status: "True", reason: ConfigurationChanged, message: "", lastTransitionTime: "2026-01-04T00:00:00Z", observedGeneration: 2}
  listeners:
  - name: mesh
    attachedRoutes: 0
    supportedKinds: []
    conditions: [{type: Accepted, status: "True", reason: Accepted, message: "", lastTransitionTime: "2026-01-05T00:00:00Z", observedGeneration: 2}]
  - name: gone
    attachedRoutes: 1
    conditions: []
`,
		status: model.Status{
			Meta: meta(model.KindGateway, "g", 3), Conditions: []model.Condition{yes("Accepted", "Accepted", "new"), yes("Programmed", "Programmed", "")},
			Addresses: []model.GatewayAddress{{Type: "IPAddress", Value: "10.0.0.1"}},
			Listeners: []model.ListenerStatus{{Name: "mesh", Kinds: []model.Kind{"HTTPRoute"}, Attached: 2, Conditions: []model.Condition{yes("Accepted", "Accepted", "")}}},
		},
		want: `
conditions:
- {type: example.org/Checked, status: "True", reason: R, message: theirs, lastTransitionTime: "2026-01-01T00:00:00Z"}
- {type: Accepted, status: "True", reason: Accepted, message: new, lastTransitionTime: "2026-01-02T00:00:00Z", observedGeneration: 3}
- {type: Programmed, status: "True", reason: Programmed, message: "", lastTransitionTime: "2026-11-22T12:00:00Z", observedGeneration: 3}
listeners:
- name: mesh
  attachedRoutes: 2
  supportedKinds: [{group: gateway.networking.k8s.io, kind: HTTPRoute}]
  conditions: [{type: Accepted, status: "True", reason: Accepted, message: "", lastTransitionTime: "2026-01-05T00:00:00Z", observedGeneration: 3}]
`,
	},
	{
		name: "gateway: addresses go",
		live: `
metadata: {name: g, namespace: shop, generation: 1}
status: {addresses: [{type: IPAddress, value: 10.0.0.1}], conditions: [], listeners: []}
`,
		status: model.Status{Meta: meta(model.KindGateway, "g", 1)},
		want:   `addresses: []`,
	},
	{
		name: "gateway: the object is newer", stale: true,
		live:   `{metadata: {name: g, namespace: shop, generation: 4}}`,
		status: model.Status{Meta: meta(model.KindGateway, "g", 3), Conditions: []model.Condition{yes("Accepted", "Accepted", "")}},
	},
	{
		name: "gateway: another object of the name", stale: true,
		live: `{metadata: {name: g, namespace: shop, generation: 1, uid: new}}`,
		status: func() model.Status {
			m := meta(model.KindGateway, "g", 1)
			m.UID = "old"
			return model.Status{Meta: m, Conditions: []model.Condition{yes("Accepted", "Accepted", "")}}
		}(),
	},
	{
		name: "route: parents are the route's own words, others' stay in place, ours that are gone go",
		live: `
metadata: {name: r, namespace: shop, generation: 2}
spec:
  parentRefs:
  - {name: front}
  - {group: "", kind: Service, name: cart, port: 80}
status:
  parents:
  - {parentRef: {name: front}, controllerName: example.org/other, conditions: [{type: Accepted, status: "True", reason: A, message: "", lastTransitionTime: "2026-01-01T00:00:00Z"}]}
  - {parentRef: {group: gateway.networking.k8s.io, kind: Gateway, name: front, namespace: shop}, controllerName: istio.io/gateway-controller, conditions: [{type: Accepted, status: "True", reason: Accepted, message: "", lastTransitionTime: "2026-01-01T00:00:00Z", observedGeneration: 1}]}
  - {parentRef: {name: gone}, controllerName: istio.io/gateway-controller, conditions: []}
`,
		status: model.Status{Meta: meta(model.KindHTTPRoute, "r", 2), Parents: []model.ParentStatus{
			parent(0, yes("Accepted", "Accepted", "")), parent(1, yes("Accepted", "Accepted", ""), no("ResolvedRefs", "BackendNotFound", "no Service shop/x")),
		}},
		want: `
parents:
- {parentRef: {name: front}, controllerName: example.org/other, conditions: [{type: Accepted, status: "True", reason: A, message: "", lastTransitionTime: "2026-01-01T00:00:00Z"}]}
- {parentRef: {name: front}, controllerName: istio.io/gateway-controller, conditions: [{type: Accepted, status: "True", reason: Accepted, message: "", lastTransitionTime: "2026-01-01T00:00:00Z", observedGeneration: 2}]}
- parentRef: {group: "", kind: Service, name: cart, port: 80}
  controllerName: istio.io/gateway-controller
  conditions:
  - {type: Accepted, status: "True", reason: Accepted, message: "", lastTransitionTime: "2026-11-22T12:00:00Z", observedGeneration: 2}
  - {type: ResolvedRefs, status: "False", reason: BackendNotFound, message: no Service shop/x, lastTransitionTime: "2026-11-22T12:00:00Z", observedGeneration: 2}
`,
	},
	{
		name: "route: sections of one gateway are told apart",
		live: `
metadata: {name: r, namespace: shop, generation: 1}
spec: {parentRefs: [{name: front, sectionName: a}, {name: front, sectionName: b}]}
status:
  parents:
  - {parentRef: {name: front, sectionName: b}, controllerName: istio.io/gateway-controller, conditions: [{type: Accepted, status: "False", reason: NoMatchingParent, message: "", lastTransitionTime: "2026-01-01T00:00:00Z", observedGeneration: 1}]}
`,
		status: model.Status{Meta: meta(model.KindHTTPRoute, "r", 1), Parents: []model.ParentStatus{
			parent(0, yes("Accepted", "Accepted", "")), parent(1, no("Accepted", "NoMatchingParent", "")),
		}},
		want: `
parents:
- {parentRef: {name: front, sectionName: b}, controllerName: istio.io/gateway-controller, conditions: [{type: Accepted, status: "False", reason: NoMatchingParent, message: "", lastTransitionTime: "2026-01-01T00:00:00Z", observedGeneration: 1}]}
- {parentRef: {name: front, sectionName: a}, controllerName: istio.io/gateway-controller, conditions: [{type: Accepted, status: "True", reason: Accepted, message: "", lastTransitionTime: "2026-11-22T12:00:00Z", observedGeneration: 1}]}
`,
	},
	{
		name: "route: not ours and never was",
		live: `
metadata: {name: r, namespace: shop, generation: 1}
spec: {parentRefs: [{name: theirs}]}
`,
		status: model.Status{Meta: meta(model.KindTLSRoute, "r", 1)},
	},
	{
		name: "route: references that the object does not have", stale: true,
		live:   `{metadata: {name: r, namespace: shop, generation: 1}, spec: {parentRefs: []}}`,
		status: model.Status{Meta: meta(model.KindTCPRoute, "r", 0), Parents: []model.ParentStatus{parent(0, yes("Accepted", "Accepted", ""))}},
	},
	{
		name: "policy: ancestors",
		live: `
metadata: {name: p, namespace: shop, generation: 1}
status:
  ancestors:
  - {ancestorRef: {name: x}, controllerName: example.org/other, conditions: []}
`,
		status: model.Status{Meta: meta(model.KindBackendTLSPolicy, "p", 1), Parents: []model.ParentStatus{
			{Parent: model.Parent{Kind: model.ParentGateway, Key: model.Key{Namespace: "web", Name: "front"}, Section: "https"}, Conditions: []model.Condition{yes("Accepted", "Accepted", "")}},
			{Parent: model.Parent{Kind: model.ParentService, Key: model.Key{Namespace: "shop", Name: "cart"}, Port: 443}, Conditions: []model.Condition{no("Accepted", "Conflicted", "older policy shop/q")}},
			{Parent: model.Parent{Kind: model.ParentServiceEntry, Key: model.Key{Namespace: "shop", Name: "out"}}, Conditions: []model.Condition{yes("Accepted", "", "")}},
		}},
		want: `
ancestors:
- {ancestorRef: {name: x}, controllerName: example.org/other, conditions: []}
- {ancestorRef: {group: gateway.networking.k8s.io, kind: Gateway, namespace: web, name: front, sectionName: https}, controllerName: istio.io/gateway-controller, conditions: [{type: Accepted, status: "True", reason: Accepted, message: "", lastTransitionTime: "2026-11-22T12:00:00Z", observedGeneration: 1}]}
- {ancestorRef: {group: "", kind: Service, namespace: shop, name: cart, port: 443}, controllerName: istio.io/gateway-controller, conditions: [{type: Accepted, status: "False", reason: Conflicted, message: older policy shop/q, lastTransitionTime: "2026-11-22T12:00:00Z", observedGeneration: 1}]}
- {ancestorRef: {group: networking.istio.io, kind: ServiceEntry, namespace: shop, name: out}, controllerName: istio.io/gateway-controller, conditions: [{type: Accepted, status: "True", reason: Accepted, message: "", lastTransitionTime: "2026-11-22T12:00:00Z", observedGeneration: 1}]}
`,
	},
	{
		name: "service: beside the load balancer's conditions",
		live: `
metadata: {name: cart, namespace: shop}
status:
  loadBalancer: {ingress: [{ip: 192.0.2.1}]}
  conditions:
  - {type: LoadBalancerReady, status: "True", reason: R, message: "", lastTransitionTime: "2026-01-01T00:00:00Z"}
  - {type: istio.io/WaypointMissing, status: "True", reason: R, message: "", lastTransitionTime: "2026-01-01T00:00:00Z"}
`,
		status: model.Status{Meta: meta(model.KindService, "cart", 0), Conditions: []model.Condition{yes("istio.io/WaypointBound", "WaypointAccepted", "Successfully attached to waypoint shop/waypoint")}},
		want: `
conditions:
- {type: LoadBalancerReady, status: "True", reason: R, message: "", lastTransitionTime: "2026-01-01T00:00:00Z"}
- {type: istio.io/WaypointBound, status: "True", reason: WaypointAccepted, message: Successfully attached to waypoint shop/waypoint, lastTransitionTime: "2026-11-22T12:00:00Z"}
`,
	},
	{
		name: "istio kind: fields that we do not know stay, a generation in text is the same",
		live: `
metadata: {name: p, namespace: shop, generation: 5}
status:
  observedGeneration: "5"
  validationMessages: [{type: {code: IST0108}}]
  conditions:
  - {type: WaypointAccepted, status: "True", reason: Accepted, message: "", lastProbeTime: "2026-01-01T00:00:00Z", lastTransitionTime: "2026-01-01T00:00:00Z", observedGeneration: "5"}
  - {type: Reconciled, status: "True"}
`,
		status: model.Status{Meta: meta(model.KindAuthorizationPolicy, "p", 5), Conditions: []model.Condition{yes("WaypointAccepted", "Accepted", "")}},
	},
	{
		name:   "istio kind: first status",
		live:   `{metadata: {name: v, namespace: shop, generation: 1}, spec: {}}`,
		status: model.Status{Meta: meta(model.KindVirtualService, "v", 1), Conditions: []model.Condition{no("Accepted", "Invalid", "http[0]: delegate shop/w: cycle"), {}}},
		want: `
conditions:
- {type: Accepted, status: "False", reason: Invalid, message: "http[0]: delegate shop/w: cycle", lastTransitionTime: "2026-11-22T12:00:00Z", observedGeneration: 1}
`,
	},
	{
		name:   "a status that is not a map",
		live:   `{metadata: {name: v, namespace: shop, generation: 1}, status: none}`,
		status: model.Status{Meta: meta(model.KindRateLimit, "v", 1), Conditions: []model.Condition{yes("Accepted", "Accepted", "")}},
		want:   `conditions: [{type: Accepted, status: "True", reason: Accepted, message: "", lastTransitionTime: "2026-11-22T12:00:00Z", observedGeneration: 1}]`,
	},
}

func TestMerge(t *testing.T) {
	for _, tc := range mergeCases {
		t.Run(tc.name, func(t *testing.T) {
			res, ok := resourceOf(tc.status.Kind)
			if !ok {
				t.Fatalf("kind %s is not known", tc.status.Kind)
			}
			live := fromYAML(t, tc.live)
			got, stale := merge(live, &tc.status, res.shape, clock)
			if stale != tc.stale {
				t.Fatalf("stale %t, want %t", stale, tc.stale)
			}
			var want map[string]any
			if tc.want != "" {
				want = fromYAML(t, tc.want).Object
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("changed (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(fromYAML(t, tc.live).Object, live.Object); diff != "" {
				t.Errorf("the live object was changed:\n%s", diff)
			}
			// What was written is what is wanted: a second look finds no difference.
			if status, ok := live.Object["status"].(map[string]any); ok {
				for k, v := range got {
					status[k] = v
				}
			} else if got != nil {
				live.Object["status"] = got
			}
			if again, _ := merge(live, &tc.status, res.shape, clock.Add(time.Hour)); again != nil {
				t.Errorf("a second time: %v", again)
			}
		})
	}
}

// TestLimits: what the schema would refuse is shortened, because a status in part says more than none.
func TestLimits(t *testing.T) {
	s := &model.Status{Meta: meta(model.KindGateway, "g", 1), Conditions: []model.Condition{no("Accepted", "Invalid", strings.Repeat("ä", maxMessage))}}
	for i := range 100 {
		s.Addresses = append(s.Addresses, model.GatewayAddress{Value: "192.0.2.1"})
		s.Listeners = append(s.Listeners, model.ListenerStatus{Name: strings.Repeat("l", i+1)})
		s.Conditions = append(s.Conditions, yes(strings.Repeat("C", i+1), "R", ""))
	}
	got, _ := merge(fromYAML(t, `{metadata: {name: g, generation: 1}}`), s, shapeGateway, clock)
	count := map[string]int{}
	for k, v := range got {
		count[k] = len(v.([]any))
	}
	if diff := cmp.Diff(map[string]int{"conditions": maxConditions, "addresses": maxAddresses, "listeners": maxListeners}, count); diff != "" {
		t.Errorf("lengths (-want +got):\n%s", diff)
	}
	message := got["conditions"].([]any)[0].(map[string]any)["message"].(string)
	if len(message) != maxMessage || strings.Trim(message, "ä") != "" {
		t.Errorf("message of %d bytes, want %d of whole characters", len(message), maxMessage)
	}
}

// FuzzMerge: whatever stands in an object's status, others' entries survive and a second merge finds nothing to do.
func FuzzMerge(f *testing.F) {
	for _, tc := range mergeCases {
		f.Add(tc.live)
	}
	f.Fuzz(func(t *testing.T, live string) {
		raw, err := yaml.YAMLToJSON([]byte(live))
		if err != nil {
			return
		}
		o := map[string]any{}
		if err := kjson.Unmarshal(raw, &o); err != nil || o == nil {
			return
		}
		for _, tc := range mergeCases {
			res, _ := resourceOf(tc.status.Kind)
			u := &unstructured.Unstructured{Object: o}
			got, _ := merge(u.DeepCopy(), &tc.status, res.shape, clock)
			if got == nil {
				continue
			}
			u = u.DeepCopy()
			status, ok := u.Object["status"].(map[string]any)
			if !ok {
				status = map[string]any{}
			}
			for k, v := range got {
				status[k] = v
			}
			u.Object["status"] = status
			if again, _ := merge(u, &tc.status, res.shape, clock); again != nil {
				t.Errorf("%s: a second time: %v", tc.name, cmp.Diff(got, again))
			}
		}
	})
}
