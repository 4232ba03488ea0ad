// Package show is the demo: it sets a mesh up on a real Kubernetes, puts a running
// shop into it without a restart, and shows what that changed. tests/demo runs it
// for a person, tests/e2e as its first test.
//
// Every statement that it makes is checked against the cluster first and ends up in
// the table of checks; nothing is shown that was not measured in this run.
package show

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

const (
	// glance is how many requests make a capture or a comparison: about two seconds of traffic.
	glance = 500
)

// Check is one statement about this run.
type Check struct {
	What   string
	Passed bool
	Detail string
}

// demo is one run.
type demo struct {
	*stage.Stage
	checks []Check
}

// act is one part of the demo.
type act struct {
	title string
	play  func(context.Context) error
}

// Run plays the demo on a fresh cluster and returns its checks. An error means that it could not go on; the checks
// up to there are returned with it.
func Run(ctx context.Context, s *stage.Stage) ([]Check, error) {
	d := &demo{Stage: s}
	return d.play(ctx, append([]act{
		{"A Kubernetes with two nodes, and our images on it", d.startCluster},
		{"Install the mesh", d.installMesh},
	}, d.acts()...))
}

// Play is Run on a cluster that has the mesh already, with the shop not in it.
func Play(ctx context.Context, s *stage.Stage) ([]Check, error) {
	d := &demo{Stage: s}
	return d.play(ctx, d.acts())
}

func (d *demo) acts() []act {
	return []act{
		{"A shop opens, without the mesh", d.openShop},
		{"What one can read between the nodes", d.lookBefore},
		{"Put the shop into the mesh", d.label},
		{"What one can read between the nodes now", d.lookAfter},
		{"Who talks to whom", d.identities},
		{"Only checkout may charge", d.policy},
		{"What the mesh counted", d.metrics},
		{"A waypoint: layer 7 for the catalog", d.waypoint},
		{"A new catalog for a fifth of the visitors", d.split},
		{"The stock is for who has a token", d.token},
	}
}

func (d *demo) play(ctx context.Context, acts []act) ([]Check, error) {
	for _, a := range acts {
		d.Progress.Heading("%s", a.title)
		if err := a.play(ctx); err != nil {
			return d.checks, fmt.Errorf("%s: %w", a.title, err)
		}
	}
	return d.checks, nil
}

// check records a statement and prints it at once.
func (d *demo) check(passed bool, what, detail string, args ...any) {
	c := Check{what, passed, fmt.Sprintf(detail, args...)}
	d.checks = append(d.checks, c)
	d.Progress.Note("%s %s: %s", d.verdict(passed), what, c.Detail)
}

func (d *demo) verdict(passed bool) string {
	if passed {
		return d.Progress.Good("ok")
	}
	return d.Progress.Bad("FAILED")
}

// command prints what a person would type.
func (d *demo) command(format string, args ...any) {
	d.Progress.Note("$ %s", fmt.Sprintf(format, args...))
}

func (d *demo) startCluster(ctx context.Context) error {
	if err := d.Cluster.Down(ctx); err != nil {
		return err
	}
	return d.Up(ctx)
}

func (d *demo) installMesh(ctx context.Context) error {
	d.command("kubectl apply --server-side -f gateway-api/standard")
	if err := d.InstallGatewayAPI(ctx); err != nil {
		return err
	}
	d.command("ambit %s", strings.Join(d.InstallArguments(), " "))
	return d.Progress.Do("istiod, node agent and ztunnel are ready", func() error { return d.InstallMesh(ctx) })
}

func (d *demo) openShop(ctx context.Context) error {
	if err := d.Progress.Do("web, catalog, cart, checkout, payments, store and visitors run on both nodes", func() error { return d.DeployShop(ctx) }); err != nil {
		return err
	}
	r, err := d.MoreTraffic(ctx, glance)
	if err != nil {
		return err
	}
	d.check(r.Broken() == 0, "live traffic before the mesh", "%s", stage.Describe(r))
	return nil
}

// label is the heart of the demo: a running namespace joins under load.
func (d *demo) label(ctx context.Context) error {
	pods, err := d.Pods(ctx, stage.Namespace, "")
	if err != nil {
		return err
	}
	before := stage.Lives(pods)
	label := ports.LabelDataplaneMode + "=" + ports.DataplaneModeAmbient
	d.command("kubectl label namespace %s %s", stage.Namespace, label)
	begin := time.Now()
	if err := d.Label(ctx, stage.Namespace, label); err != nil {
		return err
	}
	if err := d.WaitCaptured(ctx, stage.Namespace, true); err != nil {
		return err
	}
	d.check(true, "every pod is in the mesh", "%d pods within %.1f s", len(before), time.Since(begin).Seconds())
	r, err := d.MoreTraffic(ctx, 2*glance)
	if err != nil {
		return errors.Join(err, fmt.Errorf("load: %s", stage.Describe(r)))
	}
	if pods, err = d.Pods(ctx, stage.Namespace, ""); err != nil {
		return err
	}
	same := true
	after := stage.Lives(pods)
	for name, life := range before {
		same = same && after[name] == life
	}
	d.check(same && len(after) == len(before), "no pod was restarted", "%d pods with the same uid and start time as before", len(after))
	d.check(r.Broken() == 0, "no request failed, no stream broke", "%s", stage.Describe(r))
	return nil
}

// WriteChecks prints the table at the end and says whether all passed.
func WriteChecks(s *stage.Stage, checks []Check) bool {
	all := len(checks) > 0
	w := tabwriter.NewWriter(s.Progress.Writer(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w)
	for _, c := range checks {
		verdict := s.Progress.Good("ok    ")
		if !c.Passed {
			all, verdict = false, s.Progress.Bad("FAILED")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", verdict, c.What, c.Detail)
	}
	_ = w.Flush() // the terminal went away
	return all
}
