package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

// enrol deploys a waypoint and sends all of the shop's service traffic through it, until the test ends.
func enrol(t *testing.T) {
	t.Helper()
	begin(t, true)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
		defer cancel()
		leave(ctx, t)
	})
	_, err := world.Ambit(t.Context(), "waypoint", "apply", "-n", stage.Namespace, "--enroll-namespace", "--wait")
	must(t, err)
	throughWaypoint(t, true)
	must(t, world.ReopenStreams(t.Context(), stage.Namespace))
	freshCounts(t)
}

// leave takes the shop off its waypoint, then the waypoint away: the order of install.md.
func leave(ctx context.Context, t *testing.T) {
	if _, err := world.Kubectl(ctx, "label", "namespace", stage.Namespace, "istio.io/use-waypoint-"); err != nil {
		t.Error(err)
	}
	if _, err := world.Ambit(ctx, "waypoint", "delete", "-n", stage.Namespace, "--all"); err != nil {
		t.Error(err)
	}
}

// throughWaypoint waits until answers of a service come through an Envoy, or none does.
func throughWaypoint(t *testing.T, want bool) {
	t.Helper()
	must(t, stage.Poll(t.Context(), settleTimeout, func(ctx context.Context) error {
		r, err := world.Fetch(ctx, stage.Namespace, "app="+stage.Load, "http://catalog/products")
		if err != nil {
			return err
		}
		if r.OK() != 1 {
			return fmt.Errorf("status %v, errors %v", r.Status, r.Texts)
		}
		if (r.LastHeaders.Get("x-envoy-upstream-service-time") != "") != want {
			return fmt.Errorf("through a waypoint: %v, want %v", !want, want)
		}
		return nil
	}))
}

// TestWaypointComesAndGoesUnderLoad enrols a namespace with running traffic in a waypoint, takes it out and puts it in
// again; nothing fails.
func TestWaypointComesAndGoesUnderLoad(t *testing.T) {
	begin(t, true)
	freshCounts(t)
	for i := range 2 {
		_, err := world.Ambit(t.Context(), "waypoint", "apply", "-n", stage.Namespace, "--enroll-namespace", "--wait")
		must(t, err)
		throughWaypoint(t, true)
		unharmed(t, fmt.Sprintf("enrolling %d", i+1), few)
		_, err = world.Kubectl(t.Context(), "label", "namespace", stage.Namespace, "istio.io/use-waypoint-")
		must(t, err)
		throughWaypoint(t, false)
		_, err = world.Ambit(t.Context(), "waypoint", "delete", "-n", stage.Namespace, "--all")
		must(t, err)
		unharmed(t, fmt.Sprintf("leaving %d", i+1), few)
	}
}

// TestWaypointChangesUnderLoad rolls a waypoint over, scales it up and down and restarts its control plane: no request
// fails. Streams may end with the waypoint that carries them; new ones open at once.
func TestWaypointChangesUnderLoad(t *testing.T) {
	enrol(t)
	for _, c := range []struct {
		what string
		do   func(*testing.T)
	}{
		{"rollout", func(t *testing.T) { restartWaypoint(t) }},
		{"scale to 3", func(t *testing.T) { scaleWaypoint(t, 3) }},
		{"scale to 1", func(t *testing.T) { scaleWaypoint(t, 1) }},
		{"restart of istiod", func(t *testing.T) { restart(t, "deployment/istiod") }},
	} {
		c.do(t)
		r, err := world.MoreTraffic(t.Context(), many)
		must(t, err)
		checkRequests(t, c.what, r)
		t.Logf("%s: %s", c.what, stage.Describe(r))
	}
	throughWaypoint(t, true)
}

func restartWaypoint(t *testing.T) {
	t.Helper()
	_, err := world.Kubectl(t.Context(), "-n", stage.Namespace, "rollout", "restart", "deployment/waypoint")
	must(t, err)
	settleWaypoint(t, 1)
}

func scaleWaypoint(t *testing.T, replicas int) {
	t.Helper()
	_, err := world.Kubectl(t.Context(), "-n", stage.Namespace, "scale", "deployment/waypoint", fmt.Sprintf("--replicas=%d", replicas))
	must(t, err)
	settleWaypoint(t, replicas)
}

// settleWaypoint waits until the rollout is over and replaced pods are gone, drains included.
func settleWaypoint(t *testing.T, replicas int) {
	t.Helper()
	must(t, world.WaitRollout(t.Context(), stage.Namespace, "deployment", "waypoint"))
	must(t, stage.Poll(t.Context(), 2*time.Minute, func(ctx context.Context) error {
		out, err := world.Kubectl(ctx, "-n", stage.Namespace, "get", "pods", "-l", "gateway.networking.k8s.io/gateway-name=waypoint", "-o", "name")
		if err != nil {
			return err
		}
		n := 0
		for _, c := range out {
			if c == '\n' {
				n++
			}
		}
		if n != replicas {
			return errors.New("pods of the waypoint are still leaving or coming")
		}
		return nil
	}))
}
