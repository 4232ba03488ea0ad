// Command waypoint-agent runs a waypoint or a gateway: Envoy, and beside it what
// Envoy needs. It is configured by the environment; package waypoint/agent says how.
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
	"github.com/ambit-mesh/ambit/waypoint/agent"
)

func main() {
	root := &cobra.Command{
		Use: "waypoint-agent", Short: "The proxy of waypoints and gateways", SilenceUsage: true,
		Example: "  waypoint-agent proxy waypoint\n  waypoint-agent proxy router",
	}
	envoy := ""
	proxy := &cobra.Command{
		Use: "proxy <waypoint|router>", Short: "Run the proxy, configured by the environment", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), args[0], envoy) },
	}
	proxy.Flags().StringVar(&envoy, "envoy", "", "path of Envoy; ENVOY or "+agent.DefaultEnvoy+" if empty")
	root.AddCommand(proxy, &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(*cobra.Command, []string) { fmt.Println(version.String()) },
	})
	if err := root.Execute(); err != nil {
		os.Exit(1)
	}
}

func run(ctx context.Context, kind, envoy string) error {
	cfg, err := agent.LoadConfig(kind, os.LookupEnv)
	if err != nil {
		return err
	}
	if envoy != "" {
		cfg.Envoy = envoy
	}
	logging, err := telemetry.NewLogging(os.Stdout, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	return agent.Run(ctx, cfg, logging)
}
