package agent

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestEnrol(t *testing.T) {
	const key = "istio.io/dataplane-mode"
	ambient, none, sidecar := map[string]string{key: "ambient"}, map[string]string{key: "none"}, map[string]string{key: "sidecar"}
	rules := Rules{ExcludeNamespaces: Config{Namespace: "istio-system", ExcludeNamespaces: []string{"db"}}.excluded()}
	for _, c := range []struct {
		name     string
		ns       string
		nsLabels map[string]string
		labels   map[string]string
		change   func(*corev1.Pod)
		want     bool
		reason   string
	}{
		{"no label", "shop", nil, nil, nil, false, "no label"},
		{"namespace label", "shop", ambient, nil, nil, true, "namespace label"},
		{"pod label", "shop", nil, ambient, nil, true, "pod label"},
		{"pod label wins over the namespace's: out", "shop", ambient, none, nil, false, "pod label opts out"},
		{"pod label wins over the namespace's: in", "shop", none, ambient, nil, true, "pod label"},
		{"another pod label leaves it to the namespace", "shop", ambient, sidecar, nil, true, "namespace label"},
		{"another pod label alone", "shop", nil, sidecar, nil, false, "no label"},
		{"another namespace label", "shop", sidecar, nil, nil, false, "no label"},
		{"kube-system", "kube-system", ambient, ambient, nil, false, "namespace is excluded"},
		{"own namespace", "istio-system", ambient, ambient, nil, false, "namespace is excluded"},
		{"excluded namespace", "db", ambient, ambient, nil, false, "namespace is excluded"},
		{"host network", "shop", ambient, ambient, func(p *corev1.Pod) { p.Spec.HostNetwork = true }, false, "pod uses the host's network"},
		{"succeeded", "shop", ambient, nil, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, false, "pod has finished"},
		{"failed", "shop", ambient, nil, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, false, "pod has finished"},
		{"running", "shop", ambient, nil, func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }, true, "namespace label"},
		{"being deleted, still running", "shop", ambient, nil, func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }, true, "namespace label"},
		{"sidecar", "shop", ambient, ambient, func(p *corev1.Pod) { p.Annotations = map[string]string{"sidecar.istio.io/status": "{}"} }, false, "pod has a sidecar"},
		{"empty sidecar annotation", "shop", ambient, nil, func(p *corev1.Pod) { p.Annotations = map[string]string{"sidecar.istio.io/status": ""} }, false, "pod has a sidecar"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: c.ns, Name: "p", Labels: c.labels}}
			if c.change != nil {
				c.change(pod)
			}
			got, reason := Enrol(pod, &metav1.ObjectMeta{Name: c.ns, Labels: c.nsLabels}, rules)
			if got != c.want || reason != c.reason {
				t.Errorf("got %v, %q; want %v, %q", got, reason, c.want, c.reason)
			}
		})
	}
}

func TestEnrolWithoutNamespace(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}}
	if got, _ := Enrol(pod, nil, Rules{}); got {
		t.Error("a pod without any label is enrolled")
	}
}

func TestConfigFromEnv(t *testing.T) {
	c := FromEnv(func(k string) string {
		return map[string]string{"NODE_NAME": "n1", "POD_NAMESPACE": "mesh", "EXCLUDE_NAMESPACES": " kube-system, a,,b ,"}[k]
	})
	if d := cmp.Diff([]string{"a", "b", "kube-system", "mesh"}, c.excluded()); d != "" {
		t.Error(d)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if err := (Config{}).Validate(); err == nil {
		t.Error("a configuration without a node is accepted")
	}
}
