package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/charts"
	"github.com/ambit-mesh/ambit/cmd/ambit/internal/release"
	"github.com/ambit-mesh/ambit/cmd/ambit/internal/rollout"
	"github.com/ambit-mesh/ambit/internal/kube"
)

// defaultTimeout leaves time to pull three images over a slow line; a warm install takes seconds.
const defaultTimeout = 5 * time.Minute

// onlyProfile is the one set of parts there is: the layer-4 mesh.
const onlyProfile = "ambient"

type install struct {
	cluster
	profile     string
	set, values []string
	dryRun      bool
	wait, adopt bool
	timeout     time.Duration
	output      output
}

func newInstall() *cobra.Command {
	o := &install{output: textOutput}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install the mesh, or upgrade it to this version and these values",
		Long: "install applies the charts that this tool carries as four Helm releases: " + strings.Join(releaseNames(), ", ") + ".\n" +
			"It may be run again at any time: what is there is upgraded to exactly the values given, and values of an earlier\n" +
			"run are not remembered. Values are those of the umbrella chart: global.… for all parts, or base.…, istiod.…, cni.…,\n" +
			"ztunnel.… for one.",
		Example: "  ambit install\n" +
			"  ambit install --set global.hub=registry.example.org/ambit --set istiod.replicaCount=2\n" +
			"  ambit install -f mesh.yaml --dry-run",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.StringVar(&o.profile, "profile", onlyProfile, "set of parts to install; ambient is the only one")
	f.StringArrayVar(&o.set, "set", nil, "set a chart value, as key=value (may be repeated)")
	f.StringArrayVarP(&o.values, "values", "f", nil, "file of chart values (may be repeated)")
	f.BoolVar(&o.dryRun, "dry-run", false, "print what would be applied; needs no cluster")
	f.BoolVar(&o.wait, "wait", true, "wait until all parts are ready")
	f.DurationVar(&o.timeout, "timeout", defaultTimeout, "how long to wait")
	f.BoolVar(&o.adopt, "adopt", false, "take over releases and objects that were made by others, such as Istio's charts")
	f.VarP(&o.output, "output", "o", "text or json")
	return cmd
}

func releaseNames() []string {
	var names []string
	for _, part := range charts.Parts() {
		names = append(names, release.Name(part))
	}
	return names
}

func (o *install) run(ctx context.Context, out, errOut io.Writer) error {
	if o.profile != onlyProfile {
		return fmt.Errorf("unknown profile %q: want %s", o.profile, onlyProfile)
	}
	values, err := release.ParseValues(o.values, o.set)
	if err != nil {
		return err
	}
	releases, err := o.releases(errOut)
	if err != nil {
		return err
	}
	// Every chart is rendered first, so that a bad value stops the command before it has changed anything.
	rendered, err := o.render(ctx, releases, values)
	if err != nil {
		return err
	}
	if o.dryRun {
		return printManifests(out, rendered, o.output)
	}
	p := newProgress(errOut)
	done, err := o.apply(ctx, releases, values, p)
	if err != nil {
		return err
	}
	return o.report(out, done, p)
}

func (o *install) render(ctx context.Context, releases *release.Client, values release.Values) ([]release.Outcome, error) {
	var rendered []release.Outcome
	for _, part := range charts.Parts() {
		r, err := releases.Render(ctx, part, values.For(part, o.namespace))
		if err != nil {
			return nil, err
		}
		rendered = append(rendered, r)
	}
	return rendered, nil
}

// apply installs the parts in order. istiod is ready before the parts that need it are applied; these wait together,
// because a proxy and its node's agent become ready with each other.
func (o *install) apply(ctx context.Context, releases *release.Client, values release.Values, p *progress) ([]release.Outcome, error) {
	clients, err := kube.New(kube.Config{Kubeconfig: o.kubeconfig, Context: o.context, UserAgent: "ambit"})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if err := ensureNamespace(ctx, clients.Kube, o.namespace, p); err != nil {
		return nil, err
	}
	var done []release.Outcome
	var nodes []rollout.Workload
	for _, part := range charts.Parts() {
		p.step("%s: applying", release.Name(part))
		r, err := releases.Apply(ctx, part, values.For(part, o.namespace), o.adopt)
		if err != nil {
			return nil, err
		}
		p.step("%s: %s, revision %d", r.Name, r.Action, r.Revision)
		done = append(done, r)
		workloads, err := workloadsOf(r.Manifest)
		if err != nil {
			return nil, err
		}
		if part != "istiod" {
			nodes = append(nodes, workloads...)
			continue
		}
		if err := o.await(ctx, clients.Kube, workloads, p); err != nil {
			return nil, err
		}
	}
	return done, o.await(ctx, clients.Kube, nodes, p)
}

func (o *install) await(ctx context.Context, client kubernetes.Interface, workloads []rollout.Workload, p *progress) error {
	if !o.wait {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range workloads {
		g.Go(func() error {
			return rollout.Wait(ctx, client, w, func(s rollout.Status) { p.step("%s: %s", w, s) })
		})
	}
	return g.Wait()
}

func (o *install) report(out io.Writer, done []release.Outcome, p *progress) error {
	if o.output == jsonOutput {
		return printJSON(out, map[string]any{"namespace": o.namespace, "releases": done, "seconds": p.elapsed().Seconds()})
	}
	_, err := fmt.Fprintf(out, "The mesh is installed in %s. Put a namespace into it, without restarting its pods:\n"+
		"  kubectl label namespace NAME istio.io/dataplane-mode=ambient\n", o.namespace)
	return err
}

// ensureNamespace makes the namespace if it is missing. Its node parts enter other network namespaces, which the pod
// security level privileged allows and no other does.
func ensureNamespace(ctx context.Context, client kubernetes.Interface, name string, p *progress) error {
	_, err := client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		return nil
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("get namespace %q: %w", name, err)
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name:   name,
		Labels: map[string]string{"pod-security.kubernetes.io/enforce": "privileged"},
	}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create namespace %q: %w", name, err)
	}
	p.step("namespace %s: created", name)
	return nil
}
