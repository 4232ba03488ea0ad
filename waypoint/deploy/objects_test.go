package deploy

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/istiod/model"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func options(overlays ...Overlay) Options {
	return Options{
		Image: "ambit/waypoint:test", Istiod: "istiod.istio-system.svc:15012",
		TrustDomain: "cluster.local", ClusterID: "Kubernetes", Domain: "cluster.local",
		LogLevel: "info", LogFormat: "text", Overlays: overlays,
	}
}

func waypoint(change ...func(*model.Gateway)) *model.Gateway {
	g := &model.Gateway{
		Meta:  model.Meta{Kind: model.KindGateway, Key: model.Key{Namespace: "shop", Name: "waypoint"}, UID: "u-1", Generation: 1},
		Class: "istio-waypoint", Waypoint: true,
		Listeners: []model.Listener{{Name: "mesh", Port: 15008, Protocol: model.ListenHBONE}},
	}
	for _, f := range change {
		f(g)
	}
	return g
}

func ingress(change ...func(*model.Gateway)) *model.Gateway {
	g := &model.Gateway{
		Meta:  model.Meta{Kind: model.KindGateway, Key: model.Key{Namespace: "web", Name: "front"}, UID: "u-2", Generation: 1},
		Class: "istio",
		Listeners: []model.Listener{
			{Name: "http", Port: 80, Protocol: model.ListenHTTP},
			{Name: "https", Port: 443, Protocol: model.ListenHTTPS},
		},
	}
	for _, f := range change {
		f(g)
	}
	return g
}

func note(key, value string) func(*model.Gateway) {
	return func(g *model.Gateway) {
		if g.ObjectAnnotations == nil {
			g.ObjectAnnotations = map[string]string{}
		}
		g.ObjectAnnotations[key] = value
	}
}

func overlay(data ...string) Overlay {
	o := Overlay{Origin: "shop/params", Data: map[string]string{}}
	for i := 0; i < len(data); i += 2 {
		o.Data[data[i]] = data[i+1]
	}
	return o
}

// goldenCases are the inputs whose objects are committed under testdata.
var goldenCases = []struct {
	name    string
	gateway *model.Gateway
	options Options
}{
	{"waypoint", waypoint(), options()},
	{"waypoint-labels", waypoint(func(g *model.Gateway) {
		g.ObjectLabels = map[string]string{
			"istio.io/waypoint-for": "all", "team": "shop", "istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "other",
			"gateway.networking.k8s.io/gateway-name": "forged",
		}
		g.ObjectAnnotations = map[string]string{"note": "kept", annotationLastApplied: "{}", annotationVersion: "5"}
	}), options()},
	{"waypoint-installation", waypoint(), func() Options {
		o := options()
		o.PullPolicy, o.PullSecrets, o.Network, o.LogFormat = "Always", []string{"regcred"}, "n1", "json"
		o.Istiod, o.ClusterID, o.TrustDomain, o.Domain = "istiod.mesh.svc:15012", "c1", "example.org", "c1.local"
		return o
	}()},
	{"waypoint-three-replicas", waypoint(note(annotationReplicas, "3")), options()},
	{"waypoint-autoscaled", waypoint(note(annotationReplicas, "2"), note(annotationMaxReplicas, "10")), options()},
	{"waypoint-overlay", waypoint(), options(
		overlay("deployment", "spec:\n  replicas: 2\n  template:\n    spec:\n      containers:\n      - name: istio-proxy\n        resources:\n          requests:\n            cpu: 500m\n"),
		overlay("deployment", "spec:\n  template:\n    metadata:\n      annotations: {later: wins}\n    spec:\n      priorityClassName: high\n      containers:\n      - name: istio-proxy\n        resources:\n          limits: null\n      - name: extra\n        image: extra:1\n"),
	)},
	{"waypoint-overlay-autoscaler", waypoint(), options(overlay(
		"deployment", "spec: {replicas: 4}",
		"horizontalPodAutoscaler", "spec:\n  minReplicas: 2\n  maxReplicas: 6\n",
		"podDisruptionBudget", "spec: {maxUnavailable: 1}",
	))},
	{"waypoint-overlay-budget", waypoint(), options(overlay("podDisruptionBudget", "metadata: {labels: {asked: for}}"))},
	{"waypoint-overlay-all", waypoint(), options(overlay(
		"service", "spec:\n  trafficDistribution: PreferClose\n  ports:\n  - port: 15008\n    name: hbone\n",
		"serviceAccount", "metadata:\n  annotations: {cloud/role: shop}\nautomountServiceAccountToken: false\n",
	))},
	{"waypoint-account", waypoint(note(annotationServiceAccount, "existing")), options()},
	{"gateway", ingress(), options()},
	{"gateway-cluster-ip", ingress(note(annotationServiceType, "ClusterIP")), options()},
	{"gateway-address", ingress(func(g *model.Gateway) {
		g.Addresses = []model.GatewayAddress{{Type: "IPAddress", Value: "192.0.2.7"}}
	}), options()},
	{"gateway-infrastructure", ingress(func(g *model.Gateway) {
		g.Labels = map[string]string{"from": "infrastructure", "istio.io/dataplane-mode": "ambient"}
		g.Annotations = map[string]string{"lb": "internal"}
		g.ObjectLabels = map[string]string{"not": "copied"}
	}), options()},
	{"gateway-renamed", ingress(note(annotationName, "edge")), options()},
	{"gateway-many-listeners", ingress(func(g *model.Gateway) {
		long := strings.Repeat("a", 70)
		g.Listeners = []model.Listener{
			{Name: "http", Port: 80, Protocol: model.ListenHTTP},
			{Name: "http.two", Port: 80, Protocol: model.ListenHTTP},
			{Name: "http-two", Port: 81, Protocol: model.ListenHTTP},
			{Name: "http.two", Port: 82, Protocol: model.ListenHTTP},
			{Name: "status-port", Port: 8443, Protocol: model.ListenHTTPS},
			{Name: long, Port: 5432, Protocol: model.ListenTCP},
			{Name: long + "b", Port: 5433, Protocol: model.ListenTLS},
			{Name: "readiness", Port: 15021, Protocol: model.ListenTCP},
			{Name: "", Port: 9000, Protocol: model.ListenTCP},
		}
	}), options()},
	{"gateway-custom-class", ingress(func(g *model.Gateway) { g.Class = "internal" }), options()},
}

