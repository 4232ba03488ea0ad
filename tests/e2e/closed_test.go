package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/tests/demo/pcap"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

// proxyNode is the label of nodes that keep their ztunnel in TestNodeWithoutZtunnel.
const proxyNode = "ambit.test/ztunnel"

// newPod is a pod of the shop's namespace on one node.
const newPod = `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: shop}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  serviceAccountName: load
  containers:
  - {name: echo, image: %q, args: [echo], imagePullPolicy: IfNotPresent}
`

// TestNodeWithoutZtunnel takes the proxy of one node away: a new pod of the mesh does not start there and says why,
// and running pods send nothing in plain text. Then the proxy comes back, and so does all traffic.
func TestNodeWithoutZtunnel(t *testing.T) {
	ctx := t.Context()
	const dark, lit = "n1", "n2"
	// What is to find nothing later must find something where there is something to find.
	begin(t, false)
	if leaked, tried := plaintext(t, dark); len(leaked) == 0 {
		t.Fatalf("outside the mesh, %d attempts left no plain text on the node", tried)
	}
	begin(t, true)
	must(t, world.ReopenStreams(ctx, stage.Namespace))
	lookUntil(t, "before", func(tr stage.Traffic) bool { return captured(tr) && tr.Tunnel == tr.Bytes })
	image := toolsImage(t)

	_, err := world.Kubectl(ctx, "label", "node", lit, "--overwrite", proxyNode+"=yes")
	must(t, err)
	patchZtunnel(t, `"`+proxyNode+`":"yes"`)
	t.Cleanup(func() {
		// Whatever happened, the other tests need both proxies.
		ctx := context.WithoutCancel(ctx)
		_, err := world.Kubectl(ctx, "-n", stage.System, "patch", "daemonset", "ztunnel", "--type=merge", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"`+proxyNode+`":null}}}}}`)
		_, deleted := world.Kubectl(ctx, "-n", stage.Namespace, "delete", "pod", "late", "--ignore-not-found")
		if err := errors.Join(err, deleted, world.WaitRollout(ctx, stage.System, "daemonset", "ztunnel")); err != nil {
			t.Error(err)
		}
	})
	waitNoZtunnel(t, dark)

	t.Run("a new pod waits and says why", func(t *testing.T) {
		must(t, world.Apply(ctx, fmt.Sprintf(newPod, "late", dark, image)))
		message := waitEvent(t, "late", "FailedCreatePodSandBox")
		t.Logf("event: %s", message)
		if !strings.Contains(message, "ztunnel") {
			t.Errorf("the event does not name what is missing: %s", message)
		}
		var p corev1.Pod
		must(t, world.Get(ctx, &p, "-n", stage.Namespace, "pod", "late"))
		if p.Status.Phase != corev1.PodPending {
			t.Errorf("the pod is %s", p.Status.Phase)
		}
	})
	t.Run("a running pod sends no plain text", func(t *testing.T) {
		leaked, tried := plaintext(t, dark)
		for _, p := range leaked[:min(len(leaked), 5)] {
			t.Errorf("%s sent %d bytes to %s: %.60q", p.Src, p.Length, p.Dst, p.Payload)
		}
		t.Logf("%d attempts, %d packets leaked", tried, len(leaked))
	})

	patchZtunnel(t, `"`+proxyNode+`":null`)
	must(t, world.WaitRollout(ctx, stage.System, "daemonset", "ztunnel"))
	must(t, stage.Poll(ctx, podTimeout, func(ctx context.Context) error {
		var p corev1.Pod
		if err := world.Get(ctx, &p, "-n", stage.Namespace, "pod", "late"); err != nil {
			return err
		}
		if p.Status.Phase != corev1.PodRunning || !stage.Captured(p) {
			return fmt.Errorf("pod late is %s, captured: %t", p.Status.Phase, stage.Captured(p))
		}
		return nil
	}))
	must(t, world.ReopenStreams(ctx, stage.Namespace))
	freshCounts(t)
	unharmed(t, "after the proxy came back", many)
	lookUntil(t, "after the proxy came back", captured)
}

func patchZtunnel(t *testing.T, selector string) {
	t.Helper()
	_, err := world.Kubectl(t.Context(), "-n", stage.System, "patch", "daemonset", "ztunnel", "--type=merge", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{`+selector+`}}}}}`)
	must(t, err)
}

