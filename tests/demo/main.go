// Command demo shows the mesh on a real Kubernetes on this machine: a running shop
// joins it without a restart, and what that changes is measured and shown. make
// demo runs it, as root; make demo-down ends what it started.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/tests/cluster"
	"github.com/ambit-mesh/ambit/tests/demo/show"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

func command() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show the mesh on a real Kubernetes on this machine",
		Long: `Show the mesh on a real Kubernetes on this machine. It needs root and Debian; the first run builds
Kubernetes, which takes minutes. The cluster stays up for you to look around.`,
		Example:      "  demo\n  make demo-down",
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context())
		},
	}
}

func run(ctx context.Context) error {
	source, err := stage.SourceRoot()
	if err != nil {
		return err
	}
	s, err := stage.New(source, cluster.NewProgress(os.Stdout))
	if err != nil {
		return err
	}
	checks, err := show.Run(ctx, s)
	passed := show.WriteChecks(s, checks)
	if err != nil {
		return err
	}
	if !passed {
		return fmt.Errorf("not all checks passed")
	}
	s.Progress.Heading("All %d checks passed", len(checks))
	return lookAround(ctx, s)
}

// lookAround prints commands with this run's addresses.
func lookAround(ctx context.Context, s *stage.Stage) error {
	ip, err := s.Kubectl(ctx, "-n", stage.Namespace, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	_, err = fmt.Printf(`
Look around:
  make kubectl ARGS="get pods -A -o wide"
  make kubectl ARGS="-n istio-system logs -l app=ztunnel --tail=20"
  make kubectl ARGS="-n shop get authorizationpolicy only-checkout -o yaml"
  make kubectl ARGS="label namespace shop istio.io/dataplane-mode-"
  go run ./tests/cluster/cmd/cluster forward 127.0.0.1:8080 %s:80
      then open http://127.0.0.1:8080/ in a browser: the shop
End it:
  make demo-down
`, strings.TrimSpace(ip))
	return err
}
