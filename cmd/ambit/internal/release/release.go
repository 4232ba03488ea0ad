// Package release puts the mesh's charts into a cluster as Helm releases, and
// takes them out. The command-line tool calls it.
//
// What always holds: a release is installed or upgraded to exactly the values
// given, values of an earlier run are not remembered; running the same twice is
// harmless; a release of the same name that was made from other charts (Istio's)
// is left alone unless the caller asks for taking it over. It does not wait for
// pods: see package rollout.
package release

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chartcommon "helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	helmcli "helm.sh/helm/v4/pkg/cli"
	"helm.sh/helm/v4/pkg/kube"
	helm "helm.sh/helm/v4/pkg/release"
	"helm.sh/helm/v4/pkg/release/common"
	helmv1 "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/resource"

	"github.com/ambit-mesh/ambit/charts"
)

const (
	// fieldManager is our name in the managed fields of what we apply.
	fieldManager = "ambit"
	// maxHistory is how many revisions of a release are kept for `helm rollback`.
	maxHistory = 10
	// abandonedAfter is the age at which an operation that never ended counts as killed. Applying takes seconds.
	abandonedAfter = 2 * time.Minute
	// offlineKubeVersion stands in for the cluster's version while rendering without one: the newest that is tested.
	offlineKubeVersion = "v1.34.4"
)

// ErrForeign is the error of a release that exists and was not made from our charts.
var ErrForeign = errors.New("made from another project's chart")

// ErrBusy is the error of a release that another operation is working on.
var ErrBusy = errors.New("another operation is in progress")

// Config says which cluster and namespace to work in.
type Config struct {
	Kubeconfig, Context string
	Namespace           string
	Log                 *slog.Logger
}

// Client works on the releases of one namespace.
type Client struct {
	namespace string
	config    *action.Configuration
}

// Outcome is what became of one release.
type Outcome struct {
	Name     string `json:"name"`
	Chart    string `json:"chart"`
	Revision int    `json:"revision"`
	Action   string `json:"action"`
	Manifest string `json:"-"`
}

// Name returns the name of the release made from a chart: Istio's names, so that other tools find them.
func Name(part string) string {
	switch part {
	case "base":
		return "istio-base"
	case "cni":
		return "istio-cni"
	default:
		return part
	}
}

// New returns a client. It does not contact the cluster.
func New(c Config) (*Client, error) {
	settings := helmcli.New()
	if c.Kubeconfig != "" {
		settings.KubeConfig = c.Kubeconfig
	}
	settings.KubeContext = c.Context
	settings.SetNamespace(c.Namespace)
	kube.ManagedFieldsManager = fieldManager
	config := action.NewConfiguration(action.ConfigurationSetLogger(c.Log.Handler()))
	if err := config.Init(settings.RESTClientGetter(), c.Namespace, "secret"); err != nil {
		return nil, fmt.Errorf("set up Helm: %w", err)
	}
	return &Client{namespace: c.Namespace, config: config}, nil
}

// Apply installs the chart of a part, or upgrades its release to the chart and the values. With adopt, a release
// and objects that others made are taken over.
func (c *Client) Apply(ctx context.Context, part string, values map[string]any, adopt bool) (Outcome, error) {
	ch, err := charts.Load(part)
	if err != nil {
		return Outcome{}, err
	}
	name := Name(part)
	last, err := c.last(name)
	if err != nil {
		return Outcome{}, err
	}
	if last == nil || last.Info.Status == common.StatusUninstalled {
		return c.install(ctx, name, ch, values, adopt)
	}
	if home := last.Chart.Metadata.Home; home != ch.Metadata.Home && !adopt {
		return Outcome{}, fmt.Errorf("upgrade release %q: %w: chart %s %s of %q", name, ErrForeign,
			last.Chart.Metadata.Name, last.Chart.Metadata.Version, home)
	}
	if err := c.unlock(last); err != nil {
		return Outcome{}, err
	}
	return c.upgrade(ctx, name, ch, values, adopt)
}

func (c *Client) install(ctx context.Context, name string, ch *chart.Chart, values map[string]any, adopt bool) (Outcome, error) {
	a := action.NewInstall(c.config)
	a.ReleaseName, a.Namespace = name, c.namespace
	a.Replace = true // an uninstalled release whose history was kept
	a.WaitStrategy = kube.HookOnlyStrategy
	a.ServerSideApply, a.ForceConflicts = true, true
	a.TakeOwnership = adopt
	r, err := a.RunWithContext(ctx, ch, values)
	if err != nil {
		return Outcome{}, fmt.Errorf("install release %q: %w", name, err)
	}
	return outcome(r, "installed")
}

func (c *Client) upgrade(ctx context.Context, name string, ch *chart.Chart, values map[string]any, adopt bool) (Outcome, error) {
	a := action.NewUpgrade(c.config)
	a.Namespace = c.namespace
	a.Install = true
	a.ResetValues = true
	a.WaitStrategy = kube.HookOnlyStrategy
	a.ServerSideApply, a.ForceConflicts = "true", true
	a.TakeOwnership = adopt
	a.MaxHistory = maxHistory
	r, err := a.RunWithContext(ctx, name, ch, values)
	if err != nil {
		return Outcome{}, fmt.Errorf("upgrade release %q: %w", name, err)
	}
	return outcome(r, "upgraded")
}

