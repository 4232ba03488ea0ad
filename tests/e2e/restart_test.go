package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/tests/demo/load"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

const (
	// restarts of each part.
	restarts = 3
	// grace is what the tests give a retiring ztunnel: half of the chart's 30 s, because they wait it out often.
	grace = 15 * time.Second
	// drain is how long a retiring ztunnel serves its connections: its grace period less 5 s for its exit.
	drain = grace - 5*time.Second
	// drainSlack is what a stream may lack of that: the load generator's and the API server's clocks tick in seconds.
	drainSlack = 2 * time.Second
	// replaceTimeout bounds a restart of the proxies of both nodes with their drains.
	replaceTimeout = 150 * time.Second
)

// TestRestartControlPlaneUnderLoad replaces istiod and the node agent: neither carries traffic, so nothing at all
// may be lost.
func TestRestartControlPlaneUnderLoad(t *testing.T) {
	begin(t, true)
	freshCounts(t)
	for _, part := range []string{"deployment/istiod", "daemonset/istio-cni-node"} {
		for i := range restarts {
			restart(t, part)
			unharmed(t, fmt.Sprintf("restart %d of %s", i+1, part), few)
		}
	}
	lookUntil(t, "after the restarts", captured)
}

// TestRestartZtunnelUnderLoad replaces the node proxies under churn of new connections: none is refused or reset,
// and streams that a retiring proxy holds live until its drain ends.
func TestRestartZtunnelUnderLoad(t *testing.T) {
	begin(t, true)
	must(t, world.ReopenStreams(t.Context(), stage.Namespace))
	freshCounts(t)
	for i := range restarts {
		start := time.Now()
		retired := replaceZtunnels(t)
		r, err := world.MoreTraffic(t.Context(), few)
		must(t, err)
		name := fmt.Sprintf("restart %d of ztunnel", i+1)
		t.Logf("%s: %s; %d streams ended with their proxy", name, stage.Describe(r), r.Streams.Broken)
		checkRequests(t, name, r)
		checkStreamEnds(t, name, r.Streams.Ended, start, retired)
		for _, ns := range []string{stage.Namespace, stage.Outside} {
			must(t, world.ResetLoad(t.Context(), ns))
		}
	}
	lookUntil(t, "after the restarts", captured)
}

func restart(t *testing.T, part string) {
	t.Helper()
	_, err := world.Kubectl(t.Context(), "-n", stage.System, "rollout", "restart", part)
	must(t, err)
	must(t, world.WaitRollout(t.Context(), stage.System, part, ""))
}

// replaceZtunnels restarts the node proxies, waits until the old ones are gone and the new ones are ready, and
// returns when each old one was told to end.
func replaceZtunnels(t *testing.T) []time.Time {
	t.Helper()
	old, err := world.Pods(t.Context(), stage.System, "app=ztunnel")
	must(t, err)
	_, err = world.Kubectl(t.Context(), "-n", stage.System, "rollout", "restart", "daemonset/ztunnel")
	must(t, err)
	told := map[string]time.Time{}
	must(t, stage.Poll(t.Context(), replaceTimeout, func(ctx context.Context) error {
		var list corev1.PodList
		if err := world.Get(ctx, &list, "pods", "-n", stage.System, "-l", "app=ztunnel"); err != nil {
			return err
		}
		left := 0
		for _, p := range list.Items {
			if !slices.ContainsFunc(old, func(o corev1.Pod) bool { return o.UID == p.UID }) {
				continue
			}
			left++
			if p.DeletionTimestamp != nil { // which is the end of the grace period
				told[p.Name] = p.DeletionTimestamp.Add(-time.Duration(*p.DeletionGracePeriodSeconds) * time.Second)
			}
		}
		if left > 0 {
			return fmt.Errorf("%d replaced proxies still run", left)
		}
		return nil
	}))
	must(t, world.WaitRollout(t.Context(), stage.System, "daemonset", "ztunnel"))
	if len(told) != len(old) {
		t.Fatalf("%d of %d proxies were seen retiring", len(told), len(old))
	}
	return slices.Collect(maps.Values(told))
}

// checkRequests demands that no new connection was refused or reset and no stream failed to open.
func checkRequests(t *testing.T, name string, r load.Report) {
	t.Helper()
	if r.HTTP.Failed > 0 || r.Streams.Refused > 0 {
		t.Errorf("%s: %s", name, stage.Describe(r))
		for _, f := range r.Failures {
			t.Logf("  %s %s %s: %s", f.Time.Format(time.StampMilli), f.Target, f.Kind, f.Error)
		}
	}
}

// checkStreamEnds demands that each stream that ended did so when the drain of a retiring proxy was over, not before.
func checkStreamEnds(t *testing.T, name string, ends []load.StreamEnd, start time.Time, retired []time.Time) {
	t.Helper()
	for _, e := range ends {
		drained := false
		for _, at := range retired {
			held := e.Ended.Sub(at)
			drained = drained || (held >= drain-drainSlack && held <= drain+drainSlack)
		}
		if !drained {
			t.Errorf("%s: a stream to %s ended %.1f s after the restart began, not with a drain of %s: %s (told to end: %v)",
				name, e.Target, e.Ended.Sub(start).Seconds(), drain, e.Error, since(start, retired))
		}
	}
}

func since(start time.Time, times []time.Time) []string {
	var list []string
	for _, at := range times {
		list = append(list, fmt.Sprintf("+%.1f s", at.Sub(start).Seconds()))
	}
	return list
}
