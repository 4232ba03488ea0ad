package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/cni-plugin/plugin"
	"github.com/ambit-mesh/ambit/internal/telemetry"
)

func daemonSet() *appsv1.DaemonSet {
	return &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio-cni-node"}}
}

func TestOwnerIsGoneOnlyWhenThatIsCertain(t *testing.T) {
	c := Config{Namespace: "istio-system", DaemonSet: "istio-cni-node"}
	forbidden := func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "daemonsets"}, "istio-cni-node", errors.New("no such role"))
	}
	for _, tc := range []struct {
		name   string
		there  bool
		change func(t *testing.T, k *fake.Clientset, o *owner)
		want   bool
	}{
		{"an upgrade", true, func(*testing.T, *fake.Clientset, *owner) {}, false},
		{"never there", false, func(*testing.T, *fake.Clientset, *owner) {}, true},
		{"the API server refuses to say", true, func(_ *testing.T, k *fake.Clientset, _ *owner) {
			k.PrependReactor("get", "daemonsets", forbidden)
		}, false},
		{"deleted, and the permission with it", true, func(t *testing.T, k *fake.Clientset, o *owner) {
			if err := k.AppsV1().DaemonSets("istio-system").Delete(t.Context(), "istio-cni-node", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the watch to show it", o.deleted.Load)
			k.PrependReactor("get", "daemonsets", forbidden)
		}, true},
		{"being deleted", true, func(t *testing.T, k *fake.Clientset, _ *owner) {
			d := daemonSet()
			d.DeletionTimestamp = &metav1.Time{}
			*d.DeletionTimestamp = metav1.Now()
			if _, err := k.AppsV1().DaemonSets("istio-system").Update(t.Context(), d, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"made anew", true, func(t *testing.T, k *fake.Clientset, o *owner) {
			ds := k.AppsV1().DaemonSets("istio-system")
			if err := ds.Delete(t.Context(), "istio-cni-node", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the watch to show it", o.deleted.Load)
			if _, err := ds.Create(t.Context(), daemonSet(), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the watch to show the new one", func() bool { return !o.deleted.Load() })
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := fake.NewClientset()
			if tc.there {
				if err := k.Tracker().Add(daemonSet()); err != nil {
					t.Fatal(err)
				}
			}
			o := newOwner(k, c, slog.New(slog.DiscardHandler))
			ctx, cancel := context.WithCancel(t.Context())
			var done sync.WaitGroup
			done.Go(func() {
				if err := o.run(ctx); err != nil {
					t.Error(err)
				}
			})
			waitFor(t, "the watch to start", func() bool {
				for _, a := range k.Actions() {
					if a.Matches("watch", "daemonsets") {
						return true
					}
				}
				return false
			})
			tc.change(t, k, o)
			cancel()
			done.Wait()
			if got := o.gone(t.Context()); got != tc.want {
				t.Errorf("gone = %v, want %v", got, tc.want)
			}
		})
	}
}

// TestLeave: what an agent leaves on the node depends on whether another one comes.
func TestLeave(t *testing.T) {
	for _, gone := range []bool{false, true} {
		w := newWorld(t)
		p := newTestPod(t, w.dir, "10.244.1.60")
		w.namespace("shop", "ambient")
		w.pod("web", p.uid, p.ip.String())
		a, stop := w.start()
		w.proxy()
		w.waitAnnotation("web", "enabled")
		if !gone {
			if err := w.kube.Tracker().Add(daemonSet()); err != nil {
				t.Fatal(err)
			}
		}
		c := a.c
		c.DaemonSet = "istio-cni-node"
		c.CNIBinDir, c.CNIConfDir, c.PluginBinary = filepath.Join(w.dir, "bin"), filepath.Join(w.dir, "net.d"), filepath.Join(w.dir, "image")
		for _, d := range []string{c.CNIBinDir, c.CNIConfDir} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		conf := filepath.Join(c.CNIConfDir, "10-x.conflist")
		for f, content := range map[string]string{c.PluginBinary: "binary", conf: `{"name":"n","plugins":[{"type":"ptp"}]}`} {
			if err := os.WriteFile(f, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		log := slog.New(slog.DiscardHandler)
		r := telemetry.NewReadiness()
		ap := &app{c: c, log: log, kube: w.kube, metrics: a.metrics, pluginOK: r.Condition("cni-plugin")}
		in := newInstaller(c, log, ap.installed)
		if err := in.Ensure(); err != nil {
			t.Fatal(err)
		}
		stop()
		if err := ap.leave(t.Context(), newOwner(w.kube, c, log), in, a); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(conf)
		if err != nil {
			t.Fatal(err)
		}
		if has := strings.Contains(string(b), plugin.Type); has == gone {
			t.Errorf("DaemonSet gone %v: plugin in configuration %v", gone, has)
		}
		if has := w.capture.has(p.uid); has == gone {
			t.Errorf("DaemonSet gone %v: pod captured %v", gone, has)
		}
		if w.capture.isRemoved() != gone {
			t.Errorf("DaemonSet gone %v: capture taken off the node %v", gone, !gone)
		}
		want := "enabled"
		if gone {
			want = ""
		}
		// The cache of a stopped agent is as old as its end; the annotation is removed from what it last saw.
		if got := w.annotation("web"); got != want {
			t.Errorf("DaemonSet gone %v: annotation %q, want %q", gone, got, want)
		}
	}
}

func TestReadinessNamesAMissingDirectory(t *testing.T) {
	r := telemetry.NewReadiness()
	ap := &app{metrics: newWorld(t).metrics(), pluginOK: r.Condition("cni-plugin")}
	c := Config{CNIBinDir: "/does/not/exist", CNIConfDir: "/neither"}
	in := newInstaller(c, slog.New(slog.DiscardHandler), ap.installed)
	ap.installed(in.Ensure())
	if m := strings.Join(r.Missing(), "\n"); !strings.Contains(m, "cni-plugin") || !strings.Contains(m, "/does/not/exist") {
		t.Errorf("readiness says %q", m)
	}
}
