package agent

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/agent/relay"
	"github.com/ambit-mesh/ambit/waypoint/agent/stats"
)

// labelDirection tells what went to istiod from what came.
const (
	labelDirection = "direction"
	directionDown  = "from_istiod"
	directionUp    = "to_istiod"
)

// metrics are those of the agent as a process; what Envoy counts is on the same page.
type metrics struct {
	reg       prometheus.Registerer
	fetched   *prometheus.CounterVec
	fetchTime prometheus.Histogram
	connected prometheus.Gauge
	rejected  *prometheus.CounterVec
	bytes     *prometheus.CounterVec

	mu       sync.Mutex
	upstream error // why there is no stream to istiod
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		reg: reg,
		fetched: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: telemetry.MetricCertificates, Help: "Certificate requests by result.",
		}, []string{telemetry.LabelResult}),
		fetchTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: telemetry.MetricCertificateSeconds, Help: "Time of one certificate request.", Buckets: prometheus.DefBuckets,
		}),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: telemetry.MetricXDSConnected, Help: "Whether the stream to istiod is up.",
		}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: telemetry.MetricXDSRejected, Help: "Responses that Envoy refused, by type.",
		}, []string{telemetry.LabelType}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_xds_relayed_bytes_total", Help: "Bytes carried between Envoy and istiod.",
		}, []string{labelDirection}),
	}
	reg.MustRegister(m.fetched, m.fetchTime, m.connected, m.rejected, m.bytes)
	return m
}

// pages shows what of Envoy's statistics could not be shown.
func (m *metrics) pages(r *stats.Rewriter) {
	m.reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "ambit_stats_dropped_total", Help: "Series and lines of Envoy's statistics that were left out.",
	}, func() float64 { return float64(r.Dropped()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "ambit_stats_unreachable_total", Help: "Scrapes at which Envoy did not answer.",
		}, func() float64 { return float64(r.Unreachable()) }))
}

func (m *metrics) certificate(took time.Duration, err error) {
	result := telemetry.ResultOK
	if err != nil {
		result = telemetry.ResultError
	}
	m.fetched.WithLabelValues(result).Inc()
	m.fetchTime.Observe(took.Seconds())
}

func (m *metrics) relay() relay.Hooks {
	return relay.Hooks{
		Connected: m.setUpstream,
		Passed: func(fromIstiod bool, bytes int) {
			direction := directionUp
			if fromIstiod {
				direction = directionDown
			}
			m.bytes.WithLabelValues(direction).Add(float64(bytes))
		},
		Rejected: func(typeURL string) { m.rejected.WithLabelValues(typeURL).Inc() },
	}
}

func (m *metrics) setUpstream(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.upstream = err
	if err != nil {
		m.connected.Set(0)
		return
	}
	m.connected.Set(1)
}

// disconnected says why there is no stream to istiod, or nothing.
func (m *metrics) disconnected() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.upstream
}
