package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/tests/cluster"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

// Times and amounts.
const (
	// few and many are numbers of requests: one and several seconds of traffic.
	few, many = 400, 1500
	// settleTimeout bounds what takes seconds.
	settleTimeout = 60 * time.Second
	// podTimeout bounds what waits for the kubelet's back-off, which grows to 20 s and more.
	podTimeout = 150 * time.Second
)

// world is the stage that all tests share; TestMain makes it.
var world *stage.Stage

func TestMain(m *testing.M) {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := setUp(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "set up:", err)
		dump(context.Background())
		os.Exit(1)
	}
	code := m.Run()
	if code != 0 {
		dump(context.Background())
	}
	os.Exit(code)
}

func setUp(ctx context.Context) error {
	source, err := stage.SourceRoot()
	if err != nil {
		return err
	}
	if world, err = stage.New(source, cluster.NewProgress(os.Stderr)); err != nil {
		return err
	}
	world.Values = []string{fmt.Sprintf("ztunnel.terminationGracePeriodSeconds=%d", grace/time.Second)}
	if os.Getenv("AMBIT_E2E_REUSE") == "" {
		if err := world.Cluster.Down(ctx); err != nil {
			return err
		}
	}
	if err := world.Up(ctx); err != nil {
		return err
	}
	if err := world.Progress.Do("Gateway API", func() error { return world.InstallGatewayAPI(ctx) }); err != nil {
		return err
	}
	if err := world.Progress.Do("install the mesh", func() error { return world.InstallMesh(ctx) }); err != nil {
		return err
	}
	return world.Progress.Do("the shop", func() error { return world.DeployShop(ctx) })
}

// dump keeps what a person needs to find a failure.
func dump(ctx context.Context) {
	if world == nil {
		return
	}
	dir := filepath.Join("..", "..", "out", "e2e-logs")
	if err := world.Dump(ctx, dir); err != nil {
		fmt.Fprintln(os.Stderr, "dump logs:", err)
		return
	}
	fmt.Fprintln(os.Stderr, "logs are in", dir)
}

// must fails the test at once.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// begin removes policies, routes and waypoints, and puts the shop into the mesh or takes it out. The demo's second
// catalog stays: taking pods away under load fails requests outside the mesh.
func begin(t *testing.T, in bool) {
	t.Helper()
	for _, args := range [][]string{
		{"label", "service", "--all", "istio.io/use-waypoint-"},
		{"delete", "authorizationpolicies.security.istio.io,requestauthentications.security.istio.io", "--all"},
		{"delete", "httproutes.gateway.networking.k8s.io,gateways.gateway.networking.k8s.io", "--all"},
	} {
		_, err := world.Kubectl(t.Context(), append([]string{"-n", stage.Namespace}, args...)...)
		must(t, err)
	}
	setMesh(t, in)
}

// setMesh puts the shop into the mesh or takes it out, and waits until that is done.
func setMesh(t *testing.T, in bool) {
	t.Helper()
	label := ports.LabelDataplaneMode + "-"
	if in {
		label = ports.LabelDataplaneMode + "=" + ports.DataplaneModeAmbient
	}
	must(t, world.Label(t.Context(), stage.Namespace, label))
	must(t, world.WaitCaptured(t.Context(), stage.Namespace, in))
}

// freshCounts zeroes all load reports once the traffic flows.
func freshCounts(t *testing.T) {
	t.Helper()
	_, err := world.MoreTraffic(t.Context(), few)
	must(t, err)
	for _, ns := range []string{stage.Namespace, stage.Outside} {
		must(t, world.ResetLoad(t.Context(), ns))
	}
}

// unharmed makes more traffic and fails the test if anything of it was lost since freshCounts.
func unharmed(t *testing.T, during string, requests int64) {
	t.Helper()
	r, err := world.MoreTraffic(t.Context(), requests)
	must(t, err)
	if r.Broken() != 0 {
		t.Errorf("%s: %s", during, stage.Describe(r))
		for _, f := range r.Failures {
			t.Logf("  %s %s %s: %s", f.Time.Format(time.StampMilli), f.Target, f.Kind, f.Error)
		}
		for _, e := range r.Streams.Ended {
			t.Logf("  stream to %s, opened %s, ended %s: %s: %s", e.Target, e.Opened.Format(time.StampMilli), e.Ended.Format(time.StampMilli), e.Kind, e.Error)
		}
		return
	}
	t.Logf("%s: %s; p99 %.1f ms, slowest echo %.0f ms", during, stage.Describe(r), r.HTTP.P99, r.Streams.MaxEcho)
}

// lookUntil looks at the wire between the nodes until it is as wanted.
func lookUntil(t *testing.T, what string, wanted func(stage.Traffic) bool) stage.Traffic {
	t.Helper()
	var last stage.Traffic
	err := stage.Poll(t.Context(), settleTimeout, func(ctx context.Context) error {
		var err error
		if last, err = world.Look(ctx, few); err != nil {
			return err
		}
		if !wanted(last) {
			return errors.New("the wire shows something else")
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v: %+v", what, err, last)
	}
	return last
}

// captured says that new connections all go through the tunnel.
func captured(tr stage.Traffic) bool {
	for port := range tr.Opened {
		if port != fmt.Sprint(ports.HBONE) {
			return false
		}
	}
	return tr.Readable == 0 && tr.TLS > 0
}

// bare says that new connections go past the mesh.
func bare(tr stage.Traffic) bool { return tr.Readable > 0 && tr.Opened["8080"] > 0 }
