// Command ztunnel is the node proxy. It is configured by the environment, as
// Istio's is; package ztunnel says how to run it without a cluster.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/identity/ca"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/version"
	"github.com/ambit-mesh/ambit/ztunnel"
)

func main() {
	root := &cobra.Command{
		Use: "ztunnel", Short: "The node proxy of the mesh", SilenceUsage: true,
		Example: "  ztunnel proxy ztunnel\n  ztunnel dev-ca /tmp/ca",
	}
	trustDomain := ""
	devCA := &cobra.Command{
		Use: "dev-ca <directory>", Short: "Make a development CA for AMBIT_CA_DIR", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return ca.CreateDirectory(args[0], trustDomain) },
	}
	devCA.Flags().StringVar(&trustDomain, "trust-domain", "cluster.local", "trust domain of the root certificate")
	root.AddCommand(devCA,
		&cobra.Command{
			Use: "proxy [ztunnel]", Short: "Run the proxy, configured by the environment", Args: cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context()) },
		},
		&cobra.Command{
			Use: "version", Short: "Print the version", Args: cobra.NoArgs,
			Run: func(*cobra.Command, []string) { fmt.Println(version.String()) },
		})
	if err := root.Execute(); err != nil {
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	cfg, err := ztunnel.LoadConfig(os.LookupEnv)
	if err != nil {
		return err
	}
	logging, err := telemetry.NewLogging(os.Stdout, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	return ztunnel.Run(ctx, cfg, logging)
}
