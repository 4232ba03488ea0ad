package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/cespare/xxhash/v2"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/internal/kube"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// controller is one run of a Deployer: its watches, and what it has applied.
type controller struct {
	d          *Deployer
	kinds      map[string]kind
	stores     map[string]cache.Store
	defaults   cache.Store // ConfigMaps with defaults of classes
	parameters *parameters
	stop       []func()

	mu      sync.Mutex
	applied map[model.Key]map[string]mark // by gateway, then "Kind/name"
}

// mark remembers an object as it was applied, and as the API server then had it.
type mark struct{ want, have uint64 }

func newController(d *Deployer) *controller {
	return &controller{
		d: d, kinds: kinds(d.cfg.Client), stores: map[string]cache.Store{},
		parameters: newParameters(d.cfg.Client, d.touch), applied: map[model.Key]map[string]mark{},
	}
}

func onChange(f func(metav1.Object)) cache.ResourceEventHandlerFuncs {
	call := func(o any) {
		if t, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = t.Obj
		}
		if m, ok := o.(metav1.Object); ok {
			f(m)
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: call, UpdateFunc: func(_, o any) { call(o) }, DeleteFunc: call}
}

// watch starts the informers, of labelled objects only, and returns once they have all; false if ctx ends before.
func (c *controller) watch(ctx context.Context) (bool, error) {
	client := c.d.cfg.Client
	ours := kube.Informers(client, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.LabelSelector = fmt.Sprintf("%s in (%s,%s)", LabelManaged, ManagedGateway, ManagedWaypoint)
	}))
	defaults := kube.Informers(client, informers.WithNamespace(c.d.cfg.Namespace), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.LabelSelector = LabelClassDefaults
	}))
	var synced []cache.InformerSynced
	for name, k := range c.kinds {
		i := k.informer(ours)
		c.stores[name] = i.GetStore()
		reg, err := i.AddEventHandler(onChange(func(o metav1.Object) {
			c.d.touch(model.Key{Namespace: o.GetNamespace(), Name: o.GetLabels()[LabelGateway]})
		}))
		if err != nil {
			return false, fmt.Errorf("watch %s: %w", name, err)
		}
		synced = append(synced, reg.HasSynced)
	}
	cm := defaults.Core().V1().ConfigMaps().Informer()
	c.defaults = cm.GetStore()
	reg, err := cm.AddEventHandler(onChange(func(metav1.Object) { c.d.touchAll() }))
	if err != nil {
		return false, fmt.Errorf("watch defaults of classes: %w", err)
	}
	synced = append(synced, reg.HasSynced)
	ours.StartWithContext(ctx)
	defaults.StartWithContext(ctx)
	c.stop = append(c.stop, ours.Shutdown, defaults.Shutdown)
	return cache.WaitForCacheSync(ctx.Done(), synced...), nil
}

// close waits for the informers, whose context has ended.
func (c *controller) close() {
	c.parameters.close()
	for _, f := range c.stop {
		f()
	}
}

func (c *controller) forget(k model.Key) {
	c.parameters.use(k, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.applied, k)
}

// reconcile applies the objects of g that differ, and removes an autoscaler or budget that is not wanted any more.
func (c *controller) reconcile(ctx context.Context, g *model.Gateway) error {
	refs, err := references(g)
	if err != nil {
		return err
	}
	c.parameters.use(g.Key, refs) // before reading, so that no change falls in between
	options := c.d.cfg.Options
	options.Overlays = classDefaults(c.defaults.List(), g.Class)
	own, err := c.parameters.read(ctx, refs)
	if err != nil {
		return err
	}
	options.Overlays = append(options.Overlays, own...)
	objects, err := Objects(g, options)
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, o := range objects {
		wanted[o.GetKind()+"/"+o.GetName()] = true
		if err := c.apply(ctx, g, o); err != nil {
			return err
		}
	}
	return c.removeUnwanted(ctx, g, wanted)
}

