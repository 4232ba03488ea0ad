package kube

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// annotationLastApplied is kubectl's copy of the whole manifest; nothing in the mesh reads it.
const annotationLastApplied = corev1.LastAppliedConfigAnnotation

// Informers makes a factory whose caches hold stripped objects and never resync: the reconcilers
// keep their own retry queues, and a resync of every object would only cost CPU.
func Informers(c kubernetes.Interface, opts ...informers.SharedInformerOption) informers.SharedInformerFactory {
	return informers.NewSharedInformerFactoryWithOptions(c, 0, append([]informers.SharedInformerOption{
		informers.WithTransform(Strip),
	}, opts...)...)
}

var _ cache.TransformFunc = Strip

// Strip drops from an object what the mesh never reads. It changes the object in place: an informer
// calls it before anyone else sees the object. Use it for every informer, of any kind.
func Strip(obj any) (any, error) {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		in, err := Strip(t.Obj)
		t.Obj = in
		return t, err
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		// Not an object with metadata: nothing to drop, and not for a cache to refuse.
		return obj, nil
	}
	m.SetManagedFields(nil)
	if a := m.GetAnnotations(); a[annotationLastApplied] != "" {
		delete(a, annotationLastApplied)
		m.SetAnnotations(a)
	}
	switch o := obj.(type) {
	case *corev1.Pod:
		stripPod(o)
	case *corev1.Node:
		stripNode(o)
	}
	return obj, nil
}

// stripPod keeps what decides enrolment, identity, addresses, named ports and readiness.
func stripPod(p *corev1.Pod) {
	s := &p.Spec
	p.Spec = corev1.PodSpec{
		NodeName:           s.NodeName,
		ServiceAccountName: s.ServiceAccountName,
		HostNetwork:        s.HostNetwork,
		Hostname:           s.Hostname,
		Subdomain:          s.Subdomain,
		RestartPolicy:      s.RestartPolicy,
		Containers:         stripContainers(s.Containers),
		InitContainers:     stripContainers(s.InitContainers),
	}
	st := &p.Status
	p.Status = corev1.PodStatus{
		Phase:      st.Phase,
		PodIP:      st.PodIP,
		PodIPs:     st.PodIPs,
		HostIP:     st.HostIP,
		HostIPs:    st.HostIPs,
		StartTime:  st.StartTime,
		Conditions: stripConditions(st.Conditions),
	}
}

// stripContainers keeps names and ports: a Service may name its target port.
func stripContainers(in []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for _, c := range in {
		out = append(out, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
	}
	return out
}

func stripConditions(in []corev1.PodCondition) []corev1.PodCondition {
	var out []corev1.PodCondition
	for _, c := range in {
		if c.Type == corev1.PodReady || c.Type == corev1.PodInitialized {
			out = append(out, corev1.PodCondition{Type: c.Type, Status: c.Status})
		}
	}
	return out
}

// stripNode drops the list of images and the volumes, which are most of a node's bytes.
func stripNode(n *corev1.Node) {
	n.Spec = corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs, ProviderID: n.Spec.ProviderID, Taints: n.Spec.Taints, Unschedulable: n.Spec.Unschedulable}
	n.Status = corev1.NodeStatus{Addresses: n.Status.Addresses}
}
