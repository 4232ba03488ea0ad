package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

// bypassTimeout is how long after a service got its waypoint there may be a way past it.
const bypassTimeout = 30 * time.Second

// directly dials a pod of the catalog by its own address, from a pod of a namespace, and returns how many of the
// requests were answered.
func directly(ctx context.Context, namespace string) (answered int, err error) {
	pods, err := world.Pods(ctx, stage.Namespace, "app=catalog")
	if err != nil {
		return 0, err
	}
	if len(pods) == 0 {
		return 0, fmt.Errorf("the catalog has no pod")
	}
	r, err := world.Fetch(ctx, namespace, "app="+stage.Load, "-n", "3", fmt.Sprintf("http://%s:8080/products", pods[0].Status.PodIP))
	return r.OK(), err
}

// waitDirectly waits until callers of a namespace get past the waypoint, or none does.
func waitDirectly(t *testing.T, namespace string, want int) {
	t.Helper()
	must(t, stage.Poll(t.Context(), bypassTimeout, func(ctx context.Context) error {
		got, err := directly(ctx, namespace)
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%d requests past the waypoint were answered, want %d", got, want)
		}
		return nil
	}))
}

// TestNobodyGoesAroundAWaypoint enrols the shop under load: what goes to a pod of its own accord is refused, what goes
// to the service is not, who is outside the mesh is not, until strict says so, and whoever may, may. No request of the
// load fails, and no connection that was open before ends.
func TestNobodyGoesAroundAWaypoint(t *testing.T) {
	begin(t, true)
	waitDirectly(t, stage.Namespace, 3)
	must(t, world.ReopenStreams(t.Context(), stage.Namespace))
	freshCounts(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
		defer cancel()
		annotateCatalog(ctx, t, "")
		leave(ctx, t)
	})
	_, err := world.Ambit(t.Context(), "waypoint", "apply", "-n", stage.Namespace, "--enroll-namespace", "--wait")
	must(t, err)
	throughWaypoint(t, true)
	began := time.Now()
	waitDirectly(t, stage.Namespace, 0)
	t.Logf("refused %.1f s after the waypoint took the traffic", time.Since(began).Seconds())
	throughWaypoint(t, true)
	unharmed(t, "enrolling", many)
	refusalIsLogged(t)
	if got, err := directly(t.Context(), stage.Outside); err != nil || got != 3 {
		t.Errorf("from outside the mesh: %d answers, %v", got, err)
	}

	annotateCatalog(t.Context(), t, "allow")
	waitDirectly(t, stage.Namespace, 3)
	annotateCatalog(t.Context(), t, "strict")
	waitDirectly(t, stage.Namespace, 0)
	waitDirectly(t, stage.Outside, 0)
	throughWaypoint(t, true)
	annotateCatalog(t.Context(), t, "")
	waitDirectly(t, stage.Outside, 3)

	freshCounts(t)
	_, err = world.Kubectl(t.Context(), "label", "namespace", stage.Namespace, "istio.io/use-waypoint-")
	must(t, err)
	throughWaypoint(t, false)
	waitDirectly(t, stage.Namespace, 3)
	unharmed(t, "leaving", few)
}

// annotateCatalog says who may go around its waypoint; empty takes it back.
func annotateCatalog(ctx context.Context, t *testing.T, value string) {
	t.Helper()
	arg := ports.AnnotationWaypointBypass + "=" + value
	if value == "" {
		arg = ports.AnnotationWaypointBypass + "-"
	}
	if _, err := world.Kubectl(ctx, "-n", stage.Namespace, "annotate", "service", "catalog", "--overwrite", arg); err != nil {
		t.Error(err)
	}
}

// refusalIsLogged looks for the policy's name in the logs of the ztunnels.
func refusalIsLogged(t *testing.T) {
	t.Helper()
	const policy = stage.Namespace + "/" + ports.WaypointRequiredPrefix + "catalog_8080"
	out, err := world.Kubectl(t.Context(), "-n", stage.System, "logs", "daemonset/ztunnel", "--all-pods", "--since=2m", "--tail=-1")
	must(t, err)
	for line := range strings.Lines(out) {
		if strings.Contains(line, policy) && strings.Contains(line, "DENY") {
			t.Log(strings.TrimSpace(line))
			return
		}
	}
	t.Errorf("no ztunnel logs a refusal by %s", policy)
}
