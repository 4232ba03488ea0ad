package waypoint

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayfake "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned/fake"

	"github.com/ambit-mesh/ambit/api/ports"
)

type fakes struct {
	kube     *fake.Clientset
	gateways *gatewayfake.Clientset
	*Client
}

func newFakes(t *testing.T, kube []runtime.Object, gateways ...*gatewayv1.Gateway) *fakes {
	t.Helper()
	f := &fakes{kube: fake.NewClientset(kube...), gateways: gatewayfake.NewSimpleClientset()}
	f.Client = &Client{Kube: f.kube, Gateways: f.gateways}
	f.gateways.PrependReactor("patch", "gateways", f.serverSideApply)
	for _, g := range gateways {
		if _, err := f.gateways.GatewayV1().Gateways(g.Namespace).Create(t.Context(), g, metav1.CreateOptions{FieldManager: "somebody"}); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// serverSideApply plays the server, since the fake cannot apply objects of custom kinds: it makes the Gateway, or takes
// over labels and specification, and counts generations.
func (f *fakes) serverSideApply(a ktesting.Action) (bool, runtime.Object, error) {
	p := a.(ktesting.PatchActionImpl)
	if p.GetPatchType() != types.ApplyPatchType {
		return false, nil, nil
	}
	var in gatewayv1.Gateway
	if err := json.Unmarshal(p.GetPatch(), &in); err != nil {
		return true, nil, err
	}
	have, err := f.gateways.Tracker().Get(p.GetResource(), p.GetNamespace(), p.GetName())
	if apierrors.IsNotFound(err) {
		in.Generation = 1
		return true, &in, f.gateways.Tracker().Create(p.GetResource(), &in, p.GetNamespace())
	}
	if err != nil {
		return true, nil, err
	}
	out := have.(*gatewayv1.Gateway).DeepCopy()
	if cmp.Equal(out.Labels, in.Labels) && cmp.Equal(out.Spec, in.Spec) {
		return true, out, nil
	}
	if !cmp.Equal(out.Spec, in.Spec) {
		out.Generation++
	}
	out.Labels, out.Spec = in.Labels, in.Spec
	return true, out, f.gateways.Tracker().Update(p.GetResource(), out, p.GetNamespace())
}

func gateway(namespace, name, class string) *gatewayv1.Gateway {
	return &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Generation: 2},
		Spec:       gatewayv1.GatewaySpec{GatewayClassName: gatewayv1.ObjectName(class)},
	}
}

func condition(t string, status metav1.ConditionStatus, reason, message string, generation int64) metav1.Condition {
	return metav1.Condition{Type: t, Status: status, Reason: reason, Message: message, ObservedGeneration: generation}
}

func namespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

func TestGateway(t *testing.T) {
	for _, tc := range []struct{ name, traffic, want string }{
		{"waypoint", "", ""},
		{"waypoint", "all", ""},
		{"none", "", "means no waypoint"},
		{"Way", "", "DNS-1035"},
		{"1st", "", "DNS-1035"},
		{strings.Repeat("w", 64), "", "63"},
		{"waypoint", "everything", "want service, workload, all, none"},
	} {
		g, err := Gateway("shop", tc.name, tc.traffic)
		if tc.want == "" && (err != nil || g.Labels[LabelFor] != tc.traffic || g.Spec.Listeners[0].Port != ports.HBONE) {
			t.Errorf("%q, %q: %+v, %v", tc.name, tc.traffic, g, err)
		}
		if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%q, %q: error %v, want one with %q", tc.name, tc.traffic, err, tc.want)
		}
	}
}

func apply(t *testing.T, f *fakes, traffic string, overwrite bool) (string, error) {
	t.Helper()
	g, err := Gateway("shop", "waypoint", traffic)
	if err != nil {
		t.Fatal(err)
	}
	_, action, err := f.Apply(t.Context(), g, overwrite)
	return action, err
}

func TestApply(t *testing.T) {
	f := newFakes(t, nil)
	if action, err := apply(t, f, "", false); action != "created" || err != nil {
		t.Fatalf("first: %q, %v", action, err)
	}
	got, err := f.gateways.GatewayV1().Gateways("shop").Get(t.Context(), "waypoint", metav1.GetOptions{})
	if err != nil || got.Spec.GatewayClassName != Class || len(got.Spec.Listeners) != 1 {
		t.Errorf("made %+v, %v", got, err)
	}
	if action, err := apply(t, f, "", false); action != "unchanged" || err != nil {
		t.Fatalf("second: %q, %v", action, err)
	}
	if action, err := apply(t, f, "workload", false); action != "configured" || err != nil {
		t.Fatalf("third: %q, %v", action, err)
	}
	if got, err = f.gateways.GatewayV1().Gateways("shop").Get(t.Context(), "waypoint", metav1.GetOptions{}); err != nil || got.Labels[LabelFor] != "workload" {
		t.Errorf("changed to %v, %v", got.Labels, err)
	}
}

