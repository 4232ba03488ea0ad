// Package rollout waits until a workload of the mesh runs as its newest
// specification says, and explains what it waits for. The command-line tool calls
// it after applying a release.
//
// What always holds: Wait returns nil only if every wanted pod is of the newest
// revision and ready; its error names the pod that is not, what Kubernetes says
// of it, and what to do. It reads Deployments, DaemonSets and Pods, and writes
// nothing.
package rollout

import (
	"context"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// pollInterval is how often the workload is looked at: often enough that nobody waits noticeably longer than it takes.
const pollInterval = 500 * time.Millisecond

// Workload names what to wait for.
type Workload struct {
	Kind      string // Deployment or DaemonSet
	Namespace string
	Name      string
}

func (w Workload) String() string { return strings.ToLower(w.Kind) + "/" + w.Name }

// Status is how far a workload is.
type Status struct {
	Ready, Wanted int
	// Done is true when nothing is left to wait for.
	Done bool
	// Waiting says what for: a pod and its trouble, or the controller.
	Waiting string
	// Hint says what to do, when there is something.
	Hint string
}

func (s Status) String() string {
	if s.Done {
		return fmt.Sprintf("%d of %d ready", s.Ready, s.Wanted)
	}
	return fmt.Sprintf("%d of %d ready, waiting for %s", s.Ready, s.Wanted, s.Waiting)
}

// Wait returns when the workload is rolled out, or with an error when ctx ends. It calls report with each new status.
func Wait(ctx context.Context, client kubernetes.Interface, w Workload, report func(Status)) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	var last Status
	var lastErr error
	for {
		status, err := Look(ctx, client, w)
		switch {
		case err != nil:
			lastErr = err
		case status != last:
			last, lastErr = status, nil
			report(status)
		}
		if err == nil && status.Done {
			return nil
		}
		select {
		case <-ctx.Done():
			return timeoutError(w, last, lastErr)
		case <-ticker.C:
		}
	}
}

func timeoutError(w Workload, last Status, err error) error {
	if err != nil {
		return fmt.Errorf("wait for %s: %w", w, err)
	}
	if last.Hint != "" {
		return fmt.Errorf("wait for %s: %s (hint: %s)", w, last, last.Hint)
	}
	return fmt.Errorf("wait for %s: %s", w, last)
}

// Look returns the status of a workload now.
func Look(ctx context.Context, client kubernetes.Interface, w Workload) (Status, error) {
	var status Status
	var selector *metav1.LabelSelector
	switch w.Kind {
	case "Deployment":
		d, err := client.AppsV1().Deployments(w.Namespace).Get(ctx, w.Name, metav1.GetOptions{})
		if err != nil {
			return Status{}, fmt.Errorf("get %s: %w", w, err)
		}
		status, selector = deployment(d), d.Spec.Selector
	case "DaemonSet":
		d, err := client.AppsV1().DaemonSets(w.Namespace).Get(ctx, w.Name, metav1.GetOptions{})
		if err != nil {
			return Status{}, fmt.Errorf("get %s: %w", w, err)
		}
		status, selector = daemonSet(d), d.Spec.Selector
	default:
		return Status{}, fmt.Errorf("wait for %s: not a kind with pods", w)
	}
	if status.Done {
		return status, nil
	}
	pods, err := client.CoreV1().Pods(w.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(selector)})
	if err != nil {
		return Status{}, fmt.Errorf("list pods of %s: %w", w, err)
	}
	for i := range pods.Items {
		if trouble, hint := explain(&pods.Items[i]); trouble != "" {
			status.Waiting, status.Hint = trouble, hint
			break
		}
	}
	return status, nil
}

func deployment(d *appsv1.Deployment) Status {
	wanted := 1
	if d.Spec.Replicas != nil {
		wanted = int(*d.Spec.Replicas)
	}
	s := Status{Ready: int(d.Status.AvailableReplicas), Wanted: wanted, Waiting: "the controller to see it"}
	switch {
	case d.Generation > d.Status.ObservedGeneration:
	case int(d.Status.UpdatedReplicas) < wanted:
		s.Waiting = "new pods to be made"
	case d.Status.Replicas > d.Status.UpdatedReplicas:
		s.Waiting = "old pods to go"
	case int(d.Status.AvailableReplicas) < wanted:
		s.Waiting = "pods to become available"
	default:
		s.Done, s.Waiting = true, ""
	}
	return s
}

func daemonSet(d *appsv1.DaemonSet) Status {
	wanted := int(d.Status.DesiredNumberScheduled)
	s := Status{Ready: int(d.Status.NumberAvailable), Wanted: wanted, Waiting: "the controller to see it"}
	switch {
	case d.Generation > d.Status.ObservedGeneration:
	case int(d.Status.UpdatedNumberScheduled) < wanted:
		s.Waiting = "new pods to be made"
	case int(d.Status.NumberAvailable) < wanted:
		s.Waiting = "pods to become available"
	default:
		s.Done, s.Waiting = true, ""
	}
	return s
}

// explain says what keeps a pod from being ready, and what to do; both are empty for a ready pod.
func explain(p *corev1.Pod) (trouble, hint string) {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return "", ""
		}
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return fmt.Sprintf("pod %s: not scheduled: %s", p.Name, c.Message), "make room for it, or see tolerations and nodeSelector in the chart's values"
		}
	}
	if p.Spec.NodeName == "" {
		return fmt.Sprintf("pod %s to be scheduled", p.Name), ""
	}
	where := fmt.Sprintf("pod %s on node %s", p.Name, p.Spec.NodeName)
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if c.State.Waiting == nil {
			continue
		}
		reason := c.State.Waiting.Reason
		if c.State.Waiting.Message != "" {
			reason += ": " + c.State.Waiting.Message
		}
		return where + ": " + reason, hintFor(p, c.State.Waiting.Reason)
	}
	return where + " to become ready", fmt.Sprintf("kubectl -n %s logs %s", p.Namespace, p.Name)
}

func hintFor(p *corev1.Pod, reason string) string {
	switch reason {
	case "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName":
		return "is the image where global.hub and global.tag say? See --set global.hub=… and global.imagePullSecrets"
	case "CrashLoopBackOff", "RunContainerError":
		return fmt.Sprintf("kubectl -n %s logs %s --previous", p.Namespace, p.Name)
	case "ContainerCreating", "PodInitializing", "CreateContainerConfigError":
		return fmt.Sprintf("kubectl -n %s describe pod %s", p.Namespace, p.Name)
	}
	return ""
}
