package main

import (
	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/tests/demo/collect"
)

func collectCommand() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use: "collect", Short: "Take OpenTelemetry traces and logs, and tell what came in under /received", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), listen, collect.New()) },
	}
	cmd.Flags().StringVar(&listen, "listen", ":4317", "address, for OTLP over gRPC and over HTTP")
	return cmd
}