func TestObjectsGolden(t *testing.T) {
	for _, tc := range goldenCases {
		t.Run(tc.name, func(t *testing.T) {
			objects, err := Objects(tc.gateway, tc.options)
			if err != nil {
				t.Fatal(err)
			}
			got := render(t, objects)
			path := filepath.Join("testdata", tc.name+".golden.yaml")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("objects (-golden +got; -update accepts it):\n%s", diff)
			}
			for _, o := range objects {
				checkObject(t, tc.gateway, o)
			}
		})
	}
}

// checkObject holds for every object of every case: it decodes strictly, is owned by the Gateway and labelled, and
// a Deployment's selector chooses its pods.
func checkObject(t *testing.T, g *model.Gateway, o *unstructured.Unstructured) {
	t.Helper()
	raw, err := o.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	strict := kjson.NewSerializerWithOptions(kjson.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, kjson.SerializerOptions{Strict: true})
	typed, _, err := strict.Decode(raw, nil, nil)
	if err != nil {
		t.Errorf("%s: %v", o.GetKind(), err)
	}
	want := []metav1.OwnerReference{{APIVersion: "gateway.networking.k8s.io/v1", Kind: "Gateway", Name: g.Name, UID: "u-1"}}
	want[0].UID = o.GetOwnerReferences()[0].UID
	if string(want[0].UID) != g.UID {
		t.Errorf("%s: owner's UID %q, want %q", o.GetKind(), want[0].UID, g.UID)
	}
	if diff := cmp.Diff(want, o.GetOwnerReferences()); diff != "" {
		t.Errorf("%s: owners (-want +got):\n%s", o.GetKind(), diff)
	}
	if l := o.GetLabels(); l[LabelGateway] != g.Name || l[LabelClass] != g.Class || l[LabelManaged] == "" {
		t.Errorf("%s: labels %v", o.GetKind(), l)
	}
	if d, ok := typed.(*appsv1.Deployment); ok {
		s, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
		if err != nil || !s.Matches(labels.Set(d.Spec.Template.Labels)) {
			t.Errorf("selector %v does not match the pods' labels %v", s, d.Spec.Template.Labels)
		}
	}
}

func render(t *testing.T, objects []*unstructured.Unstructured) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, o := range objects {
		b, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString("---\n")
		out.Write(b)
	}
	return out.Bytes()
}

