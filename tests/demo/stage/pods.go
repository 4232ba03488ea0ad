package stage

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/ports"
)

// Pods lists the running pods of a namespace that a selector names; an empty one means all.
func (s *Stage) Pods(ctx context.Context, namespace, selector string) ([]corev1.Pod, error) {
	var list corev1.PodList
	if err := s.Get(ctx, &list, "pods", "-n", namespace, "-l", selector); err != nil {
		return nil, err
	}
	var running []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning {
			running = append(running, p)
		}
	}
	return running, nil
}

// Captured says whether the node agent annotated the pod as captured.
func Captured(p corev1.Pod) bool {
	return p.Annotations[ports.AnnotationRedirection] == ports.AnnotationRedirectionEnabled
}

// PodIPs are the addresses of pods.
func PodIPs(pods []corev1.Pod) map[netip.Addr]string {
	ips := map[netip.Addr]string{}
	for _, p := range pods {
		if ip, err := netip.ParseAddr(p.Status.PodIP); err == nil {
			ips[ip] = p.Name
		}
	}
	return ips
}

// Lives are the pods' lives so far: uid, start times and restarts. They are equal exactly if nothing restarted.
func Lives(pods []corev1.Pod) map[string]string {
	lives := map[string]string{}
	for _, p := range pods {
		life := string(p.UID)
		for _, c := range p.Status.ContainerStatuses {
			started := "not running"
			if c.State.Running != nil {
				started = c.State.Running.StartedAt.String()
			}
			life += fmt.Sprintf(" %s started %s, %d restarts", c.Name, started, c.RestartCount)
		}
		lives[p.Name] = life
	}
	return lives
}

// WaitCaptured waits until every pod of the namespace is captured, or none is.
func (s *Stage) WaitCaptured(ctx context.Context, namespace string, want bool) error {
	return Poll(ctx, rolloutTimeout, func(ctx context.Context) error {
		pods, err := s.Pods(ctx, namespace, "")
		if err != nil {
			return err
		}
		for _, p := range pods {
			if p.Labels[ports.LabelDataplaneMode] == ports.DataplaneModeNone {
				continue // a waypoint's
			}
			if Captured(p) != want {
				return fmt.Errorf("pod %q: captured is %t", p.Name, !want)
			}
		}
		return nil
	})
}