func (c *controller) apply(ctx context.Context, g *model.Gateway, o *unstructured.Unstructured) error {
	id := o.GetKind() + "/" + o.GetName()
	data, err := json.Marshal(o.Object)
	if err != nil {
		return fmt.Errorf("encode %s: %w", id, err)
	}
	want := xxhash.Sum64(data)
	c.mu.Lock()
	last := c.applied[g.Key][id]
	c.mu.Unlock()
	done, err := c.asApplied(ctx, o, want, last)
	if err != nil || done {
		return err
	}
	result, err := c.kinds[o.GetKind()].apply(ctx, o.GetNamespace(), o.GetName(), data)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil // the Gateway will go too
	}
	if err != nil {
		return fmt.Errorf("apply %s in namespace %q: %w", id, o.GetNamespace(), err)
	}
	now, err := fingerprint(result)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.applied[g.Key] == nil {
		c.applied[g.Key] = map[string]mark{}
	}
	c.applied[g.Key][id] = mark{want, now}
	c.d.cfg.Log.Debug("applied", "gateway", g.Key.String(), "object", id)
	return nil
}

// asApplied tells whether nothing is to be done: the object is as it was left, or is somebody else's service account.
// The watch may be behind, so what differs there is looked at once more, in the API server: reading is cheaper than writing.
func (c *controller) asApplied(ctx context.Context, o *unstructured.Unstructured, want uint64, last mark) (bool, error) {
	cached, ok, err := c.stores[o.GetKind()].GetByKey(o.GetNamespace() + "/" + o.GetName())
	if err != nil {
		return false, fmt.Errorf("look up %s %q: %w", o.GetKind(), o.GetName(), err)
	}
	if ok {
		now, err := fingerprint(cached.(metav1.Object))
		if err != nil || last == (mark{want, now}) {
			return err == nil, err
		}
	}
	have, err := c.kinds[o.GetKind()].get(ctx, o.GetNamespace(), o.GetName())
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get %s %q: %w", o.GetKind(), o.GetName(), err)
	}
	if foreign, err := foreign(have, o); foreign || err != nil {
		return foreign, err
	}
	now, err := fingerprint(have)
	return err == nil && last == (mark{want, now}), err
}

// foreign refuses an object that is not g's: one that no mesh made, or another Gateway's whose objects have the same
// name, since the two would fight for it. A service account that exists is used as it is: a Gateway may ask for one.
func foreign(have metav1.Object, o *unstructured.Unstructured) (bool, error) {
	labels := have.GetLabels()
	managed, gateway := labels[LabelManaged] != "", labels[LabelGateway]
	if managed && gateway == o.GetLabels()[LabelGateway] {
		return false, nil
	}
	if o.GetKind() == kindServiceAccount {
		return true, nil
	}
	err := fmt.Errorf("%s %q in namespace %q %w", o.GetKind(), o.GetName(), o.GetNamespace(), ErrForeign)
	if managed {
		err = fmt.Errorf("%w: it is gateway %q's", err, gateway)
	}
	return true, err
}

// removeUnwanted deletes what an earlier form of g asked for: nothing else would stop a budget from blocking a drain.
func (c *controller) removeUnwanted(ctx context.Context, g *model.Gateway, wanted map[string]bool) error {
	for _, name := range []string{kindAutoscaler, kindBudget} {
		for _, o := range c.stores[name].List() {
			m := o.(metav1.Object)
			if m.GetNamespace() != g.Namespace || wanted[name+"/"+m.GetName()] || !ownedBy(m, g) {
				continue
			}
			uid := m.GetUID()
			err := c.kinds[name].delete(ctx, m.GetNamespace(), m.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete %s %q: %w", name, m.GetName(), err)
			}
		}
	}
	return nil
}

func ownedBy(m metav1.Object, g *model.Gateway) bool {
	for _, r := range m.GetOwnerReferences() {
		if r.UID == types.UID(g.UID) {
			return true
		}
	}
	return false
}

// observe reads what the watch knows of a gateway's Deployment and Service.
func (c *controller) observe(g *model.Gateway, r *Report) {
	b, err := newBuilder(g, c.d.cfg.Options)
	if err != nil {
		return
	}
	find := func(kind string) any {
		o, _, _ := c.stores[kind].GetByKey(g.Namespace + "/" + b.name) // an index of strings does not fail
		return o
	}
	d, _ := find(kindDeployment).(*appsv1.Deployment)
	s, _ := find(kindService).(*corev1.Service)
	r.observe(d, s, c.d.cfg.Options.Domain)
}
