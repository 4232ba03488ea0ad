package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/tests/demo/load"
)

// trafficTimeout bounds the wait for a number of requests, which takes a few seconds at the demo's rate.
const trafficTimeout = 60 * time.Second

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

// Report is the sum over the load generators of both namespaces.
func (s *Stage) Report(ctx context.Context) (load.Report, error) {
	var all []load.Report
	for _, ns := range []string{Namespace, Outside} {
		reports, err := s.Reports(ctx, ns)
		if err != nil {
			return load.Report{}, err
		}
		all = append(all, reports...)
	}
	return Sum(all), nil
}

// MoreTraffic waits until the load in both namespaces made so many more requests, with all streams open.
func (s *Stage) MoreTraffic(ctx context.Context, more int64) (load.Report, error) {
	begin, err := s.Report(ctx)
	if err != nil {
		return begin, err
	}
	now := begin
	err = Poll(ctx, trafficTimeout, func(ctx context.Context) error {
		r, err := s.Report(ctx)
		if err != nil {
			return err
		}
		now = r
		if done := now.HTTP.Requests - begin.HTTP.Requests; done < more {
			return fmt.Errorf("%d of %d requests were made: %s", done, more, Describe(now))
		}
		if want := LoadReplicas * (StreamsPerLoad + OutsideStreams); now.Streams.Open != want {
			return fmt.Errorf("%d of %d streams are open: %s", now.Streams.Open, want, Describe(now))
		}
		return nil
	})
	return now, err
}

// Look captures what crosses between the nodes among the shop's pods while some requests are made.
func (s *Stage) Look(ctx context.Context, requests int64) (Traffic, error) {
	pods, err := s.Pods(ctx, Namespace, "")
	if err != nil {
		return Traffic{}, err
	}
	capture, err := s.CaptureBridge(ctx)
	if err != nil {
		return Traffic{}, err
	}
	_, traffic := s.MoreTraffic(ctx, requests)
	packets, err := capture.Stop()
	return Between(packets, PodIPs(pods)), errors.Join(err, traffic)
}

// Describe is a load report on one line.
func Describe(r load.Report) string {
	text := fmt.Sprintf("%d requests on %d connections, %d failed; %d streams open, %d broke",
		r.HTTP.Requests, r.HTTP.Connections, r.HTTP.Failed, r.Streams.Open, r.Streams.Broken+r.Streams.Refused)
	if len(r.Failures) > 0 {
		text += fmt.Sprintf("; first failure: %s %s: %s", r.Failures[0].Target, r.Failures[0].Kind, r.Failures[0].Error)
	}
	if len(r.Streams.Ended) > 0 {
		text += fmt.Sprintf("; first broken stream: %s", r.Streams.Ended[0].Error)
	}
	return text
}