func waitNoZtunnel(t *testing.T, node string) {
	t.Helper()
	must(t, stage.Poll(t.Context(), settleTimeout, func(ctx context.Context) error {
		var list corev1.PodList
		if err := world.Get(ctx, &list, "pods", "-n", stage.System, "-l", "app=ztunnel", "--field-selector=spec.nodeName="+node); err != nil {
			return err
		}
		if len(list.Items) > 0 {
			return errors.New("the node still has a proxy")
		}
		return nil
	}))
	must(t, world.WaitRollout(t.Context(), stage.System, "daemonset", "ztunnel"))
}

// waitEvent returns the message of a pod's event.
func waitEvent(t *testing.T, pod, reason string) string {
	t.Helper()
	var message string
	must(t, stage.Poll(t.Context(), podTimeout, func(ctx context.Context) error {
		var list corev1.EventList
		if err := world.Get(ctx, &list, "events", "-n", stage.Namespace, "--field-selector=involvedObject.name="+pod+",reason="+reason); err != nil {
			return err
		}
		if len(list.Items) == 0 {
			return fmt.Errorf("pod %q has no event %s", pod, reason)
		}
		message = list.Items[0].Message
		return nil
	}))
	return message
}

// plaintext watches every interface of the node while its pods try to talk, and returns the packets with which one of
// them sent a payload to a pod of the shop outside the tunnel. Besides what all pods try by themselves, one asks every
// pod in turn.
func plaintext(t *testing.T, node string) ([]pcap.Packet, int) {
	t.Helper()
	ctx := t.Context()
	all, err := world.Pods(ctx, stage.Namespace, "")
	must(t, err)
	mesh, here := stage.PodIPs(all), map[netip.Addr]string{}
	caller := ""
	for _, p := range all {
		if p.Spec.NodeName != node {
			continue
		}
		here[netip.MustParseAddr(p.Status.PodIP)] = p.Name
		if p.Labels["app"] == stage.Load {
			caller = p.Name
		}
	}
	capture, err := world.CaptureNode(ctx, node)
	must(t, err)
	var attempts sync.WaitGroup
	for ip := range mesh {
		attempts.Go(func() {
			// Refused, reset or silent: the wire tells whether it was sent.
			_, _ = world.Exec(ctx, stage.Namespace, caller, "/usr/local/bin/tools", "get", fmt.Sprintf("http://%s:8080/healthz", ip))
		})
	}
	attempts.Wait()
	packets, err := capture.Stop()
	must(t, err)
	leaked := slices.DeleteFunc(packets, func(p pcap.Packet) bool { return !leaks(p, here, mesh) })
	return leaked, len(mesh)
}

// leaks says whether a pod of this node sends payload to a pod of the mesh in plain text. Answers of its servers to
// pods outside the mesh do not count: they are addressed to those.
func leaks(p pcap.Packet, here, mesh map[netip.Addr]string) bool {
	return here[p.Src.Addr()] != "" && mesh[p.Dst.Addr()] != "" && p.Length > 0 &&
		p.Dst.Port() != ports.HBONE && p.Src.Port() != ports.HBONE
}

// toolsImage is the image that the load generator runs.
func toolsImage(t *testing.T) string {
	t.Helper()
	pods, err := world.Pods(t.Context(), stage.Namespace, "app="+stage.Load)
	must(t, err)
	return pods[0].Spec.Containers[0].Image
}
