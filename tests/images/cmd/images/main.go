// Command images builds the mesh's container images without Docker, one archive
// each, and prints their paths. make images calls it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/tests/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		stop()
		os.Exit(1)
	}
}

func command() *cobra.Command {
	options := images.Options{Source: "."}
	cmd := &cobra.Command{
		Use:   "images [NAME]...",
		Short: "Build container images without Docker",
		Long:  "Build container images without Docker, as archives that containerd, podman and docker load.\nThe images are " + strings.Join(images.Names(), ", ") + "; without a name, all are built.",
		Example: `  images                                build all into out/images
  images --hub registry.example/mesh --tag 1.0 ztunnel
  ctr -n k8s.io images import out/images/ztunnel.tar`,
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, names []string) error {
			options.Only = names
			result, err := images.Build(cmd.Context(), options)
			if err != nil {
				return err
			}
			for _, archive := range result.Archives {
				fmt.Fprintln(cmd.OutOrStdout(), archive)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "tag", result.Tag)
			return nil
		},
	}
	cmd.Flags().StringVar(&options.Hub, "hub", "ambit", "first part of the images' names")
	cmd.Flags().StringVar(&options.Tag, "tag", "", "tag; made of the programs' contents if empty")
	cmd.Flags().StringVar(&options.Out, "out", "", "directory for the archives; out/images if empty")
	return cmd
}
