// Command istiod is the control plane of the mesh. `istiod discovery` runs it;
// everything else is package istiod.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/version"
	"github.com/ambit-mesh/ambit/istiod"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{Use: "istiod", Short: "Control plane of the Ambit mesh", SilenceUsage: true, SilenceErrors: true, Version: version.String()}
	root.AddCommand(discovery())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "istiod:", err)
		os.Exit(1)
	}
}

func discovery() *cobra.Command {
	s, envErr := istiod.SettingsFromEnv()
	cmd := &cobra.Command{
		Use:   "discovery",
		Short: "Watch the cluster, push workload state to proxies, sign their certificates",
		Example: `  istiod discovery
  istiod discovery --config-dir ./mesh --ca-dir ./ca --grpcAddr 127.0.0.1:15010
  istiod discovery --kubeconfig ~/.kube/config --httpAddr 127.0.0.1:8080`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if envErr != nil {
				return envErr
			}
			log, err := telemetry.NewLogging(os.Stderr, s.LogLevel, s.LogFormat)
			if err != nil {
				return err
			}
			return istiod.Run(cmd.Context(), s, log)
		},
	}
	s.AddFlags(cmd.Flags())
	return cmd
}
