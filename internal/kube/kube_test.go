package kube

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
)

func bigMeta() metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: "n", Namespace: "ns", UID: "u", Labels: map[string]string{"a": "b"},
		Annotations:   map[string]string{"keep": "me", annotationLastApplied: "{...}"},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
	}
}

func stripped() metav1.ObjectMeta {
	m := bigMeta()
	m.ManagedFields = nil
	m.Annotations = map[string]string{"keep": "me"}
	return m
}

func bigPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: bigMeta(),
		Spec: corev1.PodSpec{
			NodeName: "node", ServiceAccountName: "sa", HostNetwork: true, Hostname: "h", Subdomain: "s",
			Volumes: []corev1.Volume{{Name: "v"}},
			Containers: []corev1.Container{{
				Name: "c", Image: "i", Env: []corev1.EnvVar{{Name: "SECRET"}},
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
			}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}, HostIP: "192.0.2.1",
			Conditions:        []corev1.PodCondition{{Type: corev1.PodScheduled, Status: "True"}, {Type: corev1.PodReady, Status: "True", Message: "m"}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "c"}},
		},
	}
}

func TestStrip(t *testing.T) {
	want := &corev1.Pod{
		ObjectMeta: stripped(),
		Spec: corev1.PodSpec{
			NodeName: "node", ServiceAccountName: "sa", HostNetwork: true, Hostname: "h", Subdomain: "s",
			Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}, HostIP: "192.0.2.1",
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: "True"}},
		},
	}
	got, err := Strip(bigPod())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	again, err := Strip(got)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, again); d != "" {
		t.Errorf("a second time: %s", d)
	}

	svc, err := Strip(&corev1.Service{ObjectMeta: bigMeta(), Spec: corev1.ServiceSpec{ClusterIP: "10.1.1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&corev1.Service{ObjectMeta: stripped(), Spec: corev1.ServiceSpec{ClusterIP: "10.1.1.1"}}, svc); d != "" {
		t.Error(d)
	}
	node, err := Strip(&corev1.Node{ObjectMeta: bigMeta(), Status: corev1.NodeStatus{Images: make([]corev1.ContainerImage, 50)}})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&corev1.Node{ObjectMeta: stripped()}, node); d != "" {
		t.Error(d)
	}
	tomb, err := Strip(cache.DeletedFinalStateUnknown{Key: "k", Obj: bigPod()})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(any(want), tomb.(cache.DeletedFinalStateUnknown).Obj); d != "" {
		t.Error(d)
	}
	if got, err := Strip("no object"); err != nil || got != "no object" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestInformersStrip(t *testing.T) {
	f := Informers(fake.NewClientset(bigPod()))
	pods := f.Core().V1().Pods()
	pods.Informer()
	f.Start(t.Context().Done())
	for k, ok := range f.WaitForCacheSync(t.Context().Done()) {
		if !ok {
			t.Fatalf("%v not synced", k)
		}
	}
	p, err := pods.Lister().Pods("ns").Get("n")
	if err != nil {
		t.Fatal(err)
	}
	if p.ManagedFields != nil || p.Spec.Volumes != nil {
		t.Errorf("not stripped: %v", p)
	}
}

const kubeconfig = `apiVersion: v1
kind: Config
current-context: a
clusters:
- {name: a, cluster: {server: "https://192.0.2.1:6443"}}
- {name: b, cluster: {server: "https://192.0.2.2:6443"}}
contexts:
- {name: a, context: {cluster: a, user: u}}
- {name: b, context: {cluster: b, user: u}}
users:
- {name: u, user: {token: t}}
`

func TestNew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ context, host string }{{"", "https://192.0.2.1:6443"}, {"b", "https://192.0.2.2:6443"}} {
		got, err := New(Config{Kubeconfig: file, Context: c.context, UserAgent: "test"})
		if err != nil {
			t.Fatal(err)
		}
		if got.REST.Host != c.host || got.REST.QPS != defaultQPS || got.REST.Burst != defaultBurst || got.REST.UserAgent != "test" {
			t.Errorf("context %q: %+v", c.context, got.REST)
		}
		if got.Kube == nil || got.Istio == nil || got.Gateway == nil || got.Dynamic == nil || got.Metadata == nil {
			t.Error("a client is missing")
		}
	}
	if c, err := New(Config{Kubeconfig: file, QPS: 7, Burst: 9}); err != nil || c.REST.QPS != 7 || c.REST.Burst != 9 {
		t.Errorf("rates: %v", err)
	}
	if _, err := New(Config{Kubeconfig: file + "x"}); err == nil || !strings.Contains(err.Error(), file+"x") {
		t.Errorf("missing file: %v", err)
	}
	if _, err := New(Config{Kubeconfig: file, Context: "none"}); err == nil {
		t.Error("an unknown context is accepted")
	}
}

// Caches of Secrets and ConfigMaps hold what a gateway reads, and no other secret of the cluster.
func TestStripCredentials(t *testing.T) {
	s, err := StripCredentials(&corev1.Secret{ObjectMeta: bigMeta(), Data: map[string][]byte{"tls.crt": {1}, "tls.key": {2}, "password": {3}}})
	if err != nil {
		t.Fatal(err)
	}
	want := &corev1.Secret{ObjectMeta: stripped(), Data: map[string][]byte{"tls.crt": {1}, "tls.key": {2}}}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Errorf("Secret (-want +got):\n%s", diff)
	}
	m, err := StripCredentials(&corev1.ConfigMap{ObjectMeta: bigMeta(), Data: map[string]string{"ca.crt": "x", "big": "y"}, BinaryData: map[string][]byte{"b": {1}}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&corev1.ConfigMap{ObjectMeta: stripped(), Data: map[string]string{"ca.crt": "x"}}, m); diff != "" {
		t.Errorf("ConfigMap (-want +got):\n%s", diff)
	}
	if got, want := SecretsSelector(), "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token"; got != want {
		t.Errorf("selector %q, want %q", got, want)
	}
}
