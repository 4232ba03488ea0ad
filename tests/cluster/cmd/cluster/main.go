// Command cluster runs a real two-node Kubernetes in network namespaces of this
// machine, for the demo and the tests. See package cluster for what it does.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/tests/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		os.Exit(1)
	}
}

// with runs f on the cluster that the flags name.
type with func(f func(ctx context.Context, c *cluster.Cluster, args []string) error) func(*cobra.Command, []string) error

func command() *cobra.Command {
	config := cluster.Config{}
	root := &cobra.Command{
		Use:   "cluster",
		Short: "Run a real two-node Kubernetes in network namespaces of this machine",
		Long: `Run a real two-node Kubernetes in network namespaces of this machine. It needs root and Debian.

State is in /var/lib/ambit-cluster, built programs are in the user's cache directory. Nothing in
the cluster reaches beyond this machine, and its addresses are reachable in its namespaces only.`,
		Example: `  cluster up                                   start; nothing happens if it runs
  cluster kubectl get pods -A -o wide
  cluster load-images out/images/*.tar
  cluster forward 127.0.0.1:8080 10.96.7.7:80  reach a Service or pod from this machine
  cluster node n1 nft list ruleset             run a program on a node
  eval "$(cluster env)"                        then: ambit_kubectl get nodes
  cluster down`,
		SilenceUsage: true,
	}
	root.PersistentFlags().StringVar(&config.Name, "name", cluster.DefaultName, "prefix of network namespaces and cgroups")
	root.PersistentFlags().StringVar(&config.StateRoot, "state", "", "directory for state; /var/lib/ambit-cluster if empty")
	on := func(f func(context.Context, *cluster.Cluster, []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			config.Progress = cluster.NewProgress(cmd.ErrOrStderr())
			c, err := cluster.New(config)
			if err != nil {
				return err
			}
			return f(cmd.Context(), c, args)
		}
	}
	root.AddCommand(lifecycle(on)...)
	root.AddCommand(access(on)...)
	return root
}

func lifecycle(on with) []*cobra.Command {
	return []*cobra.Command{
		{Use: "up", Short: "Start the cluster, building what is missing", Args: cobra.NoArgs,
			RunE: on(func(ctx context.Context, c *cluster.Cluster, _ []string) error { return c.Up(ctx) })},
		{Use: "down", Short: "End the cluster and remove its state", Args: cobra.NoArgs,
			RunE: on(func(ctx context.Context, c *cluster.Cluster, _ []string) error { return c.Down(ctx) })},
		{Use: "status", Short: "Show processes, nodes and pods", Args: cobra.NoArgs,
			RunE: on(func(ctx context.Context, c *cluster.Cluster, _ []string) error {
				if err := c.WriteStatus(os.Stdout); err != nil {
					return err
				}
				return attach(c.Kubectl(ctx, "get", "nodes,pods", "-A", "-o", "wide"))
			})},
		{Use: "load-images ARCHIVE...", Short: "Import image archives into every node", Args: cobra.MinimumNArgs(1),
			RunE: on(func(ctx context.Context, c *cluster.Cluster, args []string) error { return c.LoadImages(ctx, args...) })},
	}
}

func access(on with) []*cobra.Command {
	return []*cobra.Command{
		{Use: "kubectl ARGUMENT...", Short: "Run kubectl as administrator", DisableFlagParsing: true,
			RunE: on(func(ctx context.Context, c *cluster.Cluster, args []string) error {
				return attach(c.Kubectl(ctx, args...))
			})},
		{Use: "exec PROGRAM ARGUMENT...", Short: "Run a program in the cluster's network namespace with KUBECONFIG set", DisableFlagParsing: true, Args: cobra.MinimumNArgs(1),
			RunE: on(func(ctx context.Context, c *cluster.Cluster, args []string) error {
				return attach(c.Command(ctx, args...))
			})},
		{Use: "node NAME PROGRAM ARGUMENT...", Short: "Run a program in a node's namespaces", DisableFlagParsing: true, Args: cobra.MinimumNArgs(2),
			RunE: on(func(ctx context.Context, c *cluster.Cluster, args []string) error {
				cmd, err := c.NodeShell(ctx, args[0], args[1:]...)
				if err != nil {
					return err
				}
				return attach(cmd)
			})},
		{Use: "forward LISTEN TARGET", Short: "Forward a TCP address of this machine to an address in the cluster", Args: cobra.ExactArgs(2),
			RunE: on(func(ctx context.Context, c *cluster.Cluster, args []string) error {
				return c.Forward(ctx, args[0], args[1])
			})},
		{Use: "env", Short: "Print shell settings for the cluster", Args: cobra.NoArgs,
			RunE: on(func(_ context.Context, c *cluster.Cluster, _ []string) error {
				_, err := fmt.Print(c.Env())
				return err
			})},
	}
}

// attach runs a command on this terminal.
func attach(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
