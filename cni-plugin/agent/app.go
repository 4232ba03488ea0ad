package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/ambit-mesh/ambit/cni-plugin/install"
	"github.com/ambit-mesh/ambit/cni-plugin/plugin"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/choose"
	"github.com/ambit-mesh/ambit/internal/kube"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/version"
)

const (
	// probeEvery is the pause before a node on which capture was impossible is tried again: someone may load a module.
	probeEvery = 10 * time.Second
	// uninstallTimeout bounds the clean-up when the mesh is taken off; the kubelet gives 30 s in all.
	uninstallTimeout = 15 * time.Second
	// component is the source of Events.
	component = "istio-cni-node"
	// pluginLog is the plugin's log on the node, beside its socket.
	pluginLog = "/var/run/istio-cni/plugin.log"
)

// Run is the whole process: servers for people, the agent, the installer of the plugin, and the decision at the
// end whether the plugin stays. Nothing stands in a pod's way before the agent can answer for it: the plugin is
// installed last.
func Run(ctx context.Context, c Config, logging *telemetry.Logging) error {
	if err := c.Validate(); err != nil {
		return err
	}
	log := logging.Root()
	log.Info("starting node agent", "version", version.String(), "config", fmt.Sprintf("%+v", c))
	kube.LogTo(logging.Logger("kube"))
	clients, err := kube.New(kube.Config{Kubeconfig: c.Kubeconfig, UserAgent: component})
	if err != nil {
		return err
	}
	reg, ready := telemetry.NewRegistry(), telemetry.NewReadiness()
	ap := &app{
		c: c, log: log, kube: clients.Kube, metrics: NewMetrics(reg),
		redirectOK: ready.Condition("redirect"), kubeOK: ready.Condition("kubernetes"), pluginOK: ready.Condition("cni-plugin"),
		synced: make(chan struct{}),
	}
	ap.redirectOK.Set(errors.New("not probed yet"))
	ap.pluginOK.Set(errors.New("installed when pods and namespaces have been read"))
	g, ctx := errgroup.WithContext(ctx)
	mux := http.NewServeMux()
	mux.Handle("/", telemetry.MetricsHandler(reg))
	mux.Handle("/logging", telemetry.LocalOnly(logging))
	g.Go(func() error { return telemetry.Serve(ctx, c.ReadinessAddr, ready.Handler()) })
	g.Go(func() error { return telemetry.Serve(ctx, c.MetricsAddr, mux) })
	g.Go(func() error { return ap.run(ctx) })
	return g.Wait()
}

// app holds what Run's goroutines share.
type app struct {
	c                            Config
	log                          *slog.Logger
	kube                         kubernetes.Interface
	metrics                      *Metrics
	redirectOK, kubeOK, pluginOK *telemetry.Condition
	once                         sync.Once
	synced                       chan struct{} // closed at the first sync
}

func (ap *app) run(ctx context.Context) error {
	r := ap.probe(ctx)
	if r == nil {
		return nil
	}
	defer func() {
		if err := r.Close(); err != nil {
			ap.log.Warn("redirect not closed", "error", err)
		}
	}()
	b := record.NewBroadcaster()
	defer b.Shutdown()
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: ap.kube.CoreV1().Events("")})
	a := New(ap.c, Deps{
		Kube: ap.kube, Redirector: r, Metrics: ap.metrics, Log: ap.log,
		Events: b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component, Host: ap.c.NodeName}),
		Synced: ap.onSync,
	})
	own := newOwner(ap.kube, ap.c, ap.log)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.Run(gctx) })
	g.Go(func() error { return own.run(gctx) })
	in := newInstaller(ap.c, ap.log, ap.installed)
	g.Go(func() error {
		select {
		case <-gctx.Done():
			return nil
		case <-ap.synced:
			return in.Run(gctx)
		}
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return ap.leave(context.WithoutCancel(ctx), own, in, a)
}

// leave decides at the end. An agent that is upgraded or restarted leaves plugin and capture in place: pods that
// start meanwhile wait for the next agent and none escapes. When the DaemonSet is gone no next one comes:
// plugin and capture go, or no pod could start any more.
func (ap *app) leave(ctx context.Context, own *owner, in *install.Installer, a *Agent) error {
	ctx, cancel := context.WithTimeout(ctx, uninstallTimeout)
	defer cancel()
	if !own.gone(ctx) {
		ap.log.Info("agent stops; CNI plugin and capture stay for the next one")
		return nil
	}
	ap.log.Info("DaemonSet is gone: CNI plugin and capture are removed", "daemonset", ap.c.DaemonSet)
	return errors.Join(in.Uninstall(), a.ReleaseAll(ctx))
}

// probe finds a way to capture, for as long as it takes; nil when ctx ended.
func (ap *app) probe(ctx context.Context) redirect.Redirector {
	for {
		r, err := choose.Probe(ctx, redirect.Config{
			BPFDir: ap.c.BPFDir, StateDir: ap.c.StateDir, CgroupRoot: ap.c.CgroupRoot, HostProc: ap.c.HostProc,
			KubeletCgroups: ap.c.KubeletCgroups, Mode: ap.c.RedirectMode, Log: ap.log.With("scope", "redirect"),
		})
		ap.redirectOK.Set(err)
		if err == nil {
			if d := r.Degraded(); d != nil {
				ap.log.Warn("capture works but the node lacks something", "redirect", r.Name(), "error", d)
			}
			return r
		}
		ap.log.Error("this node cannot capture pods' traffic; tried again", "error", err, "every", probeEvery)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(probeEvery):
		}
	}
}

