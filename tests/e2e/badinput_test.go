package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

// policyText is a policy for the payments service; its source is filled in.
const policyText = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: payments-e2e, namespace: shop}
spec:
  selector: {matchLabels: {app: payments}}
  action: ALLOW
  rules:
  - from: [{source: {%s}}]
`

const (
	goodSource    = "principals: [cluster.local/ns/shop/sa/checkout]"
	garbageSource = "ipBlocks: [not-an-address]"
)

// TestGarbagePolicy replaces a policy with one that cannot be translated: the last good one still holds, for those
// whom it allows and those whom it refuses, and the log names the object.
func TestGarbagePolicy(t *testing.T) {
	ctx := t.Context()
	begin(t, true)
	t.Cleanup(func() {
		if err := world.Delete(context.WithoutCancel(ctx), fmt.Sprintf(policyText, goodSource)); err != nil {
			t.Error(err)
		}
	})
	must(t, world.Apply(ctx, fmt.Sprintf(policyText, goodSource)))
	must(t, stage.Poll(ctx, settleTimeout, func(ctx context.Context) error {
		if payments(ctx) == nil {
			return errors.New("the policy does not refuse")
		}
		return nil
	}))
	freshCounts(t)

	must(t, world.Apply(ctx, fmt.Sprintf(policyText, garbageSource)))
	must(t, stage.Poll(ctx, settleTimeout, func(ctx context.Context) error { return istiodNames(ctx, "payments-e2e") }))
	unharmed(t, "with a policy that cannot be translated", many)
	if payments(ctx) == nil {
		t.Error("the last good policy for payments no longer holds")
	}
}

// payments is an attempt that only a policy refuses.
func payments(ctx context.Context) error {
	pods, err := world.Pods(ctx, stage.Namespace, "app="+stage.Load)
	if err != nil {
		return err
	}
	_, err = world.Exec(ctx, stage.Namespace, pods[0].Name, "/usr/local/bin/tools", "get", "http://payments/")
	return err
}

// istiodNames says whether istiod's log names the object as one that it cannot use.
func istiodNames(ctx context.Context, name string) error {
	logs, err := world.Kubectl(ctx, "-n", stage.System, "logs", "-l", "app=istiod", "--tail=-1")
	if err != nil {
		return err
	}
	for line := range strings.Lines(logs) {
		if strings.Contains(line, name) && strings.Contains(line, "level=ERROR") {
			return nil
		}
	}
	return fmt.Errorf("istiod's log does not name %q as broken", name)
}

// TestWithoutIstiod takes the control plane away: traffic goes on, also on new connections, and a pod that starts
// meanwhile joins once istiod is back.
func TestWithoutIstiod(t *testing.T) {
	ctx := t.Context()
	begin(t, true)
	lookUntil(t, "before", captured)
	freshCounts(t)
	scale := func(ctx context.Context, replicas int) {
		t.Helper()
		_, err := world.Kubectl(ctx, "-n", stage.System, "scale", "deployment", "istiod", fmt.Sprintf("--replicas=%d", replicas))
		must(t, err)
	}
	scale(ctx, 0)
	t.Cleanup(func() { scale(context.WithoutCancel(ctx), 1) })
	must(t, stage.Poll(ctx, settleTimeout, func(ctx context.Context) error {
		var list corev1.PodList
		if err := world.Get(ctx, &list, "pods", "-n", stage.System, "-l", "app=istiod"); err != nil {
			return err
		}
		if len(list.Items) > 0 {
			return errors.New("istiod still runs")
		}
		return nil
	}))
	unharmed(t, "without istiod", many)
	restarted := "daemonset/istio-cni-node"
	restart(t, restarted)
	unharmed(t, "without istiod, after a restart of "+restarted, few)

	scale(ctx, 1)
	must(t, world.WaitRollout(ctx, stage.System, "deployment", "istiod"))
	must(t, world.Apply(ctx, fmt.Sprintf(newPod, "later", "n2", toolsImage(t))))
	t.Cleanup(func() {
		if _, err := world.Kubectl(context.WithoutCancel(ctx), "-n", stage.Namespace, "delete", "pod", "later"); err != nil {
			t.Error(err)
		}
	})
	must(t, stage.Poll(ctx, podTimeout, func(ctx context.Context) error {
		out, err := world.Exec(ctx, stage.Namespace, "later", "/usr/local/bin/tools", "get", "http://catalog/products")
		if err == nil && !strings.Contains(out, "compass") {
			err = fmt.Errorf("answer %q", out)
		}
		return err
	}))
	unharmed(t, "after istiod came back", few)
}