// TestApplyRespectsOthers: a field that somebody else set stays, unless the user says otherwise; a Gateway that is no
// waypoint stays in any case.
func TestApplyRespectsOthers(t *testing.T) {
	theirs := gateway("shop", "waypoint", Class)
	theirs.Labels = map[string]string{LabelFor: "service"}
	f := newFakes(t, nil, theirs)
	// The fake keeps no account of who set what, so the server's refusal is played.
	f.gateways.PrependReactor("patch", "gateways", func(a ktesting.Action) (bool, runtime.Object, error) {
		if o := a.(ktesting.PatchActionImpl).PatchOptions; o.Force != nil && *o.Force {
			return false, nil, nil
		}
		return true, nil, apierrors.NewApplyConflict([]metav1.StatusCause{{Type: metav1.CauseTypeFieldManagerConflict, Field: ".metadata.labels"}}, "conflict with somebody")
	})
	if _, err := apply(t, f, "all", false); !errors.Is(err, ErrTaken) {
		t.Errorf("without overwrite: %v, want ErrTaken", err)
	}
	if _, err := apply(t, f, "all", true); err != nil {
		t.Errorf("with overwrite: %v", err)
	}
	f = newFakes(t, nil, gateway("shop", "waypoint", "istio"))
	if _, err := apply(t, f, "all", true); err == nil || !strings.Contains(err.Error(), `of class "istio"`) {
		t.Errorf("another class: %v", err)
	}
}

// TestNoGatewayAPI: every command says so, instead of that a waypoint was not found.
func TestNoGatewayAPI(t *testing.T) {
	f := newFakes(t, nil)
	f.gateways.PrependReactor("*", "*", func(a ktesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewGenericServerResponse(404, a.GetVerb(), schema.GroupResource{}, "", "404 page not found", 0, true)
	})
	_, applied := apply(t, f, "", false)
	_, listed := f.List(t.Context(), "shop")
	_, class := f.HasClass(t.Context())
	for what, err := range map[string]error{"apply": applied, "list": listed, "class": class, "delete": f.Delete(t.Context(), "shop", "w")} {
		if !errors.Is(err, ErrNoGatewayAPI) {
			t.Errorf("%s: %v, want ErrNoGatewayAPI", what, err)
		}
	}
}

