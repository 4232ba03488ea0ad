package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/cmd/ambit/internal/waypoint"
	"github.com/ambit-mesh/ambit/internal/kube"
)

// waypointTimeout leaves time to pull one image over a slow line, as Istio's tool does.
const waypointTimeout = 90 * time.Second

// encoding is the -o flag of the waypoint commands: text for people, the rest for programs.
type encoding string

const (
	textEncoding encoding = "text"
	jsonEncoding encoding = "json"
	yamlEncoding encoding = "yaml"
)

func (e *encoding) String() string { return string(*e) }
func (e *encoding) Type() string   { return "format" }

func (e *encoding) Set(s string) error {
	switch encoding(s) {
	case textEncoding, jsonEncoding, yamlEncoding:
		*e = encoding(s)
		return nil
	}
	return errors.New("want text, json or yaml")
}

// waypoints holds the flags that the waypoint commands share.
type waypoints struct {
	kubeconfig, context, namespace string
	name, traffic                  string
	wait                           bool
	timeout                        time.Duration
	output                         encoding
}

func newWaypoint() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "waypoint",
		Short: "Make, list and remove waypoints: layer 7 for the services of a namespace",
		Long: "A waypoint is a proxy that routes, limits, authorises and observes the requests to the services that use it.\n" +
			"It is a Gateway of class " + waypoint.Class + ", which istiod deploys; the label " + ports.LabelUseWaypoint + " on a namespace,\n" +
			"service or pod names the one to use. Removing the label puts traffic back on the direct way, without a restart.",
		Example: "  ambit waypoint apply -n shop --enroll-namespace --wait\n" +
			"  ambit waypoint status -n shop\n" +
			"  ambit waypoint list -A",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newWaypointApply(), newWaypointGenerate(), newWaypointList(), newWaypointStatus(), newWaypointDelete())
	return cmd
}

func (o *waypoints) registerCluster(f *pflag.FlagSet) {
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file (default $KUBECONFIG, then ~/.kube/config)")
	f.StringVar(&o.context, "context", "", "context of the kubeconfig (default its current one)")
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of the waypoint (default the context's)")
}

func (o *waypoints) registerGateway(f *pflag.FlagSet) {
	f.StringVar(&o.name, "name", waypoint.DefaultName, "name of the waypoint")
	f.StringVar(&o.traffic, "for", "", "traffic to handle: "+strings.Join(waypoint.Traffic(), ", ")+" (default service)")
}

func (o *waypoints) registerWait(f *pflag.FlagSet, wait bool, usage string) {
	f.BoolVarP(&o.wait, "wait", "w", wait, usage)
	f.DurationVar(&o.timeout, "timeout", waypointTimeout, "how long to wait")
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "waypoint-timeout" { // Istio's name
			name = "timeout"
		}
		return pflag.NormalizedName(name)
	})
}

// client connects, and finds the namespace that the user means.
func (o *waypoints) client() (*waypoint.Client, error) {
	c, err := kube.New(kube.Config{Kubeconfig: o.kubeconfig, Context: o.context, UserAgent: "ambit"})
	if err != nil {
		return nil, err
	}
	if o.namespace == "" {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		rules.ExplicitPath = o.kubeconfig
		o.namespace, _, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: o.context}).Namespace()
		if err != nil {
			return nil, fmt.Errorf("read kubeconfig %q: %w", o.kubeconfig, err)
		}
	}
	return &waypoint.Client{Kube: c.Kube, Gateways: c.Gateway}, nil
}

type waypointApply struct {
	waypoints
	enroll, overwrite bool
}

func newWaypointApply() *cobra.Command {
	o := &waypointApply{}
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Make a waypoint, or change one",
		Long: "apply makes the Gateway of a waypoint in a namespace. With --enroll-namespace it then labels the namespace, so that\n" +
			"all its services use the waypoint; connections that are open go on as they are.",
		Example: "  ambit waypoint apply -n shop --enroll-namespace --wait\n" +
			"  ambit waypoint apply -n shop --name payments --for all\n" +
			"  kubectl -n shop label service cart istio.io/use-waypoint=payments",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), client, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	o.registerCluster(f)
	o.registerGateway(f)
	o.registerWait(f, false, "wait until the waypoint works; with --enroll-namespace, before the namespace is labelled")
	f.BoolVar(&o.enroll, "enroll-namespace", false, "label the namespace with "+ports.LabelUseWaypoint+"=<name>")
	f.BoolVar(&o.overwrite, "overwrite", false, "change what somebody else has set, such as the waypoint that the namespace uses")
	return cmd
}

