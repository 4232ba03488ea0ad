package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/cni-plugin/plugin"
)

// Metrics are what the agent counts.
type Metrics struct {
	proxies   prometheus.Gauge
	enrolment prometheus.Histogram
	released  prometheus.Counter
	repairs   prometheus.Counter
	failures  prometheus.Counter
	questions *prometheus.HistogramVec
	installs  prometheus.Gauge
	pods      *prometheus.GaugeVec
}

// NewMetrics registers the agent's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	// From a millisecond, which capture takes, to the longest wait for ztunnel.
	buckets := prometheus.ExponentialBuckets(0.001, 3, 10)
	m := &Metrics{
		proxies: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_agent_ztunnel_connections", Help: "Connected ztunnels; two during an upgrade."}),
		enrolment: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ambit_agent_enrolment_seconds", Help: "Time to bring a pod into the mesh.", Buckets: buckets}),
		released: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_agent_released_total", Help: "Running pods taken out of the mesh."}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_agent_repairs_total", Help: "Times that capture of a pod was found incomplete and put back."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_agent_failures_total", Help: "Failed tries to bring a pod to its wished state; each is tried again."}),
		questions: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ambit_agent_cni_request_seconds", Help: "Answers to the CNI plugin.", Buckets: buckets}, []string{"verb", "result"}),
		installs: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_agent_cni_installed", Help: "1 while the CNI plugin is in place on the node."}),
		pods: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambit_agent_pods", Help: "Pods of this node in the mesh (enabled), or waiting for it (pending)."}, []string{"state"}),
	}
	reg.MustRegister(m.proxies, m.enrolment, m.released, m.repairs, m.failures, m.questions, m.installs, m.pods)
	return m
}

func (m *Metrics) enrolled(begin time.Time) { m.enrolment.Observe(time.Since(begin).Seconds()) }

// setPods is called after each change of the pods' number or state.
func (m *Metrics) setPods(enabled, pending int) {
	m.pods.WithLabelValues("enabled").Set(float64(enabled))
	m.pods.WithLabelValues("pending").Set(float64(pending))
}

func (m *Metrics) question(verb string, r plugin.Reply, begin time.Time) {
	result := "passed"
	switch {
	case r.Error != "":
		result = "refused"
	case r.Enrolled:
		result = "enrolled"
	}
	m.questions.WithLabelValues(verb, result).Observe(time.Since(begin).Seconds())
}