func TestObjectsRefuses(t *testing.T) {
	for _, tc := range []struct {
		name       string
		gateway    *model.Gateway
		overlay    Overlay
		want       string
		parameters bool
	}{
		{"no uid", waypoint(func(g *model.Gateway) { g.UID = "" }), Overlay{}, "UID is not known", false},
		{"service type", ingress(note(annotationServiceType, "ExternalName")), Overlay{}, `"ExternalName" is not ClusterIP`, true},
		{"long name", waypoint(func(g *model.Gateway) { g.Name = strings.Repeat("w", 64) }), Overlay{}, "a Service cannot be named", true},
		{"dotted name", waypoint(func(g *model.Gateway) { g.Name = "way.point" }), Overlay{}, "a Service cannot be named", true},
		{"long label", waypoint(func(g *model.Gateway) { g.Name = strings.Repeat("w", 64) }, note(annotationName, "short")), Overlay{}, "a label cannot hold", true},
		{"account", waypoint(note(annotationServiceAccount, "A B")), Overlay{}, "a ServiceAccount cannot be named", true},
		{"replicas text", waypoint(note(annotationReplicas, "many")), Overlay{}, `gateway.ambit.dev/replicas: "many"`, true},
		{"replicas zero", waypoint(note(annotationReplicas, "0")), Overlay{}, `"0" is not a number from 1 to 1000`, true},
		{"max below min", waypoint(note(annotationReplicas, "3"), note(annotationMaxReplicas, "2")), Overlay{}, "2 is less than", true},
		{"unknown key", waypoint(), overlay("Deployment", "{}"), `unknown key "Deployment": want deployment, horizontalPodAutoscaler`, true},
		{"not yaml", waypoint(), overlay("service", "a: b: c"), `key "service"`, true},
		{"not a map", waypoint(), overlay("service", "[1]"), `key "service"`, true},
		{"unknown field", waypoint(), overlay("deployment", "spec: {replica: 2}"), `unknown field "replica"`, true},
		{"wrong type", waypoint(), overlay("deployment", "spec: {replicas: many}"), "replicas", true},
		{"renames", waypoint(), overlay("deployment", "metadata: {name: other}"), "changes apiVersion, kind, or metadata", true},
		{"moves", waypoint(), overlay("service", "metadata: {namespace: kube-system}"), "changes apiVersion", true},
		{"disowns", waypoint(), overlay("service", "metadata: {ownerReferences: null}"), "changes apiVersion", true},
		{"finalizer", waypoint(), overlay("service", "metadata: {finalizers: [x/y]}"), "changes apiVersion", true},
		{"other kind", waypoint(), overlay("service", "kind: Secret"), "changes apiVersion", true},
		{"replaces", waypoint(), overlay("service", "$patch: replace"), "changes apiVersion", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := options()
			if tc.overlay.Data != nil {
				o.Overlays = []Overlay{tc.overlay}
			}
			got, err := Objects(tc.gateway, o)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %d objects, error %v, want one that says %q", len(got), err, tc.want)
			}
			if errors.Is(err, ErrParameters) != tc.parameters {
				t.Errorf("error %v: is ErrParameters: %t, want %t", err, !tc.parameters, tc.parameters)
			}
		})
	}
}

// TestObjectsLeavesItsInputAlone: a Gateway of the model is shared between goroutines.
func TestObjectsLeavesItsInputAlone(t *testing.T) {
	full := func() *model.Gateway {
		return ingress(note("a", "b"), func(g *model.Gateway) {
			g.Labels, g.Annotations = map[string]string{"c": "d"}, map[string]string{"e": "f"}
		})
	}
	g := full()
	if _, err := Objects(g, options(overlay("deployment", "metadata: {labels: {g: h}}"))); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(full(), g); diff != "" {
		t.Errorf("input (-before +after):\n%s", diff)
	}
}

func TestManaged(t *testing.T) {
	for _, tc := range []struct {
		name    string
		gateway *model.Gateway
		want    bool
	}{
		{"plain", ingress(), true},
		{"ip", ingress(func(g *model.Gateway) { g.Addresses = []model.GatewayAddress{{Type: addressIP, Value: "192.0.2.1"}} }), true},
		{"untyped", ingress(func(g *model.Gateway) { g.Addresses = []model.GatewayAddress{{Value: "192.0.2.1"}} }), true},
		{"hostname", ingress(func(g *model.Gateway) { g.Addresses = []model.GatewayAddress{{Type: addressHostname, Value: "x.y"}} }), false},
		{"two", ingress(func(g *model.Gateway) { g.Addresses = make([]model.GatewayAddress, 2) }), false},
		{"istio's", ingress(func(g *model.Gateway) { g.Kind = model.KindIstioGateway }), false},
	} {
		if got := Managed(tc.gateway); got != tc.want {
			t.Errorf("%s: got %t, want %t", tc.name, got, tc.want)
		}
	}
}

// FuzzOverlay: whatever a user's ConfigMap says, there is an error, or an object whose identity is unchanged.
func FuzzOverlay(f *testing.F) {
	for _, seed := range []string{
		"spec: {replicas: 2}", "metadata: {name: x}", "$patch: delete", "spec:\n  template:\n    spec:\n      containers:\n      - $patch: delete\n        name: istio-proxy\n",
		"spec: {template: {spec: {$setElementOrder/containers: [{name: a}]}}}", "- 1", "null", "{}", "spec: {strategy: {$retainKeys: [type]}}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		out, err := Objects(waypoint(), options(overlay("deployment", text)))
		if err != nil {
			return
		}
		plain, err := Objects(waypoint(), options())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(identityOf(plain[1].Object), identityOf(out[1].Object)); diff != "" {
			t.Errorf("identity (-want +got):\n%s", diff)
		}
		var d appsv1.Deployment
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(out[1].Object, &d); err != nil {
			t.Errorf("not a Deployment: %v", err)
		}
	})
}
