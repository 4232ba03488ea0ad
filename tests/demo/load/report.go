package load

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/tests/demo/httpconn"
)

const (
	// maxSamples bounds how many failures are kept in full; counts are never cut.
	maxSamples = 50
	// maxLatencies bounds the memory of latencies: the newest replace the oldest.
	maxLatencies = 1 << 14
)

// Report is what became of the load since the last reset.
type Report struct {
	Name    string        `json:"name"`
	Since   time.Time     `json:"since"`
	HTTP    HTTPReport    `json:"http"`
	Streams StreamsReport `json:"streams"`
	// Failures are the first ones in full.
	Failures []Failure `json:"failures,omitempty"`
}

// HTTPReport counts requests.
type HTTPReport struct {
	Requests    int64            `json:"requests"`
	Failed      int64            `json:"failed"`
	Connections int64            `json:"connections"`
	ByKind      map[string]int64 `json:"byKind,omitempty"`
	ByTarget    map[string]int64 `json:"byTarget,omitempty"` // failed
	P50         float64          `json:"p50Ms"`
	P99         float64          `json:"p99Ms"`
	Max         float64          `json:"maxMs"`
}

// StreamsReport counts long-lived streams.
type StreamsReport struct {
	Open    int              `json:"open"`
	Opened  int64            `json:"opened"`
	Refused int64            `json:"refused"`
	Broken  int64            `json:"broken"` // ended without being asked to
	ByKind  map[string]int64 `json:"byKind,omitempty"`
	Echoed  int64            `json:"echoed"` // messages
	MaxEcho float64          `json:"maxEchoMs"`
	// Since is when each open stream was opened, oldest first.
	Since []time.Time `json:"openSince,omitempty"`
	// Ended are streams that broke, first ones in full.
	Ended []StreamEnd `json:"ended,omitempty"`
}

// StreamEnd is one stream that broke.
type StreamEnd struct {
	Target string    `json:"target"`
	Opened time.Time `json:"opened"`
	Ended  time.Time `json:"ended"`
	Kind   string    `json:"kind"`
	Error  string    `json:"error"`
}

// Failure is one thing that went wrong.
type Failure struct {
	Time   time.Time `json:"time"`
	Target string    `json:"target"`
	Kind   string    `json:"kind"`
	Error  string    `json:"error"`
}

// Broken is every failure of the report as one number.
func (r Report) Broken() int64 { return r.HTTP.Failed + r.Streams.Refused + r.Streams.Broken }

// kindStatus is an answer that is not a success, kindChanged a message that came back changed.
const kindStatus = "status"

// recorder collects; safe for concurrent use.
type recorder struct {
	mu        sync.Mutex
	report    Report
	latencies []time.Duration
	next      int // of latencies, once it is full
	open      map[int]time.Time
}

func newRecorder(name string) *recorder {
	r := &recorder{open: map[int]time.Time{}}
	r.report.Name = name
	r.reset()
	return r
}

// reset zeroes all counts; open streams stay known.
func (r *recorder) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report = Report{Name: r.report.Name, Since: time.Now()}
	r.report.HTTP.ByKind, r.report.HTTP.ByTarget, r.report.Streams.ByKind = map[string]int64{}, map[string]int64{}, map[string]int64{}
	r.latencies, r.next = nil, 0
}

// request counts one HTTP request.
func (r *recorder) request(target string, resp httpconn.Response, err error, took time.Duration, connections int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := &r.report.HTTP
	h.Requests++
	h.Connections += connections
	if len(r.latencies) < maxLatencies {
		r.latencies = append(r.latencies, took)
	} else {
		r.latencies[r.next] = took
		r.next = (r.next + 1) % maxLatencies
	}
	h.Max = max(h.Max, milliseconds(took))
	var kind, text string
	switch {
	case err != nil:
		kind, text = httpconn.Kind(err), err.Error()
	case resp.Status >= http.StatusBadRequest:
		kind, text = kindStatus, http.StatusText(resp.Status)+": "+string(resp.Body)
	default:
		return
	}
	h.Failed++
	h.ByKind[kind]++
	h.ByTarget[target]++
	r.sample(target, kind, text)
}

// sample keeps a failure in full; the caller holds the lock.
func (r *recorder) sample(target, kind, text string) {
	if len(r.report.Failures) < maxSamples {
		r.report.Failures = append(r.report.Failures, Failure{time.Now(), target, kind, text})
	}
}

func (r *recorder) streamRefused(target string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Streams.Refused++
	r.sample(target, "stream "+httpconn.Kind(err), err.Error())
}

func (r *recorder) streamOpened(id int, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Streams.Opened++
	r.open[id] = at
}

func (r *recorder) streamEnded(id int, target string, opened time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, id)
	if errors.Is(err, errAsked) {
		return
	}
	if err == nil {
		err = io.EOF
	}
	s := &r.report.Streams
	kind := httpconn.Kind(err)
	s.Broken++
	s.ByKind[kind]++
	if len(s.Ended) < maxSamples {
		s.Ended = append(s.Ended, StreamEnd{target, opened, time.Now(), kind, err.Error()})
	}
}

func (r *recorder) echoed(took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Streams.Echoed++
	r.report.Streams.MaxEcho = max(r.report.Streams.MaxEcho, milliseconds(took))
}

// snapshot is a copy that stays as it is.
func (r *recorder) snapshot() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.report
	out.HTTP.ByKind, out.HTTP.ByTarget = maps.Clone(out.HTTP.ByKind), maps.Clone(out.HTTP.ByTarget)
	out.Streams.ByKind = maps.Clone(out.Streams.ByKind)
	out.Streams.Ended, out.Failures = slices.Clone(out.Streams.Ended), slices.Clone(out.Failures)
	out.Streams.Open = len(r.open)
	out.Streams.Since = slices.SortedFunc(maps.Values(r.open), time.Time.Compare)
	sorted := slices.Sorted(slices.Values(r.latencies))
	if n := len(sorted); n > 0 {
		out.HTTP.P50, out.HTTP.P99 = milliseconds(sorted[n/2]), milliseconds(sorted[n*99/100])
	}
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
