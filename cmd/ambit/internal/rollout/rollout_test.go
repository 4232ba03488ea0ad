package rollout

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
)

const namespace = "istio-system"

func daemonSetAt(generation, observed int64, wanted, updated, available int32) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "ztunnel", Generation: generation},
		Spec:       appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "ztunnel"}}},
		Status: appsv1.DaemonSetStatus{ObservedGeneration: observed, DesiredNumberScheduled: wanted,
			UpdatedNumberScheduled: updated, NumberAvailable: available},
	}
}

func deploymentAt(generation, observed int64, wanted, replicas, updated, available int32) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "istiod", Generation: generation},
		Spec:       appsv1.DeploymentSpec{Replicas: &wanted, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"istio": "pilot"}}},
		Status: appsv1.DeploymentStatus{ObservedGeneration: observed, Replicas: replicas,
			UpdatedReplicas: updated, AvailableReplicas: available},
	}
}

func pod(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "ztunnel-x", Labels: map[string]string{"app": "ztunnel", "istio": "pilot"}},
		Spec:       corev1.PodSpec{NodeName: "n1"},
	}
	change(p)
	return p
}

func waitingFor(reason, message string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}},
		}}
	}
}

func TestLook(t *testing.T) {
	z := Workload{"DaemonSet", namespace, "ztunnel"}
	i := Workload{"Deployment", namespace, "istiod"}
	for _, tc := range []struct {
		name    string
		w       Workload
		objects []runtime.Object
		want    Status
	}{
		{"just applied", z, []runtime.Object{daemonSetAt(2, 1, 2, 2, 2)}, Status{Ready: 2, Wanted: 2, Waiting: "the controller to see it"}},
		{"old pods still serve", z, []runtime.Object{daemonSetAt(2, 2, 2, 1, 2)}, Status{Ready: 2, Wanted: 2, Waiting: "new pods to be made"}},
		{"rolled out", z, []runtime.Object{daemonSetAt(2, 2, 2, 2, 2)}, Status{Ready: 2, Wanted: 2, Done: true}},
		{"no image", z, []runtime.Object{daemonSetAt(1, 1, 2, 2, 1), pod(waitingFor("ImagePullBackOff", "no such tag"))},
			Status{Ready: 1, Wanted: 2, Waiting: "pod ztunnel-x on node n1: ImagePullBackOff: no such tag",
				Hint: "is the image where global.hub and global.tag say? See --set global.hub=… and global.imagePullSecrets"}},
		{"crashing", z, []runtime.Object{daemonSetAt(1, 1, 2, 2, 1), pod(waitingFor("CrashLoopBackOff", ""))},
			Status{Ready: 1, Wanted: 2, Waiting: "pod ztunnel-x on node n1: CrashLoopBackOff", Hint: "kubectl -n istio-system logs ztunnel-x --previous"}},
		{"running, not ready", z, []runtime.Object{daemonSetAt(1, 1, 2, 2, 1), pod(func(*corev1.Pod) {})},
			Status{Ready: 1, Wanted: 2, Waiting: "pod ztunnel-x on node n1 to become ready", Hint: "kubectl -n istio-system logs ztunnel-x"}},
		{"istiod not scheduled", i, []runtime.Object{deploymentAt(1, 1, 1, 1, 1, 0), pod(func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/2 nodes"}}
		})}, Status{Wanted: 1, Waiting: "pod ztunnel-x: not scheduled: 0/2 nodes", Hint: "make room for it, or see tolerations and nodeSelector in the chart's values"}},
		{"old istiod still there", i, []runtime.Object{deploymentAt(3, 3, 1, 2, 1, 2)}, Status{Ready: 2, Wanted: 1, Waiting: "old pods to go"}},
		{"istiod rolled out", i, []runtime.Object{deploymentAt(3, 3, 2, 2, 2, 2)}, Status{Ready: 2, Wanted: 2, Done: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Look(t.Context(), fake.NewClientset(tc.objects...), tc.w)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}

// TestWaitReportsEachStatusOnce: a person sees changes, not a line for each look.
func TestWaitReportsEachStatusOnce(t *testing.T) {
	client := fake.NewClientset(daemonSetAt(1, 1, 2, 2, 1))
	synctest.Test(t, func(t *testing.T) {
		reports := make(chan Status, 100)
		done := make(chan error, 1)
		go func() {
			done <- Wait(t.Context(), client, Workload{"DaemonSet", namespace, "ztunnel"}, func(s Status) { reports <- s })
		}()
		time.Sleep(20 * pollInterval) // virtual time
		if len(reports) != 1 {
			t.Errorf("%d reports of one status, want 1", len(reports))
		}
		if _, err := client.AppsV1().DaemonSets(namespace).Update(t.Context(), daemonSetAt(1, 1, 2, 2, 2), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(reports) != 2 {
			t.Errorf("%d reports, want 2", len(reports))
		}
	})
}

// TestWaitSaysWhy: when the time is over, the error names what was missing and what to do.
func TestWaitSaysWhy(t *testing.T) {
	for _, tc := range []struct {
		name    string
		objects []runtime.Object
		want    []string
	}{
		{"a pod in trouble", []runtime.Object{daemonSetAt(1, 1, 2, 2, 1), pod(waitingFor("CrashLoopBackOff", "exit 1"))},
			[]string{"daemonset/ztunnel", "1 of 2 ready", "CrashLoopBackOff: exit 1", "hint: kubectl"}},
		{"nothing there", nil, []string{"daemonset/ztunnel", "not found"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client := fake.NewClientset(tc.objects...)
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := Wait(ctx, client, Workload{"DaemonSet", namespace, "ztunnel"}, func(Status) {})
				if err == nil {
					t.Fatal("no error")
				}
				for _, want := range tc.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error %q does not say %q", err, want)
					}
				}
			})
		})
	}
}
