package cli

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayfake "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned/fake"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/cmd/ambit/internal/waypoint"
)

// waypointCluster has a namespace shop and a waypoint in it. Applying what is there changes nothing.
func waypointCluster(t *testing.T, labels map[string]string, programmed metav1.ConditionStatus) *waypoint.Client {
	t.Helper()
	kube := fake.NewClientset(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: labels}})
	gateways := gatewayfake.NewSimpleClientset(&gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: waypoint.Class}})
	g, err := waypoint.Gateway("shop", "waypoint", "")
	if err != nil {
		t.Fatal(err)
	}
	g.Status.Conditions = []metav1.Condition{{Type: "Programmed", Status: programmed, Reason: "Because", Message: "of this"}}
	if _, err := gateways.GatewayV1().Gateways("shop").Create(t.Context(), g, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return &waypoint.Client{Kube: kube, Gateways: gateways}
}

func TestWaypointApply(t *testing.T) {
	c := waypointCluster(t, nil, metav1.ConditionTrue)
	o := &waypointApply{enroll: true, waypoints: waypoints{namespace: "shop", name: "waypoint", wait: true, timeout: time.Minute}}
	for _, want := range []string{
		"waypoint shop/waypoint unchanged\nwaypoint shop/waypoint ready\nnamespace shop labelled istio.io/use-waypoint=waypoint\n",
		"waypoint shop/waypoint unchanged\nwaypoint shop/waypoint ready\nnamespace shop already labelled istio.io/use-waypoint=waypoint\n",
	} {
		var out, errOut strings.Builder
		if err := o.run(t.Context(), c, &out, &errOut); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
		if !strings.Contains(errOut.String(), "Warning: namespace shop is not in the mesh") {
			t.Errorf("progress: %s", errOut.String())
		}
	}
	ns, err := c.Kube.CoreV1().Namespaces().Get(t.Context(), "shop", metav1.GetOptions{})
	if err != nil || ns.Labels[ports.LabelUseWaypoint] != "waypoint" {
		t.Errorf("labels %v, %v", ns.Labels, err)
	}
}

// TestWaypointApplyDoesNotEnrolInVain: a namespace that waits for its waypoint is labelled only once it works.
func TestWaypointApplyDoesNotEnrolInVain(t *testing.T) {
	c := waypointCluster(t, nil, metav1.ConditionFalse)
	o := &waypointApply{enroll: true, waypoints: waypoints{namespace: "shop", name: "waypoint", wait: true, timeout: time.Millisecond}}
	var out, errOut strings.Builder
	err := o.run(t.Context(), c, &out, &errOut)
	if err == nil || !strings.Contains(err.Error(), "wait for waypoint shop/waypoint") || hintFor(err) != "" {
		t.Errorf("error %v, hint %q", err, hintFor(err))
	}
	ns, err := c.Kube.CoreV1().Namespaces().Get(t.Context(), "shop", metav1.GetOptions{})
	if err != nil || ns.Labels[ports.LabelUseWaypoint] != "" {
		t.Errorf("labels %v, %v", ns.Labels, err)
	}
}

func TestWaypointStatus(t *testing.T) {
	c := waypointCluster(t, nil, metav1.ConditionFalse)
	for _, tc := range []struct {
		name, want string
		o          waypointList
	}{
		{"table", "NAME       PROGRAMMED   REASON    MESSAGE\nwaypoint   False        Because   of this\n", waypointList{waypoints: waypoints{namespace: "shop", output: textEncoding}}},
		{"all", "NAMESPACE   NAME       PROGRAMMED   REASON    MESSAGE\nshop        waypoint   False        Because   of this\n", waypointList{all: true, waypoints: waypoints{output: textEncoding}}},
		{"yaml", "- for: service\n  message: of this\n  name: waypoint\n  namespace: shop\n  programmed: \"False\"\n  reason: Because\n", waypointList{waypoints: waypoints{namespace: "shop", output: yamlEncoding}}},
		{"nothing", "No waypoints found.\n", waypointList{waypoints: waypoints{namespace: "empty", output: textEncoding}}},
		{"nothing in json", "[]\n", waypointList{waypoints: waypoints{namespace: "empty", output: jsonEncoding}}},
	} {
		var out, errOut strings.Builder
		if err := tc.o.status(t.Context(), c, &out, &errOut); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if diff := cmp.Diff(tc.want, out.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
	var out, errOut strings.Builder
	waiting := waypointList{waypoints: waypoints{namespace: "shop", output: textEncoding, wait: true, timeout: time.Millisecond}}
	if err := waiting.status(t.Context(), c, &out, &errOut); err == nil || !strings.Contains(out.String(), "Because") {
		t.Errorf("waiting in vain: error %v, output %q", err, out.String())
	}
	named := waypointList{waypoints: waypoints{namespace: "shop", name: "other"}}
	if err := named.status(t.Context(), c, &out, &errOut); err == nil || !strings.Contains(err.Error(), `no waypoint "other"`) {
		t.Errorf("another name: %v", err)
	}
}

func TestWaypointDelete(t *testing.T) {
	c := waypointCluster(t, map[string]string{ports.LabelUseWaypoint: "waypoint"}, metav1.ConditionTrue)
	o := &waypoints{namespace: "shop"}
	var out, errOut strings.Builder
	err := o.delete(t.Context(), c, []string{"missing", "waypoint"}, &out, &errOut)
	if err == nil || !strings.Contains(err.Error(), "missing") || errors.Is(err, waypoint.ErrNoGatewayAPI) {
		t.Errorf("error %v, want that of the missing one", err)
	}
	if out.String() != "waypoint shop/waypoint deleted\n" {
		t.Errorf("output %q", out.String())
	}
	if want := "Warning: namespace shop still names it: kubectl label namespace shop istio.io/use-waypoint-\n"; errOut.String() != want {
		t.Errorf("warnings %q, want %q", errOut.String(), want)
	}
	out.Reset()
	if err := o.delete(t.Context(), c, nil, &out, &errOut); err != nil || out.String() != "No waypoints in namespace shop.\n" {
		t.Errorf("all of none: %q, %v", out.String(), err)
	}
}
