package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
	"time"
)

// summary is the last line of the output. Ratios are meshed over direct, medians
// of the repetitions. CPU is that of both proxies together: a second per GB
// (10⁹ bytes) of stream1, microseconds per request of http16 and per connection
// of conns128. RSS is the larger of the two idle proxies'.
type summary struct {
	Stream1         float64 `json:"stream1"`
	Stream8         float64 `json:"stream8"`
	HTTP1           float64 `json:"http1"`
	HTTP16          float64 `json:"http16"`
	HTTP128         float64 `json:"http128"`
	Conns1          float64 `json:"conns1"`
	Conns128        float64 `json:"conns128"`
	P99HTTP16ms     float64 `json:"p99_http16_ms"`
	CPUSPerGB       float64 `json:"cpu_s_per_gb"`
	CPUUsPerRequest float64 `json:"cpu_us_per_request"`
	CPUUsPerConn    float64 `json:"cpu_us_per_conn"`
	RSSIdleMB       float64 `json:"rss_idle_mb"`
}

// of gives f of every sample of a scenario.
func of(samples []sample, name string, meshed bool, f func(sample) float64) []float64 {
	var vs []float64
	for _, s := range samples {
		if s.scenario == name && s.meshed == meshed {
			vs = append(vs, f(s))
		}
	}
	return vs
}

// median of nothing is 0: a scenario that was not run.
func median(vs []float64) float64 {
	if len(vs) == 0 {
		return 0
	}
	slices.Sort(vs)
	if n := len(vs); n%2 == 0 {
		return (vs[n/2-1] + vs[n/2]) / 2
	}
	return vs[len(vs)/2]
}

func rate(s sample) float64 { return s.result.PerSecond() }

func cpuPerUnit(s sample) float64 { return s.cpu.Seconds() / float64(s.result.Units) }

func p99(s sample) float64 { return float64(s.result.P99) / float64(time.Millisecond) }

func ratio(samples []sample, name string) float64 {
	direct := median(of(samples, name, false, rate))
	if direct == 0 {
		return 0
	}
	return round(median(of(samples, name, true, rate))/direct, 3)
}

func round(v float64, digits int) float64 {
	p := math.Pow10(digits)
	return math.Round(v*p) / p
}

func summarise(samples []sample, idleRSS uint64) summary {
	perUnit := func(name string) float64 { return median(of(samples, name, true, cpuPerUnit)) }
	return summary{
		Stream1: ratio(samples, "stream1"), Stream8: ratio(samples, "stream8"),
		HTTP1: ratio(samples, "http1"), HTTP16: ratio(samples, "http16"), HTTP128: ratio(samples, "http128"),
		Conns1: ratio(samples, "conns1"), Conns128: ratio(samples, "conns128"),
		P99HTTP16ms:     round(median(of(samples, "http16", true, p99)), 3),
		CPUSPerGB:       round(perUnit("stream1")*1e9, 3),
		CPUUsPerRequest: round(perUnit("http16")*1e6, 1),
		CPUUsPerConn:    round(perUnit("conns128")*1e6, 1),
		RSSIdleMB:       round(float64(idleRSS)/1e6, 1),
	}
}

func report(w io.Writer, samples []sample, idleRSS uint64) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\nscenario\tdirect\tmeshed\tx direct\tp50 direct\tp50 meshed\tp99 direct\tp99 meshed\tproxy CPU\t")
	for _, s := range scenarios {
		direct, meshed := of(samples, s.name, false, rate), of(samples, s.name, true, rate)
		if len(direct) == 0 {
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%.3f\t%s\t%s\t%s\t%s\t%s\t\n", s.name,
			unit(s, median(direct)), unit(s, median(meshed)), ratio(samples, s.name),
			latency(samples, s, false, 50), latency(samples, s, true, 50), latency(samples, s, false, 99), latency(samples, s, true, 99),
			cost(s, median(of(samples, s.name, true, cpuPerUnit))))
	}
	fmt.Fprintf(t, "\nidle RSS of a ztunnel\t%.1f MB\t\n\n", float64(idleRSS)/1e6)
	if err := t.Flush(); err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(summarise(samples, idleRSS))
}

func unit(s scenario, perSecond float64) string {
	if isStream(s) {
		return fmt.Sprintf("%.2f Gbit/s", perSecond*8/1e9)
	}
	return fmt.Sprintf("%.0f/s", perSecond)
}

func cost(s scenario, secondsPerUnit float64) string {
	if isStream(s) {
		return fmt.Sprintf("%.2f s/GB", secondsPerUnit*1e9)
	}
	return fmt.Sprintf("%.1f µs", secondsPerUnit*1e6)
}

func latency(samples []sample, s scenario, meshed bool, percentile int) string {
	if isStream(s) {
		return "-"
	}
	v := median(of(samples, s.name, meshed, func(x sample) float64 {
		if percentile == 50 {
			return float64(x.result.P50)
		}
		return float64(x.result.P99)
	}))
	return time.Duration(v).Round(time.Microsecond).String()
}