func (ap *app) onSync(err error) {
	ap.kubeOK.Set(err)
	if err == nil {
		ap.once.Do(func() { close(ap.synced) })
	}
}

func (ap *app) installed(err error) {
	ap.pluginOK.Set(err)
	ok := 0.0
	if err == nil {
		ok = 1
	}
	ap.metrics.installs.Set(ok)
}

// Uninstall takes the plugin off the node, for an administrator whose node the DaemonSet no longer reaches.
func Uninstall(c Config, log *slog.Logger) error {
	return newInstaller(c, log, func(error) {}).Uninstall()
}

func newInstaller(c Config, log *slog.Logger, report func(error)) *install.Installer {
	return install.New(install.Config{
		Binary: c.PluginBinary, BinDir: c.CNIBinDir, ConfDir: c.CNIConfDir, ConfName: c.CNIConfName,
		Entry: plugin.Config{
			Type: plugin.Type, AgentSocket: c.PluginSocket, ExcludeNamespaces: c.excluded(), LogFile: pluginLog,
		},
		Report: report, Log: log.With("scope", "install"),
	})
}

// owner watches the DaemonSet that runs this agent. The watch, because its permission is gone with the chart by
// the time the agent is told to stop, and a question would be refused.
type owner struct {
	kube            kubernetes.Interface
	namespace, name string
	log             *slog.Logger
	deleted         atomic.Bool
}

func newOwner(k kubernetes.Interface, c Config, log *slog.Logger) *owner {
	return &owner{kube: k, namespace: c.Namespace, name: c.DaemonSet, log: log}
}

func (o *owner) run(ctx context.Context) error {
	f := kube.Informers(o.kube, informers.WithNamespace(o.namespace), informers.WithTweakListOptions(func(l *metav1.ListOptions) {
		l.FieldSelector = fields.OneTermEqualSelector("metadata.name", o.name).String()
	}))
	see := func(obj any) {
		if d, ok := obj.(*appsv1.DaemonSet); ok {
			o.deleted.Store(d.DeletionTimestamp != nil)
		}
	}
	if _, err := f.Apps().V1().DaemonSets().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: see, UpdateFunc: func(_, n any) { see(n) }, DeleteFunc: func(any) { o.deleted.Store(true) },
	}); err != nil {
		return fmt.Errorf("watch DaemonSet %q: %w", o.name, err)
	}
	f.Start(ctx.Done())
	<-ctx.Done()
	f.Shutdown()
	return nil
}

// gone is true only when the DaemonSet is certainly gone.
func (o *owner) gone(ctx context.Context) bool {
	if o.deleted.Load() {
		return true
	}
	d, err := o.kube.AppsV1().DaemonSets(o.namespace).Get(ctx, o.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true
	case err != nil:
		o.log.Warn("whether the DaemonSet still exists is not known", "daemonset", o.name, "error", err)
		return false
	}
	return d.DeletionTimestamp != nil
}
