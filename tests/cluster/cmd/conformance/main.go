// Command conformance runs the Gateway API's conformance suite against the mesh on
// the test cluster: it starts the cluster, builds the suite's images without a
// registry, installs the mesh, and runs the suite (tests/conformance, a module of
// its own) inside the cluster's network namespace. `make conformance` calls it, as
// root. It judges by the suite's verdicts; with --mesh=false it wants all mesh
// tests but one to fail, which shows that they test something.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/tests/cluster"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

// options are the flags.
type options struct {
	set, run, report string
	mesh, keep       bool
	successes        int
	parallel         int
	consistency      time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

func command() *cobra.Command {
	o := options{}
	cmd := &cobra.Command{
		Use:   "conformance",
		Short: "Run the Gateway API conformance suite on the test cluster",
		Example: `  conformance                                     every profile, report in tests/conformance/report.yaml
  conformance --set mesh --report ""              the mesh profiles
  conformance --set mesh --mesh=false             the same without the mesh: only MeshBasic may pass
  conformance --run HTTPRouteWeight --keep        one test, and leave the suite's objects in place`,
		Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.main(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&o.set, "set", "all", "profiles: mesh, gateway or all")
	f.BoolVar(&o.mesh, "mesh", true, "install the mesh and enrol the suite's pods")
	f.StringVar(&o.run, "run", "", "run only this test")
	f.BoolVar(&o.keep, "keep", false, "leave the suite's namespaces when it is done")
	f.StringVar(&o.report, "report", filepath.Join("tests", "conformance", "report.yaml"), "file for the suite's report; empty writes none")
	f.IntVar(&o.successes, "successes", 15, "how many answers in a row must be right")
	f.DurationVar(&o.consistency, "consistency", 30*time.Second, "how long that may take; 30 s is the most that the suite allows")
	f.IntVar(&o.parallel, "parallel", 16, "tests at once")
	return cmd
}

func (o *options) main(ctx context.Context) error {
	if !o.mesh || o.run != "" {
		o.report = "" // it would not be a report of the mesh
	}
	source, err := stage.SourceRoot()
	if err != nil {
		return err
	}
	progress := cluster.NewProgress(os.Stderr)
	s, err := stage.New(source, progress)
	if err != nil {
		return err
	}
	r := &runner{options: o, stage: s, progress: progress, source: source, out: filepath.Join(source, "out", "conformance")}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"the suite and its images", r.build},
		{"the cluster", r.up},
		{"the suite's images on both nodes", r.load},
		{"Gateway API", r.gatewayAPI},
		{"remove what an earlier run left", r.removeNamespaces},
		{"the mesh", r.install},
		{"addresses for gateways", r.route},
	} {
		if err := progress.Do(step.name, func() error { return step.do(ctx) }); err != nil {
			return err
		}
	}
	results, failed := r.suite(ctx)
	if !o.keep {
		if err := progress.Do("remove the suite's namespaces", func() error { return r.removeNamespaces(ctx) }); err != nil {
			return err
		}
	}
	return r.judge(results, failed)
}

// judge compares the verdicts with what they must be.
func (r *runner) judge(results map[string]string, failed error) error {
	by := map[string][]string{}
	for name, verdict := range results {
		by[verdict] = append(by[verdict], name)
	}
	r.progress.Heading("%d passed, %d failed, %d not claimed; all output is in %s", len(by["pass"]), len(by["fail"]), len(by["skip"]), r.log())
	if len(by["pass"])+len(by["fail"]) == 0 {
		return errors.Join(errors.New("no test was run"), failed)
	}
	if r.options.mesh {
		return failed
	}
	if len(by["pass"]) != 1 || by["pass"][0] != "MeshBasic" {
		return fmt.Errorf("without the mesh exactly MeshBasic passes, but these did: %v", by["pass"])
	}
	return nil
}
