package ztunnel

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/telemetry"
)

// metrics are those of the process; those of connections are telemetry.TCPMetrics.
type metrics struct {
	reg       prometheus.Registerer
	fetched   *prometheus.CounterVec
	fetchTime prometheus.Histogram
	connected prometheus.Gauge
	handled   *prometheus.CounterVec
	rejected  *prometheus.CounterVec
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
		handled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: telemetry.MetricXDSResources, Help: "Resources received, by type.",
		}, []string{telemetry.LabelType}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: telemetry.MetricXDSRejected, Help: "Resources refused, by type.",
		}, []string{telemetry.LabelType}),
	}
	reg.MustRegister(m.fetched, m.fetchTime, m.connected, m.handled, m.rejected)
	return m
}

// pods shows how many pods are served.
func (m *metrics) pods(count func() float64) {
	m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: telemetry.MetricPods, Help: "Pods that the node agent named.",
	}, count))
}

func (m *metrics) certificate(_ identity.Identity, took time.Duration, err error) {
	result := telemetry.ResultOK
	if err != nil {
		result = telemetry.ResultError
	}
	m.fetched.WithLabelValues(result).Inc()
	m.fetchTime.Observe(took.Seconds())
}

func (m *metrics) xdsConnected(err error) {
	if err != nil {
		m.connected.Set(0)
		return
	}
	m.connected.Set(1)
}

func (m *metrics) xdsHandled(typeURL string, resources, removed, rejected int) {
	m.handled.WithLabelValues(typeURL).Add(float64(resources + removed))
	m.rejected.WithLabelValues(typeURL).Add(float64(rejected))
}
