package cli

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/cmd/ambit/internal/waypoint"
)

type waypointList struct {
	waypoints
	all bool
}

func (o *waypointList) register(cmd *cobra.Command) {
	f := cmd.Flags()
	o.registerCluster(f)
	f.BoolVarP(&o.all, "all-namespaces", "A", false, "of all namespaces")
	f.VarP(&o.output, "output", "o", "text, json or yaml")
}

func newWaypointList() *cobra.Command {
	o := &waypointList{waypoints: waypoints{output: textEncoding}}
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List waypoints",
		Example: "  ambit waypoint list -n shop\n  ambit waypoint list -A -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			found, err := client.List(cmd.Context(), o.scope())
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), found, []column{
				{"TRAFFIC TYPE", func(w waypoint.Waypoint) string { return w.For }},
				{"PROGRAMMED", func(w waypoint.Waypoint) string { return w.Programmed }},
			})
		},
	}
	o.register(cmd)
	return cmd
}

func newWaypointStatus() *cobra.Command {
	o := &waypointList{waypoints: waypoints{output: textEncoding}}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether waypoints work, and if not, why",
		Long: "status shows what istiod says of waypoints. By default it waits until they work, and fails if they do not in time;\n" +
			"--wait=false shows how they are now.",
		Example: "  ambit waypoint status -n shop\n  ambit waypoint status -A --wait=false",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			return o.status(cmd.Context(), client, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	cmd.Flags().StringVar(&o.name, "name", "", "only the waypoint of this name")
	o.registerWait(cmd.Flags(), true, "wait until they work")
	return cmd
}

// scope is the namespace to list, empty for all.
func (o *waypointList) scope() string {
	if o.all {
		return ""
	}
	return o.namespace
}

// status prints how waypoints stand when the wait is over, also if it was in vain.
func (o *waypointList) status(ctx context.Context, client *waypoint.Client, out, errOut io.Writer) error {
	found, err := client.List(ctx, o.scope())
	if err != nil {
		return err
	}
	var chosen []waypoint.Waypoint
	for _, w := range found {
		if o.name == "" || o.name == w.Name {
			chosen = append(chosen, w)
		}
	}
	if o.name != "" && len(chosen) == 0 {
		return fmt.Errorf("no waypoint %q in namespace %s", o.name, o.namespace)
	}
	var failed error
	if o.wait {
		ctx, cancel := context.WithTimeout(ctx, o.timeout)
		defer cancel()
		p := newProgress(errOut)
		for i, w := range chosen {
			if w.Ready() {
				continue
			}
			now, err := client.Wait(ctx, w.Namespace, w.Name, func(state string) { p.step("waypoint %s: %s", w, state) })
			chosen[i] = now
			if err != nil && failed == nil {
				failed = err
			}
		}
	}
	if err := o.print(out, chosen, []column{
		{"PROGRAMMED", func(w waypoint.Waypoint) string { return w.Programmed }},
		{"REASON", func(w waypoint.Waypoint) string { return w.Reason }},
		{"MESSAGE", func(w waypoint.Waypoint) string { return w.Message }},
	}); err != nil {
		return err
	}
	return failed
}

// column is one of a table.
type column struct {
	title string
	value func(waypoint.Waypoint) string
}

func (o *waypointList) print(out io.Writer, found []waypoint.Waypoint, columns []column) error {
	if o.output != textEncoding {
		if found == nil {
			found = []waypoint.Waypoint{}
		}
		return printEncoded(out, found, o.output)
	}
	if len(found) == 0 {
		_, err := fmt.Fprintln(out, "No waypoints found.")
		return err
	}
	columns = append([]column{{"NAME", func(w waypoint.Waypoint) string { return w.Name }}}, columns...)
	if o.all {
		columns = append([]column{{"NAMESPACE", func(w waypoint.Waypoint) string { return w.Namespace }}}, columns...)
	}
	const gap = 3 // spaces between columns
	w := tabwriter.NewWriter(out, 0, 0, gap, ' ', 0)
	row := func(cell func(column) string) {
		for i, c := range columns {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, cell(c))
		}
		fmt.Fprintln(w)
	}
	row(func(c column) string { return c.title })
	for _, one := range found {
		row(func(c column) string { return c.value(one) })
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

func printEncoded(out io.Writer, v any, format encoding) error {
	if format == jsonEncoding {
		return printJSON(out, v)
	}
	b, err := yaml.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	if _, err := out.Write(b); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