func (o *waypointApply) run(ctx context.Context, client *waypoint.Client, out, errOut io.Writer) error {
	g, err := waypoint.Gateway(o.namespace, o.name, o.traffic)
	if err != nil {
		return err
	}
	// What would stop the command half way is found first.
	ns, err := client.Look(ctx, o.namespace)
	if err != nil {
		return err
	}
	if o.enroll && ns.Waypoint != "" && ns.Waypoint != o.name && !o.overwrite {
		return fmt.Errorf("enroll namespace %q: it uses waypoint %q: its label %s %w", o.namespace, ns.Waypoint, ports.LabelUseWaypoint, waypoint.ErrTaken)
	}
	p := newProgress(errOut)
	applied, action, err := client.Apply(ctx, g, o.overwrite)
	if err != nil {
		return err
	}
	at := waypoint.Of(applied)
	if _, err := fmt.Fprintf(out, "waypoint %s %s\n", at, action); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	if found, err := client.HasClass(ctx); err == nil && !found {
		p.step("Warning: GatewayClass %s does not exist, so nobody deploys the waypoint: is istiod running?", waypoint.Class)
	}
	if o.wait {
		if err := o.await(ctx, client, out, p); err != nil {
			return err
		}
	}
	if !o.enroll {
		return nil
	}
	if !ns.Ambient {
		p.step("Warning: namespace %s is not in the mesh; its waypoint is used once it is: kubectl label namespace %s %s=%s",
			o.namespace, o.namespace, ports.LabelDataplaneMode, ports.DataplaneModeAmbient)
	}
	changed, err := client.Enroll(ctx, o.namespace, o.name, o.overwrite)
	if err != nil {
		return err
	}
	verb := "labelled"
	if !changed {
		verb = "already labelled"
	}
	_, err = fmt.Fprintf(out, "namespace %s %s %s=%s\n", o.namespace, verb, ports.LabelUseWaypoint, o.name)
	return err
}

func (o *waypoints) await(ctx context.Context, client *waypoint.Client, out io.Writer, p *progress) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	w, err := client.Wait(ctx, o.namespace, o.name, func(state string) { p.step("waypoint %s/%s: %s", o.namespace, o.name, state) })
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "waypoint %s ready\n", w); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

func newWaypointGenerate() *cobra.Command {
	o := &waypoints{output: yamlEncoding}
	cmd := &cobra.Command{
		Use:     "generate",
		Short:   "Print what apply would make; needs no cluster",
		Example: "  ambit waypoint generate -n shop --for all > waypoint.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.output == textEncoding {
				return errors.New("generate prints yaml or json")
			}
			g, err := waypoint.Gateway(o.namespace, o.name, o.traffic)
			if err != nil {
				return err
			}
			manifest, err := waypoint.Manifest(g)
			if err != nil {
				return err
			}
			return printEncoded(cmd.OutOrStdout(), manifest, o.output)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace to name in it (default none)")
	o.registerGateway(f)
	f.VarP(&o.output, "output", "o", "yaml or json")
	return cmd
}

func newWaypointDelete() *cobra.Command {
	o := &waypoints{}
	all := false
	cmd := &cobra.Command{
		Use:   "delete [NAME ...]",
		Short: "Remove waypoints",
		Long: "delete removes the Gateways of waypoints, and with them what istiod deployed. It says who still names them: take these\n" +
			"labels away first, so that traffic leaves in order. Without its waypoint, traffic goes direct, past the policies there.",
		Example: "  kubectl label namespace shop istio.io/use-waypoint-\n" +
			"  ambit waypoint delete waypoint -n shop\n" +
			"  ambit waypoint delete --all -n shop",
		RunE: func(cmd *cobra.Command, names []string) error {
			if all == (len(names) > 0) {
				return errors.New("delete waypoints: want their names, or --all")
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			return o.delete(cmd.Context(), client, names, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	o.registerCluster(f)
	f.BoolVar(&all, "all", false, "remove all waypoints of the namespace")
	return cmd
}

// delete removes each of the names, all if there are none, and goes on after one that fails.
func (o *waypoints) delete(ctx context.Context, client *waypoint.Client, names []string, out, errOut io.Writer) error {
	if len(names) == 0 {
		list, err := client.List(ctx, o.namespace)
		if err != nil {
			return err
		}
		for _, w := range list {
			names = append(names, w.Name)
		}
		if len(names) == 0 {
			_, err := fmt.Fprintf(out, "No waypoints in namespace %s.\n", o.namespace)
			return err
		}
	}
	var errs []error
	for _, name := range names {
		if err := client.Delete(ctx, o.namespace, name); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, err := fmt.Fprintf(out, "waypoint %s/%s deleted\n", o.namespace, name); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
		users, err := client.Users(ctx, o.namespace, name)
		if err != nil {
			errs = append(errs, err)
		}
		for _, u := range users {
			fmt.Fprintf(errOut, "Warning: %s still names it: kubectl label %s %s-\n", u, u.Kubectl(), ports.LabelUseWaypoint)
		}
	}
	return errors.Join(errs...)
}