// Render returns what Apply would send, without a cluster.
func (c *Client) Render(ctx context.Context, part string, values map[string]any) (Outcome, error) {
	ch, err := charts.Load(part)
	if err != nil {
		return Outcome{}, err
	}
	version, err := chartcommon.ParseKubeVersion(offlineKubeVersion)
	if err != nil {
		return Outcome{}, fmt.Errorf("parse version %q: %w", offlineKubeVersion, err)
	}
	offline := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	a := action.NewInstall(offline)
	a.ReleaseName, a.Namespace = Name(part), c.namespace
	a.DryRunStrategy, a.KubeVersion = action.DryRunClient, version
	a.WaitStrategy = kube.HookOnlyStrategy
	r, err := a.RunWithContext(ctx, ch, values)
	if err != nil {
		return Outcome{}, fmt.Errorf("render release %q: %w", a.ReleaseName, err)
	}
	return outcome(r, "rendered")
}

// Remove uninstalls the release of a part and waits until its objects are gone, or the time is over. It reports
// whether there was one.
func (c *Client) Remove(part string, timeout time.Duration, adopt bool) (bool, error) {
	name := Name(part)
	last, err := c.last(name)
	if err != nil || last == nil {
		return false, err
	}
	ours, err := charts.Load(part)
	if err != nil {
		return false, err
	}
	if home := last.Chart.Metadata.Home; home != ours.Metadata.Home && !adopt {
		return false, fmt.Errorf("uninstall release %q: %w: %q", name, ErrForeign, home)
	}
	if err := c.stopWorkloads(last, timeout); err != nil {
		return false, err
	}
	a := action.NewUninstall(c.config)
	a.IgnoreNotFound = true
	a.Timeout = timeout
	a.WaitStrategy = kube.StatusWatcherStrategy
	if _, err := a.Run(name); err != nil {
		return false, fmt.Errorf("uninstall release %q: %w", name, err)
	}
	return true, nil
}

// stopWorkloads deletes what has pods and waits until these are gone, before Helm deletes everything at once: the node
// agent takes its plugin off the node when it is removed for good, and needs its rights until then.
func (c *Client) stopWorkloads(r *helmv1.Release, timeout time.Duration) error {
	objects, err := c.config.KubeClient.Build(strings.NewReader(r.Manifest), false)
	if err != nil {
		return fmt.Errorf("read manifest of release %q: %w", r.Name, err)
	}
	workloads := objects.Filter(func(o *resource.Info) bool {
		kind := o.Mapping.GroupVersionKind.Kind
		return kind == "Deployment" || kind == "DaemonSet"
	})
	if len(workloads) == 0 {
		return nil
	}
	// In the foreground: the object stays until its pods are gone, so that waiting for it is waiting for them.
	if _, errs := c.config.KubeClient.Delete(workloads, metav1.DeletePropagationForeground); len(errs) > 0 {
		return fmt.Errorf("stop workloads of release %q: %w", r.Name, errors.Join(errs...))
	}
	waiter, err := c.config.KubeClient.GetWaiter(kube.StatusWatcherStrategy)
	if err != nil {
		return fmt.Errorf("wait for workloads of release %q: %w", r.Name, err)
	}
	if err := waiter.WaitForDelete(workloads, timeout); err != nil {
		return fmt.Errorf("wait for workloads of release %q to go: %w", r.Name, err)
	}
	return nil
}

// last returns the newest revision of a release, or nil.
func (c *Client) last(name string) (*helmv1.Release, error) {
	found, err := c.config.Releases.Last(name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up release %q: %w", name, err)
	}
	return asV1(found)
}

// unlock marks a release failed whose last operation never ended, so that the next may begin. A young one is
// perhaps being worked on by somebody else.
func (c *Client) unlock(last *helmv1.Release) error {
	if !last.Info.Status.IsPending() {
		return nil
	}
	since := time.Since(last.Info.LastDeployed).Round(time.Second)
	if since < abandonedAfter {
		return fmt.Errorf("upgrade release %q: %w for %s", last.Name, ErrBusy, since)
	}
	last.SetStatus(common.StatusFailed, "the operation was abandoned")
	if err := c.config.Releases.Update(last); err != nil {
		return fmt.Errorf("unlock release %q: %w", last.Name, err)
	}
	return nil
}

func outcome(r helm.Releaser, what string) (Outcome, error) {
	v1, err := asV1(r)
	if err != nil {
		return Outcome{}, err
	}
	return Outcome{
		Name:     v1.Name,
		Chart:    v1.Chart.Metadata.Name + "-" + v1.Chart.Metadata.Version,
		Revision: v1.Version,
		Action:   what,
		Manifest: v1.Manifest,
	}, nil
}

func asV1(r helm.Releaser) (*helmv1.Release, error) {
	switch r := r.(type) {
	case *helmv1.Release:
		return r, nil
	case helmv1.Release:
		return &r, nil
	}
	return nil, fmt.Errorf("read release: unknown format %T", r)
}
