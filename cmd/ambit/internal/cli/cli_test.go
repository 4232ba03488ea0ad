package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/charts"
	"github.com/ambit-mesh/ambit/cmd/ambit/internal/release"
	"github.com/ambit-mesh/ambit/cmd/ambit/internal/rollout"
)

// TestEnrolledFindsWhatUninstallWouldStrand: namespaces and single pods alike.
func TestEnrolledFindsWhatUninstallWouldStrand(t *testing.T) {
	labels := func(mode string) map[string]string { return map[string]string{ports.LabelDataplaneMode: mode} }
	client := fake.NewClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: labels("ambient")}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "plain"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "plain", Name: "in", Labels: labels("ambient")}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "out", Labels: labels("none")}},
	)
	got, err := enrolled(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"namespace shop", "pod plain/in"}, got); diff != "" {
		t.Errorf("enrolled (-want +got):\n%s", diff)
	}
}

// TestWaitsForEveryWorkload: nothing that has pods is installed without being waited for.
func TestWaitsForEveryWorkload(t *testing.T) {
	client, err := (&cluster{namespace: "mesh"}).releases(nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []rollout.Workload
	for _, part := range charts.Parts() {
		rendered, err := client.Render(t.Context(), part, release.Values{}.For(part, "mesh"))
		if err != nil {
			t.Fatal(err)
		}
		found, err := workloadsOf(rendered.Manifest)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, found...)
	}
	want := []rollout.Workload{
		{Kind: "Deployment", Namespace: "mesh", Name: "istiod"},
		{Kind: "DaemonSet", Namespace: "mesh", Name: "ztunnel"},
		{Kind: "DaemonSet", Namespace: "mesh", Name: "istio-cni-node"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("workloads (-want +got):\n%s", diff)
	}
}

func TestNamespaceIsMadeOnce(t *testing.T) {
	client := fake.NewClientset()
	var out strings.Builder
	for range 2 {
		if err := ensureNamespace(t.Context(), client, "mesh", newProgress(&out)); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(out.String(), "created"); n != 1 {
		t.Errorf("said %d times that it was created, want once", n)
	}
	ns, err := client.CoreV1().Namespaces().Get(t.Context(), "mesh", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := ns.Labels["pod-security.kubernetes.io/enforce"]; got != "privileged" {
		t.Errorf("pod security level %q, want privileged", got)
	}
}

func TestHints(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("upgrade: %w", release.ErrForeign), "--adopt"},
		{fmt.Errorf("upgrade: %w", release.ErrBusy), "two minutes"},
		{fmt.Errorf("look up: %w", context.DeadlineExceeded), "API server does not answer"},
		{errors.New("replicaCount: got string"), ""},
	} {
		got := hintFor(tc.err)
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("hint for %q: got %q, want %q", tc.err, got, tc.want)
		}
	}
}
