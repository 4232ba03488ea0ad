package status

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/kube"
)

const (
	// labelConfig marks what istiod distributes, as Istio does.
	labelConfig = "istio.io/config"
	// Pauses between attempts for one namespace: the API server may be restarting.
	rootRetryMin = 200 * time.Millisecond
	rootRetryMax = 30 * time.Second
	// rootsChanged is how often the roots in force are compared with what was written.
	rootsChanged = 10 * time.Second
)

// RootCerts keeps the ConfigMap with the mesh's roots in every namespace.
type RootCerts struct {
	client kubernetes.Interface
	roots  func() string
	log    *slog.Logger
}

// NewRootCerts writes what roots returns.
func NewRootCerts(client kubernetes.Interface, roots func() string, log *slog.Logger) *RootCerts {
	return &RootCerts{client: client, roots: roots, log: log}
}

// Run writes and repairs until ctx ends.
func (r *RootCerts) Run(ctx context.Context) error {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](rootRetryMin, rootRetryMax))
	defer queue.ShutDown()
	namespaces := kube.Informers(r.client)
	maps := kube.Informers(r.client, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, ports.RootConfigMap).String()
	}))
	ctx, cancel := context.WithCancel(ctx)
	defer namespaces.Shutdown()
	defer maps.Shutdown()
	defer cancel()
	ns := namespaces.Core().V1().Namespaces().Informer()
	cm := maps.Core().V1().ConfigMaps().Informer()
	nsReg, err := ns.AddEventHandler(each(func(o metav1.Object) { queue.Add(o.GetName()) }))
	if err != nil {
		return fmt.Errorf("watch namespaces: %w", err)
	}
	cmReg, err := cm.AddEventHandler(each(func(o metav1.Object) { queue.Add(o.GetNamespace()) }))
	if err != nil {
		return fmt.Errorf("watch root certificates: %w", err)
	}
	namespaces.Start(ctx.Done())
	maps.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), nsReg.HasSynced, cmReg.HasSynced) {
		return nil
	}
	context.AfterFunc(ctx, queue.ShutDown)
	go r.followRoots(ctx, ns.GetStore(), queue)
	for {
		name, done := queue.Get()
		if done {
			return nil
		}
		if err := r.write(ctx, name, ns.GetStore(), cm.GetStore()); err != nil {
			r.log.Warn("root certificates not written", "namespace", name, "error", err)
			queue.AddRateLimited(name)
		} else {
			queue.Forget(name)
		}
		queue.Done(name)
	}
}

// followRoots queues every namespace when other roots come into force. It ends with ctx.
func (r *RootCerts) followRoots(ctx context.Context, namespaces cache.Store, queue workqueue.TypedRateLimitingInterface[string]) {
	t := time.NewTicker(rootsChanged)
	defer t.Stop()
	last := r.roots()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if now := r.roots(); now != last {
			last = now
			for _, name := range namespaces.ListKeys() {
				queue.Add(name)
			}
		}
	}
}

func each(f func(metav1.Object)) cache.ResourceEventHandlerFuncs {
	call := func(obj any) {
		if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = t.Obj
		}
		if o, ok := obj.(metav1.Object); ok {
			f(o)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    call,
		UpdateFunc: func(_, obj any) { call(obj) },
		DeleteFunc: call,
	}
}

// write makes one namespace's ConfigMap right, if it is not.
func (r *RootCerts) write(ctx context.Context, name string, namespaces, maps cache.Store) error {
	obj, ok, err := namespaces.GetByKey(name)
	if err != nil || !ok {
		return err
	}
	ns := obj.(*corev1.Namespace)
	if ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return nil // nothing can be created in it any more
	}
	want := r.roots()
	obj, ok, err = maps.GetByKey(name + "/" + ports.RootConfigMap)
	if err != nil {
		return err
	}
	api := r.client.CoreV1().ConfigMaps(name)
	if !ok {
		_, err := api.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: ports.RootConfigMap, Namespace: name, Labels: map[string]string{labelConfig: "true"}},
			Data:       map[string]string{ports.RootConfigMapKey: want},
		}, metav1.CreateOptions{})
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) || apierrors.IsNotFound(err) {
			return nil // it began to go, or went, in this moment
		}
		return err
	}
	have := obj.(*corev1.ConfigMap)
	if have.Data[ports.RootConfigMapKey] == want {
		return nil
	}
	update := have.DeepCopy()
	if update.Data == nil {
		update.Data = map[string]string{}
	}
	update.Data[ports.RootConfigMapKey] = want
	if _, err := api.Update(ctx, update, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return nil
}
