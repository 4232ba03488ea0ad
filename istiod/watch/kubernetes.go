package watch

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	istioclient "istio.io/client-go/pkg/clientset/versioned"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"

	"github.com/ambit-mesh/ambit/internal/kube"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Clients are what a Kubernetes source reads from. Gateway and Dynamic may be nil: then their kinds are left out.
type Clients struct {
	Kube    kubernetes.Interface
	Istio   istioclient.Interface
	Gateway gatewayclient.Interface
	Dynamic dynamic.Interface
}

// Kubernetes is the source that watches an API server.
type Kubernetes struct {
	clients Clients
	log     *slog.Logger

	mu         sync.Mutex
	conditions map[string]string
	// refused are kinds that the API server will not show, which must not keep istiod from becoming ready.
	refused map[model.Kind]bool
}

var _ Source = (*Kubernetes)(nil)

// NewKubernetes makes a source on the given clients.
func NewKubernetes(c Clients, log *slog.Logger) *Kubernetes {
	return &Kubernetes{clients: c, log: log, conditions: map[string]string{}, refused: map[model.Kind]bool{}}
}

// Conditions implements Source.
func (s *Kubernetes) Conditions() []Condition {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Condition, 0, len(s.conditions))
	for object, reason := range s.conditions {
		out = append(out, Condition{Object: object, Reason: reason})
	}
	slices.SortFunc(out, func(a, b Condition) int { return strings.Compare(a.Object, b.Object) })
	return out
}

// condition sets or, with an empty reason, clears what is wrong with object; it tells whether that is new.
func (s *Kubernetes) condition(object, reason string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.conditions[object]
	if reason == "" {
		delete(s.conditions, object)
	} else {
		s.conditions[object] = reason
	}
	return old != reason
}

// serial makes one handler out of many informers' goroutines.
type serial struct {
	mu sync.Mutex
	h  Handler
}

func (s *serial) handle(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.h.Handle(e)
}

// run is one run of the source: where events go, and the informers that it owns.
type run struct {
	*Kubernetes
	out       *serial
	informers sync.WaitGroup
}

// Run implements Source. Informers repeat a failed list or watch by themselves.
func (s *Kubernetes) Run(ctx context.Context, h Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	r := &run{Kubernetes: s, out: &serial{h: h}}
	defer r.informers.Wait() // they end with ctx
	defer cancel()
	if err := r.start(ctx, s.coreKinds()); err != nil {
		return err
	}
	groups := s.groups()
	for _, g := range groups {
		if err := r.await(ctx, g); err != nil || ctx.Err() != nil {
			return err
		}
	}
	r.out.h.Synced()
	var later sync.WaitGroup
	defer later.Wait()
	defer cancel()
	failed := make(chan error, len(groups))
	for _, g := range groups {
		later.Go(func() { failed <- r.pickUp(ctx, g) })
	}
	for range groups {
		select {
		case err := <-failed:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
	<-ctx.Done()
	return nil
}

// coreKinds are Kubernetes' own, which every cluster has.
func (s *Kubernetes) coreKinds() []kind {
	core := kube.Informers(s.clients.Kube)
	secrets := informers.NewSharedInformerFactoryWithOptions(s.clients.Kube, 0, informers.WithTransform(kube.StripCredentials),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = kube.SecretsSelector() }))
	maps := informers.NewSharedInformerFactoryWithOptions(s.clients.Kube, 0, informers.WithTransform(kube.StripCredentials))
	return []kind{
		{model.KindPod, "", core.Core().V1().Pods().Informer},
		{model.KindService, "", core.Core().V1().Services().Informer},
		{model.KindEndpointSlice, "", core.Discovery().V1().EndpointSlices().Informer},
		{model.KindNamespace, "", core.Core().V1().Namespaces().Informer},
		{model.KindNode, "", core.Core().V1().Nodes().Informer},
		{model.KindSecret, "", secrets.Core().V1().Secrets().Informer},
		{model.KindConfigMap, "", maps.Core().V1().ConfigMaps().Informer},
	}
}

// start starts informers and returns once each has delivered all that it listed, or is refused.
func (r *run) start(ctx context.Context, kinds []kind) error {
	var synced []cache.InformerSynced
	for _, k := range kinds {
		inf := k.informer()
		if err := inf.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
			r.watchFailed(k.kind, err)
		}); err != nil {
			return fmt.Errorf("watch %q: %w", k.kind, err)
		}
		reg, err := inf.AddEventHandler(r.events(k.kind, r.out))
		if err != nil {
			return fmt.Errorf("watch %q: %w", k.kind, err)
		}
		synced = append(synced, func() bool { return reg.HasSynced() || r.isRefused(k.kind) })
		r.informers.Go(func() { inf.RunWithContext(ctx) })
	}
	cache.WaitForCacheSync(ctx.Done(), synced...) // false only when ctx ended, which the caller sees
	for _, k := range kinds {
		if !r.isRefused(k.kind) {
			r.condition(string(k.kind), "")
		}
	}
	return nil
}

func (s *Kubernetes) isRefused(k model.Kind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused[k]
}

// watchFailed records why a kind is not being delivered. A resource version that expired is normal.
func (s *Kubernetes) watchFailed(kind model.Kind, err error) {
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return
	}
	if apierrors.IsForbidden(err) && optional(kind) {
		s.mu.Lock()
		s.refused[kind] = true
		s.mu.Unlock()
	}
	if s.condition(string(kind), err.Error()) {
		s.log.Error("watch failed; the last state stays in force", "kind", string(kind), "error", err)
	}
}

func (s *Kubernetes) events(kind model.Kind, out *serial) cache.ResourceEventHandlerFuncs {
	deliver := func(obj any, deleted bool) {
		if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = t.Obj
		}
		m, ok := obj.(metav1.Object)
		if !ok {
			return
		}
		// Whatever arrives shows that the watch works again.
		s.condition(string(kind), "")
		e := Event{Kind: kind, Key: model.Key{Namespace: m.GetNamespace(), Name: m.GetName()}}
		if !deleted {
			e.Object = obj
		}
		out.handle(e)
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { deliver(obj, false) },
		UpdateFunc: func(old, obj any) {
			if a, ok := old.(metav1.Object); ok {
				if b, ok := obj.(metav1.Object); ok && a.GetResourceVersion() != "" && a.GetResourceVersion() == b.GetResourceVersion() {
					return // listed again, unchanged
				}
			}
			deliver(obj, false)
		},
		DeleteFunc: func(obj any) { deliver(obj, true) },
	}
}
