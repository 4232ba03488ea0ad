package agent

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/ports"
)

// annotationSidecar is on pods that have a sidecar proxy of their own: two proxies would capture each other.
const annotationSidecar = "sidecar.istio.io/status"

// Rules are what enrolment depends on besides labels.
type Rules struct {
	// ExcludeNamespaces are never in the mesh: kube-system, the mesh's own, and the user's choice.
	ExcludeNamespaces []string
}

// Enrol decides whether a pod belongs in the mesh, and says why. The rules are Istio's: excluded namespaces
// first; never on the host's network; never beside a sidecar; then the pod's own label, then its namespace's.
// It reads no more than what its arguments hold.
func Enrol(pod *corev1.Pod, namespace *metav1.ObjectMeta, r Rules) (bool, string) {
	switch {
	case slices.Contains(r.ExcludeNamespaces, pod.Namespace):
		return false, "namespace is excluded"
	case pod.Spec.HostNetwork:
		return false, "pod uses the host's network"
	case finished(pod):
		return false, "pod has finished"
	case hasKey(pod.Annotations, annotationSidecar):
		return false, "pod has a sidecar"
	}
	switch pod.Labels[ports.LabelDataplaneMode] {
	case ports.DataplaneModeNone:
		return false, "pod label opts out"
	case ports.DataplaneModeAmbient:
		return true, "pod label"
	}
	if namespace != nil && namespace.Labels[ports.LabelDataplaneMode] == ports.DataplaneModeAmbient {
		return true, "namespace label"
	}
	return false, "no label"
}

// finished means that no container of the pod will run again.
func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func hasKey(m map[string]string, k string) bool {
	_, ok := m[k]
	return ok
}
