package suite

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/utils/config"
	upsuite "sigs.k8s.io/gateway-api/conformance/utils/suite"
)

const (
	waypointName  = "waypoint"
	waypointClass = "istio-waypoint"
	hbonePort     = 15008
	// captureTimeout bounds how long running pods may take to be in the mesh; a second is usual.
	captureTimeout = 60 * time.Second
	// pollInterval is how often a condition is looked at.
	pollInterval = 200 * time.Millisecond
)

// enrol does what a user does: label the namespaces, make a waypoint, use it. The consumer's namespace needs none:
// routes of consumers are followed by the waypoint of the service.
func enrol(t *testing.T, c client.Client, timeouts config.TimeoutConfig) {
	t.Helper()
	for _, ns := range []string{upsuite.MeshNamespace, upsuite.MeshConsumerNamespace} {
		label(t, c, ns, "istio.io/dataplane-mode", "ambient")
	}
	wp := &gwv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Namespace: upsuite.MeshNamespace, Name: waypointName, Labels: map[string]string{"istio.io/waypoint-for": "service"}},
		Spec: gwv1.GatewaySpec{GatewayClassName: waypointClass, Listeners: []gwv1.Listener{
			{Name: "mesh", Port: hbonePort, Protocol: "HBONE"},
		}},
	}
	if err := client.IgnoreAlreadyExists(c.Create(t.Context(), wp)); err != nil {
		t.Fatalf("create the waypoint: %v", err)
	}
	await(t, timeouts.GatewayMustHaveCondition, "the waypoint is programmed", func(ctx context.Context) error {
		if err := c.Get(ctx, client.ObjectKeyFromObject(wp), wp); err != nil {
			return err
		}
		if !meta.IsStatusConditionTrue(wp.Status.Conditions, string(gwv1.GatewayConditionProgrammed)) {
			return fmt.Errorf("conditions are %v", wp.Status.Conditions)
		}
		return nil
	})
	for _, ns := range []string{upsuite.MeshNamespace, upsuite.MeshConsumerNamespace} {
		await(t, captureTimeout, "pods of "+ns+" are in the mesh", func(ctx context.Context) error { return captured(ctx, c, ns) })
	}
	label(t, c, upsuite.MeshNamespace, "istio.io/use-waypoint", waypointName)
}

// captured tells of a pod whose traffic the node does not capture yet.
func captured(ctx context.Context, c client.Client, namespace string) error {
	pods := &corev1.PodList{}
	if err := c.List(ctx, pods, client.InNamespace(namespace), client.HasLabels{"version"}); err != nil {
		return err
	}
	for _, p := range pods.Items {
		if p.Annotations["ambient.istio.io/redirection"] != "enabled" {
			return fmt.Errorf("pod %s is not captured", p.Name)
		}
	}
	if len(pods.Items) == 0 {
		return fmt.Errorf("no pods in %s", namespace)
	}
	return nil
}

func label(t *testing.T, c client.Client, namespace, key, value string) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, key, value)
	if err := c.Patch(t.Context(), ns, client.RawPatch("application/merge-patch+json", patch)); err != nil {
		t.Fatalf("label namespace %s: %v", namespace, err)
	}
}

// await looks until f has no objection.
func await(t *testing.T, timeout time.Duration, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not within %s: %s: %v", timeout, what, err)
		}
	}
}
