package watch

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	istioclient "istio.io/client-go/pkg/clientset/versioned"
	istioinformers "istio.io/client-go/pkg/informers/externalversions"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/internal/kube"
	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	// crdPoll is how often an API group that is not installed is looked for.
	crdPoll = 5 * time.Second
	// securityGroup is where Istio's policy kinds live.
	securityGroup = "security.istio.io/v1"
)

// Kubernetes is the source that watches an API server.
type Kubernetes struct {
	kube  kubernetes.Interface
	istio istioclient.Interface
	log   *slog.Logger

	mu         sync.Mutex
	conditions map[string]string
}

var _ Source = (*Kubernetes)(nil)

// NewKubernetes makes a source on the given clients.
func NewKubernetes(k kubernetes.Interface, i istioclient.Interface, log *slog.Logger) *Kubernetes {
	return &Kubernetes{kube: k, istio: i, log: log, conditions: map[string]string{}}
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

// Run implements Source. Informers repeat a failed list or watch by themselves.
func (s *Kubernetes) Run(ctx context.Context, h Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	out := &serial{h: h}
	core := kube.Informers(s.kube)
	informers := map[model.Kind]cache.SharedIndexInformer{
		model.KindPod:           core.Core().V1().Pods().Informer(),
		model.KindService:       core.Core().V1().Services().Informer(),
		model.KindEndpointSlice: core.Discovery().V1().EndpointSlices().Informer(),
		model.KindNamespace:     core.Core().V1().Namespaces().Informer(),
		model.KindNode:          core.Core().V1().Nodes().Informer(),
	}
	defer core.Shutdown() // waits for the informers, which end with ctx
	defer cancel()
	if err := s.wait(ctx, out, informers, func() { core.Start(ctx.Done()) }); err != nil {
		return err
	}
	installed, err := s.awaitInstalled(ctx, true)
	if err != nil || ctx.Err() != nil {
		return err
	}
	if !installed {
		// Go on without policies, as the cluster has none, and take them up when the kinds appear.
		out.h.Synced()
		if _, err := s.awaitInstalled(ctx, false); err != nil || ctx.Err() != nil {
			return err
		}
	}
	if err := s.runSecurity(ctx, out); err != nil {
		return err
	}
	if installed && ctx.Err() == nil {
		out.h.Synced()
	}
	<-ctx.Done()
	return nil
}

func (s *Kubernetes) runSecurity(ctx context.Context, out *serial) error {
	f := istioinformers.NewSharedInformerFactoryWithOptions(s.istio, 0, istioinformers.WithTransform(kube.Strip))
	security := f.Security().V1()
	informers := map[model.Kind]cache.SharedIndexInformer{
		model.KindAuthorizationPolicy: security.AuthorizationPolicies().Informer(),
		model.KindPeerAuthentication:  security.PeerAuthentications().Informer(),
	}
	err := s.wait(ctx, out, informers, func() { f.Start(ctx.Done()) })
	context.AfterFunc(ctx, f.Shutdown)
	return err
}

// wait starts informers and returns once each has delivered all that it listed.
func (s *Kubernetes) wait(ctx context.Context, out *serial, informers map[model.Kind]cache.SharedIndexInformer, start func()) error {
	var synced []cache.InformerSynced
	for kind, inf := range informers {
		if err := inf.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
			s.watchFailed(kind, err)
		}); err != nil {
			return fmt.Errorf("watch %q: %w", kind, err)
		}
		reg, err := inf.AddEventHandler(s.events(kind, out))
		if err != nil {
			return fmt.Errorf("watch %q: %w", kind, err)
		}
		synced = append(synced, reg.HasSynced)
	}
	start()
	cache.WaitForCacheSync(ctx.Done(), synced...) // false only when ctx ended, which the caller sees
	for kind := range informers {
		s.condition(string(kind), "")
	}
	return nil
}

// watchFailed records why a kind is not being delivered. A resource version that expired is normal.
func (s *Kubernetes) watchFailed(kind model.Kind, err error) {
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return
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

// awaitInstalled looks whether the API server has Istio's policy kinds: until it
// answers if once is set, else until it has them.
func (s *Kubernetes) awaitInstalled(ctx context.Context, once bool) (bool, error) {
	tick := time.NewTicker(crdPoll)
	defer tick.Stop()
	for {
		ok, err := installed(s.istio.Discovery())
		switch {
		case ok:
			s.condition(securityGroup, "")
			return true, nil
		case err != nil:
			if s.condition(securityGroup, err.Error()) {
				s.log.Error("look for policy kinds", "group", securityGroup, "error", err)
			}
		default:
			if s.condition(securityGroup, "not installed: AuthorizationPolicy and PeerAuthentication do not exist in this cluster (install the base chart)") {
				s.log.Warn("policy kinds are not installed; going on without policies", "group", securityGroup)
			}
			if once {
				return false, nil
			}
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-tick.C:
		}
	}
}

// installed tells whether the API server serves both kinds of policy.
func installed(d discovery.DiscoveryInterface) (bool, error) {
	list, err := d.ServerResourcesForGroupVersion(securityGroup)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("list resources of %q: %w", securityGroup, err)
	}
	found := map[string]bool{}
	for _, r := range list.APIResources {
		found[r.Kind] = true
	}
	return found[string(model.KindAuthorizationPolicy)] && found[string(model.KindPeerAuthentication)], nil
}
