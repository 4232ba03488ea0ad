// Package cli is the command tree of the ambit tool. main calls Main.
//
// What always holds: the result of a command goes to standard output, progress
// and errors to standard error, so that output can be piped; errors carry a hint
// where there is something to do; the exit code is 0, or 1 after any error.
// The commands only parse and print: the work is done by the packages release,
// rollout and waypoint.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/cmd/ambit/internal/release"
	"github.com/ambit-mesh/ambit/cmd/ambit/internal/waypoint"
)

// Main runs the tool and returns its exit code.
func Main(ctx context.Context, args []string, out, errOut io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(errOut, "Error: %v\n", err)
		if hint := hintFor(err); hint != "" {
			fmt.Fprintf(errOut, "Hint: %s\n", hint)
		}
		return 1
	}
	return 0
}

// cluster holds the flags of commands that talk to a cluster.
type cluster struct {
	kubeconfig, context, namespace string
	verbose                        bool
}

func (c *cluster) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig file (default $KUBECONFIG, then ~/.kube/config)")
	f.StringVar(&c.context, "context", "", "context of the kubeconfig (default its current one)")
	f.StringVarP(&c.namespace, "namespace", "n", ports.SystemNamespace, "namespace of the mesh's control plane")
	f.BoolVarP(&c.verbose, "verbose", "v", false, "log what Helm does")
}

func (c *cluster) releases(errOut io.Writer) (*release.Client, error) {
	log := slog.New(slog.DiscardHandler)
	if c.verbose {
		log = slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return release.New(release.Config{Kubeconfig: c.kubeconfig, Context: c.context, Namespace: c.namespace, Log: log})
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "ambit",
		Short: "Install and inspect the Ambit service mesh",
		Long: "ambit puts a service mesh into a Kubernetes cluster, without sidecars and without restarting what runs there.\n" +
			"It needs a kubeconfig and the rights of a cluster administrator.",
		Example: "  ambit install\n" +
			"  kubectl label namespace shop istio.io/dataplane-mode=ambient\n" +
			"  ambit waypoint apply -n shop --enroll-namespace",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newInstall(), newUninstall(), newWaypoint(), newVersion())
	return root
}

// output is the -o flag: text for people, json for programs.
type output string

const (
	textOutput output = "text"
	jsonOutput output = "json"
)

func (o *output) String() string { return string(*o) }
func (o *output) Type() string   { return "format" }

func (o *output) Set(s string) error {
	switch output(s) {
	case textOutput, jsonOutput:
		*o = output(s)
		return nil
	}
	return errors.New("want text or json")
}

// hintFor says what to do about errors whose cause is known by their type.
func hintFor(err error) string {
	var network *net.OpError
	switch {
	case errors.Is(err, release.ErrForeign):
		return "remove the other mesh first, or pass --adopt to take its objects over"
	case errors.Is(err, release.ErrBusy):
		return "wait for it; if it was killed, run this again in two minutes"
	case errors.Is(err, waypoint.ErrNoGatewayAPI):
		return "install it, the mesh need not be restarted: kubectl apply --server-side -f " +
			"https://github.com/kubernetes-sigs/gateway-api/releases/download/" + waypoint.GatewayAPI + "/standard-install.yaml"
	case errors.Is(err, waypoint.ErrTaken):
		return "pass --overwrite to change it"
	case clientcmd.IsEmptyConfig(err), strings.Contains(err.Error(), "no configuration has been provided"):
		return "no cluster is configured: pass --kubeconfig, or set KUBECONFIG"
	case apierrors.IsForbidden(err):
		return "the kubeconfig's user lacks a right; installing needs those of a cluster administrator"
	case apierrors.IsUnauthorized(err):
		return "the cluster does not accept the kubeconfig's credentials"
	case strings.Contains(err.Error(), "invalid ownership metadata"):
		return "somebody else made these objects; pass --adopt to take them over"
	case strings.Contains(err.Error(), "cluster unreachable"), errors.As(err, &network), errors.Is(err, context.DeadlineExceeded):
		return "the API server does not answer: is the cluster up, and the kubeconfig's context the right one?"
	}
	return ""
}
