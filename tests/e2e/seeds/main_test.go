package seeds

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/tests/cluster"
	"github.com/ambit-mesh/ambit/tests/demo/probe"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
	"github.com/ambit-mesh/ambit/tests/demo/token"
)

// Names of the application.
const (
	namespace = "hands-on"
	outside   = "hands-off"
	caller    = "app=product-composite"
	stranger  = "app=stranger"
	// effectTimeout bounds the time from a change to its effect; below a second is usual.
	effectTimeout = 30 * time.Second
)

//go:embed *.yaml
var files embed.FS

var (
	world *stage.Stage
	keys  *token.Issuer
)

func TestMain(m *testing.M) {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := setUp(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "set up:", err)
		dump()
		os.Exit(1)
	}
	code := m.Run()
	if code != 0 {
		dump()
	}
	os.Exit(code)
}

func dump() {
	if world == nil {
		return
	}
	if err := world.Dump(context.Background(), filepath.Join("..", "..", "..", "out", "seeds-logs")); err != nil {
		fmt.Fprintln(os.Stderr, "dump logs:", err)
	}
}

func setUp(ctx context.Context) error {
	source, err := stage.SourceRoot()
	if err != nil {
		return err
	}
	if world, err = stage.New(source, cluster.NewProgress(os.Stderr)); err != nil {
		return err
	}
	if keys, err = token.NewIssuer("http://auth-server.local"); err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"cluster", world.Up},
		{"Gateway API", world.InstallGatewayAPI},
		{"install the mesh", world.InstallMesh},
		{"the application", deploy},
		{"a waypoint", waypoint},
	} {
		if err := world.Progress.Do(step.what, func() error { return step.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

func deploy(ctx context.Context) error {
	if _, err := world.Kubectl(ctx, "delete", "namespace", namespace, outside, "--ignore-not-found"); err != nil {
		return err
	}
	if err := world.Apply(ctx, read("app.yaml", "image", world.Image("tools"))); err != nil {
		return err
	}
	if err := world.Apply(ctx, configMap("keys", "jwks.json", keys.Keys())); err != nil {
		return err
	}
	for _, ns := range []string{namespace, outside} {
		if err := world.WaitRollout(ctx, ns, "deployment", ""); err != nil {
			return err
		}
	}
	return world.WaitCaptured(ctx, namespace, true)
}

func waypoint(ctx context.Context) error {
	_, err := world.Ambit(ctx, "waypoint", "apply", "-n", namespace, "--enroll-namespace", "--wait")
	return err
}

// read returns a file with its {{name}} replaced; pairs are name, value.
func read(name string, pairs ...string) string {
	b, err := files.ReadFile(name)
	if err != nil {
		return "" // applying nothing fails
	}
	text := string(b)
	for i := 0; i+1 < len(pairs); i += 2 {
		text = strings.ReplaceAll(text, "{{"+pairs[i]+"}}", pairs[i+1])
	}
	return text
}

func configMap(name, key, value string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, namespace: %s}\ndata:\n  %s: '%s'\n", name, namespace, key, value)
}

// apply puts a file in force until the test ends.
func apply(t *testing.T, name string, pairs ...string) {
	t.Helper()
	manifest := read(name, pairs...)
	must(t, world.Apply(t.Context(), manifest))
	t.Cleanup(func() {
		if err := world.Delete(context.Background(), manifest); err != nil {
			t.Error(err)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fetch makes requests from the composite's pod.
func fetch(t *testing.T, args ...string) probe.Report {
	t.Helper()
	r, err := world.Fetch(t.Context(), namespace, caller, args...)
	must(t, err)
	return r
}

// until repeats requests until they come out as wanted.
func until(t *testing.T, what string, wanted func(probe.Report) bool, args ...string) probe.Report {
	t.Helper()
	var last probe.Report
	err := stage.Poll(t.Context(), effectTimeout, func(ctx context.Context) error {
		var err error
		if last, err = world.Fetch(ctx, namespace, caller, args...); err != nil {
			return err
		}
		if !wanted(last) {
			return errors.New("the requests come out differently")
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v: %+v", what, err, last)
	}
	return last
}
