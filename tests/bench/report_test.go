package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/tests/bench/load"
)

func taken(name string, meshed bool, units uint64, cpu time.Duration) sample {
	return sample{name, meshed, load.Result{Units: units, Elapsed: time.Second, P50: time.Millisecond, P99: 2 * time.Millisecond}, cpu}
}

func TestReportEndsWithMediansAsJSON(t *testing.T) {
	samples := []sample{
		taken("stream1", false, 4e9, 0), taken("stream1", true, 1e9, 2*time.Second),
		taken("stream1", false, 2e9, 0), taken("stream1", true, 3e9, 3*time.Second),
		taken("stream1", false, 3e9, 0), taken("stream1", true, 2e9, 6*time.Second),
		taken("http16", false, 50_000, 0), taken("http16", true, 20_000, time.Second),
	}
	var out bytes.Buffer
	if err := report(&out, samples, 25e6); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var got summary
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
		t.Fatalf("last line %q: %v", lines[len(lines)-1], err)
	}
	want := summary{Stream1: 0.667, HTTP16: 0.4, P99HTTP16ms: 2, CPUSPerGB: 2, CPUUsPerRequest: 50, RSSIdleMB: 25}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	if !strings.Contains(out.String(), "16.00 Gbit/s") {
		t.Errorf("table lacks the meshed median:\n%s", out.String())
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{3, 1}, 2}, {[]float64{9, 1, 5}, 5}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.in, got, c.want)
		}
	}
}
