package stage

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sync/errgroup"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/tests/demo/load"
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
			if Captured(p) != want {
				return fmt.Errorf("pod %q: captured is %t", p.Name, !want)
			}
		}
		return nil
	})
}

// Reports reads the reports of a namespace's load generators. It asks inside their pods, on loopback, so that what
// happens to the network does not touch the answer.
func (s *Stage) Reports(ctx context.Context, namespace string) ([]load.Report, error) {
	var mu sync.Mutex
	var reports []load.Report
	err := s.onLoad(ctx, namespace, func(out string) error {
		var r load.Report
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			return fmt.Errorf("decode a load report: %w", err)
		}
		mu.Lock()
		defer mu.Unlock()
		reports = append(reports, r)
		return nil
	}, "GET", "/report")
	return reports, err
}

// ResetLoad zeroes the counts of a namespace's load generators.
func (s *Stage) ResetLoad(ctx context.Context, namespace string) error {
	return s.onLoad(ctx, namespace, nil, "POST", "/reset")
}

// ReopenStreams makes a namespace's load generators end their long-lived streams in order and open new ones.
func (s *Stage) ReopenStreams(ctx context.Context, namespace string) error {
	return s.onLoad(ctx, namespace, nil, "POST", "/streams/reopen")
}

func (s *Stage) onLoad(ctx context.Context, namespace string, use func(string) error, method, path string) error {
	pods, err := s.Pods(ctx, namespace, "app="+Load)
	if err != nil {
		return err
	}
	if len(pods) == 0 {
		return fmt.Errorf("ask the load generators of %q: there are none", namespace)
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range pods {
		group.Go(func() error {
			out, err := s.Exec(ctx, namespace, p.Name, "/usr/local/bin/tools", "request", method, fmt.Sprintf("http://127.0.0.1:%d%s", reportPort, path))
			if err != nil || use == nil {
				return err
			}
			return use(out)
		})
	}
	return group.Wait()
}

// Sum adds reports up: counts are added, times are the worst.
func Sum(reports []load.Report) load.Report {
	var sum load.Report
	for _, r := range reports {
		sum.HTTP.Requests += r.HTTP.Requests
		sum.HTTP.Failed += r.HTTP.Failed
		sum.HTTP.Connections += r.HTTP.Connections
		sum.HTTP.P50, sum.HTTP.P99, sum.HTTP.Max = max(sum.HTTP.P50, r.HTTP.P50), max(sum.HTTP.P99, r.HTTP.P99), max(sum.HTTP.Max, r.HTTP.Max)
		sum.Streams.Open += r.Streams.Open
		sum.Streams.Opened += r.Streams.Opened
		sum.Streams.Refused += r.Streams.Refused
		sum.Streams.Broken += r.Streams.Broken
		sum.Streams.Echoed += r.Streams.Echoed
		sum.Streams.MaxEcho = max(sum.Streams.MaxEcho, r.Streams.MaxEcho)
		sum.Streams.Since = append(sum.Streams.Since, r.Streams.Since...)
		sum.Streams.Ended = append(sum.Streams.Ended, r.Streams.Ended...)
		sum.Failures = append(sum.Failures, r.Failures...)
	}
	return sum
}
