package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/kube"
)

const (
	byUID = "uid"
	// annotationConfigHash is the UID that the kubelet uses for a pod from a file, in the plugin's arguments and
	// in cgroup paths; the pod's own UID in the API server is another one.
	annotationConfigHash = "kubernetes.io/config.hash"
)

var errNotSynced = errors.New("pods and namespaces have not been read from the API server yet")

// watch keeps the caches of this node's pods and of all namespaces, until ctx ends.
func (a *Agent) watch(ctx context.Context) error {
	a.synced(errNotSynced)
	onNode := kube.Informers(a.kube, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", a.c.NodeName).String()
	}))
	all := kube.Informers(a.kube)
	pi, ni := onNode.Core().V1().Pods(), all.Core().V1().Namespaces()
	if err := pi.Informer().AddIndexers(cache.Indexers{byUID: indexUID}); err != nil {
		return fmt.Errorf("index pods: %w", err)
	}
	podEvents, err := pi.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { a.enqueue(o) },
		UpdateFunc: func(_, o any) { a.enqueue(o) },
		DeleteFunc: func(o any) { a.enqueue(o) },
	})
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	if _, err := ni.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: a.namespaceChanged}); err != nil {
		return fmt.Errorf("watch namespaces: %w", err)
	}
	a.mu.Lock()
	a.podIndex, a.pods, a.namespaces = pi.Informer().GetIndexer(), pi.Lister(), ni.Lister()
	a.mu.Unlock()
	onNode.Start(ctx.Done())
	all.Start(ctx.Done())
	defer onNode.Shutdown()
	defer all.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), podEvents.HasSynced, ni.Informer().HasSynced) {
		return nil
	}
	close(a.ready)
	a.synced(nil)
	a.log.Info("pods and namespaces read", "pods", len(a.podIndex.ListKeys()))
	a.enqueueAll()
	<-ctx.Done()
	return nil
}

// isSynced tells whether the caches are full, so that a pod that is missing there is really gone.
func (a *Agent) isSynced() bool {
	select {
	case <-a.ready:
		return true
	default:
		return false
	}
}

func indexUID(o any) ([]string, error) {
	if p, ok := o.(*corev1.Pod); ok {
		return []string{string(p.UID)}, nil
	}
	return nil, nil
}

func (a *Agent) enqueue(o any) {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	if p, ok := o.(*corev1.Pod); ok {
		a.queue.Add(string(p.UID))
	}
}

// namespaceChanged looks again at the pods of a namespace whose label changed.
func (a *Agent) namespaceChanged(was, is any) {
	o, ok1 := was.(*corev1.Namespace)
	n, ok2 := is.(*corev1.Namespace)
	if !ok1 || !ok2 || o.Labels[ports.LabelDataplaneMode] == n.Labels[ports.LabelDataplaneMode] {
		return
	}
	objs, err := a.podIndex.ByIndex(cache.NamespaceIndex, n.Name)
	if err != nil {
		a.log.Error("pods of namespace not found", "namespace", n.Name, "error", err)
		return
	}
	for _, p := range objs {
		a.enqueue(p)
	}
}

// enqueueAll looks again at every pod that is known from anywhere.
func (a *Agent) enqueueAll() {
	if !a.isSynced() {
		return
	}
	for _, o := range a.podIndex.List() {
		a.enqueue(o)
	}
	a.mu.Lock()
	uids := a.known()
	a.mu.Unlock()
	for _, uid := range uids {
		a.queue.Add(uid)
	}
}

// repair looks at every pod again and again, and at capture that belongs to none.
func (a *Agent) repair(ctx context.Context) error {
	t := time.NewTicker(repairEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		uids, err := a.redirect.Enrolled(ctx)
		if err != nil {
			a.log.Error("captured pods not listed", "error", err)
		}
		a.mu.Lock()
		for _, uid := range uids {
			if a.tracked[uid] == nil {
				a.leftover[uid] = true
			}
		}
		a.mu.Unlock()
		a.enqueueAll()
	}
}

// podByUID returns a pod of the cache, which must not be changed, or nil.
func (a *Agent) podByUID(uid string) *corev1.Pod {
	a.mu.Lock()
	index := a.podIndex
	a.mu.Unlock()
	if index == nil {
		return nil
	}
	objs, err := index.ByIndex(byUID, uid)
	if err != nil || len(objs) == 0 {
		return nil
	}
	return objs[0].(*corev1.Pod)
}

// cgroupUIDs are the names that a pod may have in a cgroup path.
func cgroupUIDs(pod *corev1.Pod) []string {
	uids := []string{string(pod.UID)}
	if h := pod.Annotations[annotationConfigHash]; h != "" {
		uids = append(uids, h)
	}
	return uids
}

// podIPs are the addresses that the kubelet has reported.
func podIPs(pod *corev1.Pod) []netip.Addr {
	in := pod.Status.PodIPs
	if len(in) == 0 {
		in = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	var out []netip.Addr
	for _, i := range in {
		if ip, err := netip.ParseAddr(i.IP); err == nil {
			out = append(out, ip.Unmap())
		}
	}
	return out
}