func TestEnroll(t *testing.T) {
	for _, tc := range []struct {
		name      string
		label     string
		overwrite bool
		changed   bool
		taken     bool
	}{
		{"first", "", false, true, false},
		{"same", "waypoint", false, false, false},
		{"other", "old", false, false, true},
		{"other, overwritten", "old", true, true, false},
		{"none", "none", false, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			labels := map[string]string{"keep": "me"}
			if tc.label != "" {
				labels[ports.LabelUseWaypoint] = tc.label
			}
			f := newFakes(t, []runtime.Object{namespace("shop", labels)})
			changed, err := f.Enroll(t.Context(), "shop", "waypoint", tc.overwrite)
			if changed != tc.changed || errors.Is(err, ErrTaken) != tc.taken || (err != nil) != tc.taken {
				t.Fatalf("changed %t, error %v", changed, err)
			}
			want := map[string]string{"keep": "me", ports.LabelUseWaypoint: "waypoint"}
			if tc.taken {
				want[ports.LabelUseWaypoint] = tc.label
			}
			ns, err := f.kube.CoreV1().Namespaces().Get(t.Context(), "shop", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, ns.Labels); diff != "" {
				t.Errorf("labels (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := newFakes(t, nil).Enroll(t.Context(), "shop", "waypoint", false); !apierrors.IsNotFound(err) {
		t.Errorf("missing namespace: %v", err)
	}
}

func TestListReadsStatus(t *testing.T) {
	ready := gateway("shop", "b", Class)
	ready.Labels = map[string]string{LabelFor: "all"}
	ready.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Value: "10.0.0.1"}}
	ready.Status.Conditions = []metav1.Condition{condition("Accepted", "True", "Accepted", "", 2), condition("Programmed", "True", "Programmed", "1 of 1", 2)}
	old := gateway("shop", "a", Class)
	old.Status.Conditions = []metav1.Condition{condition("Programmed", "True", "Programmed", "", 1)}
	refused := gateway("alpha", "z", Class)
	refused.Status.Conditions = []metav1.Condition{condition("Accepted", "False", "InvalidParameters", "no ConfigMap", 2), condition("Programmed", "False", "Invalid", "", 2)}
	f := newFakes(t, nil, ready, old, refused, gateway("shop", "ingress", "istio"))
	got, err := f.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	want := []Waypoint{
		{Namespace: "alpha", Name: "z", For: "service", Programmed: "False", Reason: "InvalidParameters", Message: "no ConfigMap"},
		{Namespace: "shop", Name: "a", For: "service", Programmed: "Unknown"},
		{Namespace: "shop", Name: "b", For: "all", Addresses: []string{"10.0.0.1"}, Programmed: "True", Reason: "Programmed", Message: "1 of 1"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("waypoints (-want +got):\n%s", diff)
	}
	if one, err := f.List(t.Context(), "alpha"); err != nil || len(one) != 1 {
		t.Errorf("one namespace: %v, %v", one, err)
	}
}

func TestDelete(t *testing.T) {
	f := newFakes(t, nil, gateway("shop", "waypoint", Class), gateway("shop", "ingress", "istio"))
	if err := f.Delete(t.Context(), "shop", "ingress"); err == nil || !strings.Contains(err.Error(), "no waypoint") {
		t.Errorf("another class: %v", err)
	}
	if err := f.Delete(t.Context(), "shop", "missing"); !apierrors.IsNotFound(err) || errors.Is(err, ErrNoGatewayAPI) {
		t.Errorf("missing: %v", err)
	}
	if err := f.Delete(t.Context(), "shop", "waypoint"); err != nil {
		t.Errorf("waypoint: %v", err)
	}
	list, err := f.gateways.GatewayV1().Gateways("shop").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "ingress" {
		t.Errorf("left: %v, %v", list.Items, err)
	}
}

func TestUsers(t *testing.T) {
	service := func(ns, name string, labels map[string]string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: labels}}
	}
	names := map[string]string{ports.LabelUseWaypoint: "waypoint"}
	elsewhere := map[string]string{ports.LabelUseWaypoint: "waypoint", ports.LabelUseWaypointNamespace: "shop"}
	f := newFakes(t, []runtime.Object{
		namespace("shop", names), namespace("other", names), namespace("third", elsewhere),
		service("shop", "cart", names), service("other", "x", names), service("other", "y", elsewhere), service("shop", "z", nil),
	})
	got, err := f.Users(t.Context(), "shop", "waypoint")
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, u := range got {
		text = append(text, u.String()+" = "+u.Kubectl())
	}
	want := []string{
		"namespace shop = namespace shop", "namespace third = namespace third",
		"service other/y = -n other service y", "service shop/cart = -n shop service cart",
	}
	if diff := cmp.Diff(want, text); diff != "" {
		t.Errorf("users (-want +got):\n%s", diff)
	}
}

// TestWait reports each new state once, with the pod's trouble, and returns when the waypoint works.
func TestWait(t *testing.T) {
	replicas := int32(1)
	pulling := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "waypoint-1", Labels: map[string]string{"a": "b"}}, Spec: corev1.PodSpec{NodeName: "n"},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull"}}}}},
	}
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "waypoint"},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}},
	}
	g := gateway("shop", "waypoint", Class)
	g.Status.Conditions = []metav1.Condition{condition("Programmed", "False", "Pending", "0 of 1 pods are ready", 2)}
	f := newFakes(t, []runtime.Object{deployment, pulling}, g)
	var states []string
	_, err := f.Wait(t.Context(), "shop", "waypoint", func(s string) {
		states = append(states, s)
		g := g.DeepCopy()
		g.Status.Conditions[0] = condition("Programmed", "True", "Programmed", "", 2)
		if _, err := f.gateways.GatewayV1().Gateways("shop").UpdateStatus(context.Background(), g, metav1.UpdateOptions{}); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"not ready: Pending: 0 of 1 pods are ready (pod waypoint-1 on node n: ErrImagePull)"}, states); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}

	f = newFakes(t, []runtime.Object{deployment, pulling}, g)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = f.Wait(ctx, "shop", "waypoint", func(string) {})
	if err == nil || !strings.Contains(err.Error(), "ErrImagePull") && !strings.Contains(err.Error(), "describe gateway waypoint") {
		t.Errorf("timeout: %v", err)
	}
	if _, err := f.Wait(t.Context(), "shop", "missing", func(string) {}); !apierrors.IsNotFound(err) {
		t.Errorf("missing: %v", err)
	}
}
