package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// wayResult is everything that was measured.
type wayResult struct {
	pushes  []push
	changes []change
	// rss is Envoy's resident memory after the pushes and changes, rssLoaded that after the requests, in bytes.
	rss, rssLoaded uint64
	samples        []waySample
}

// waySummary is the last line of the output. The full push is the slowest of all
// starts, from the start of Envoy's process to the last acknowledgement; a change's
// bytes are the most of any. Memory is Envoy's after pushes and changes. Ratios are
// requests a second through the waypoint over those without, medians of the
// repetitions.
type waySummary struct {
	FullPushS      float64 `json:"full_push_s"`
	ChangeAckP99ms float64 `json:"change_ack_p99_ms"`
	ChangeBytes    int     `json:"change_bytes"`
	EnvoyRSSMB     float64 `json:"envoy_rss_mb"`
	H1             float64 `json:"h1_16"`
	H2C            float64 `json:"h2c_16"`
}

func (r *wayResult) of(scenario string, through bool, f func(waySample) float64) float64 {
	var vs []float64
	for _, s := range r.samples {
		if s.scenario == scenario && s.through == through {
			vs = append(vs, f(s))
		}
	}
	return median(vs)
}

func (r *wayResult) ratio(scenario string) float64 {
	without := r.of(scenario, false, wayRate)
	if without == 0 {
		return 0
	}
	return round(r.of(scenario, true, wayRate)/without, 3)
}

func wayRate(s waySample) float64 { return s.result.PerSecond() }

// ackAt is a percentile of the times from a change to its acknowledgement, in milliseconds.
func (r *wayResult) ackAt(percentile int) float64 {
	var acks []time.Duration
	for _, c := range r.changes {
		acks = append(acks, c.ack)
	}
	slices.Sort(acks)
	if len(acks) == 0 {
		return 0
	}
	return round(float64(acks[min(len(acks)-1, len(acks)*percentile/100)])/float64(time.Millisecond), 1)
}

func (r *wayResult) summary() waySummary {
	out := waySummary{ChangeAckP99ms: r.ackAt(99), EnvoyRSSMB: megabytes(r.rss), H1: r.ratio("h1_16"), H2C: r.ratio("h2c_16")}
	for _, p := range r.pushes {
		out.FullPushS = max(out.FullPushS, round(p.full.Seconds(), 3))
	}
	for _, c := range r.changes {
		out.ChangeBytes = max(out.ChangeBytes, c.bytes)
	}
	return out
}

func megabytes(b uint64) float64 { return round(float64(b)/1e6, 1) }

func (r *wayResult) report(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\nfull push\tfrom Envoy's start\tfrom the first response\tbytes\tresponses\tEnvoy's RSS\tresources")
	for i, p := range r.pushes {
		var kinds []string
		for _, k := range slices.Sorted(maps.Keys(p.resources)) {
			kinds = append(kinds, fmt.Sprintf("%d %s", p.resources[k], k[strings.LastIndexByte(k, '.')+1:]))
		}
		fmt.Fprintf(t, "%d\t%.2f s\t%.2f s\t%d\t%d\t%.1f MB\t%s\n", i+1, p.full.Seconds(), p.stream.Seconds(), p.bytes, p.responses, megabytes(p.rss), strings.Join(kinds, ", "))
	}
	if len(r.changes) > 0 {
		fmt.Fprintf(t, "\none change, of %d\tp50 %.1f ms\tp99 %.1f ms\tmost %.1f ms\tat most %d bytes\n",
			len(r.changes), r.ackAt(50), r.ackAt(99), r.ackAt(100), r.summary().ChangeBytes)
	}
	fmt.Fprintf(t, "\nEnvoy's RSS\t%.1f MB\tafter the requests\t%.1f MB\n", megabytes(r.rss), megabytes(r.rssLoaded))
	if len(r.samples) > 0 {
		r.requests(t)
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(r.summary())
}

// requests writes the rates, and where the time of the processors goes.
func (r *wayResult) requests(w io.Writer) {
	columns := slices.Clone(roles)
	for _, s := range r.samples {
		for role := range s.cpu {
			if strings.HasPrefix(role, roleEnvoy+" wrk:") && !slices.Contains(columns, role) {
				columns = append(columns, role)
			}
		}
	}
	slices.Sort(columns[len(roles):])
	fmt.Fprintf(w, "\nrequests\t\t/s\tx without\tp50\tp99\tµs of CPU per request: %s\n", strings.Join(columns, "\t"))
	for _, s := range wayScenarios {
		for _, through := range []bool{false, true} {
			rate := r.of(s.name, through, wayRate)
			if rate == 0 {
				continue
			}
			name, ratio := "without", ""
			if through {
				name, ratio = "through", fmt.Sprintf("%.3f", r.ratio(s.name))
			}
			fmt.Fprintf(w, "%s\t%s\t%.0f\t%s\t%s\t%s", s.name, name, rate, ratio,
				r.latency(s.name, through, func(x waySample) time.Duration { return x.result.P50 }),
				r.latency(s.name, through, func(x waySample) time.Duration { return x.result.P99 }))
			for _, role := range columns {
				fmt.Fprintf(w, "\t%.1f", r.of(s.name, through, func(x waySample) float64 { return x.cpu[role].Seconds() * 1e6 / float64(x.result.Units) }))
			}
			fmt.Fprintln(w)
		}
	}
}

func (r *wayResult) latency(scenario string, through bool, f func(waySample) time.Duration) time.Duration {
	return time.Duration(r.of(scenario, through, func(s waySample) float64 { return float64(f(s)) })).Round(time.Microsecond)
}
