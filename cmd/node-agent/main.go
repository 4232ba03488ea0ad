// Command node-agent captures the traffic of a node's pods that belong in the mesh. See package agent.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/cni-plugin/agent"
	"github.com/ambit-mesh/ambit/internal/telemetry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "node-agent:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "node-agent",
		Short: "Capture the traffic of this node's pods that belong in the mesh",
		Long: "node-agent runs once per node, privileged, and is configured by environment variables\n" +
			"(NODE_NAME is required; see docs or cni-plugin/agent/config.go).",
		Example:       "  NODE_NAME=node-1 KUBECONFIG=$HOME/.kube/config node-agent\n  node-agent uninstall",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logging, err := telemetry.NewLogging(os.Stderr, os.Getenv(telemetry.EnvLogLevel), os.Getenv(telemetry.EnvLogFormat))
			if err != nil {
				return err
			}
			return agent.Run(cmd.Context(), agent.FromEnv(os.Getenv), logging)
		},
	}
	root.AddCommand(&cobra.Command{
		Use:     "uninstall",
		Short:   "Take the CNI plugin off this node",
		Long:    "Takes the CNI plugin off a node that the DaemonSet no longer reaches. Pods then start without it.",
		Example: "  node-agent uninstall",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			logging, err := telemetry.NewLogging(os.Stderr, "", "")
			if err != nil {
				return err
			}
			return agent.Uninstall(agent.FromEnv(os.Getenv), logging.Root())
		},
	})
	return root
}
