package push

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Names of metrics and labels.
const (
	labelType  = "type"
	labelProxy = "proxy"
)

// metrics counts what streams do. Per-proxy series exist only while the proxy is connected.
type metrics struct {
	sent, acked, rejected, stale *prometheus.CounterVec
	bytes                        *prometheus.CounterVec
	ackSeconds, convergence      *prometheus.HistogramVec
	refused                      *prometheus.CounterVec
	unwarmed                     prometheus.Counter
	lag, connected, unacked      *prometheus.Desc
	rejectedNow                  *prometheus.Desc
	proxies                      func() []ProxyStatus
}

// latencyBuckets reach from a local round trip to a proxy that is stuck.
var latencyBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}

func newMetrics(proxies func() []ProxyStatus) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: latencyBuckets}, []string{labelType})
	}
	return &metrics{
		sent:        counter("istiod_xds_responses_total", "Responses sent.", labelType),
		acked:       counter("istiod_xds_acks_total", "Responses that a proxy accepted.", labelType),
		rejected:    counter("istiod_xds_rejects_total", "Responses that a proxy rejected, wholly or in part.", labelType),
		stale:       counter("istiod_xds_stale_nonces_total", "Requests whose nonce is not of a response in flight.", labelType),
		bytes:       counter("istiod_xds_sent_bytes_total", "Bytes of the resources sent.", labelType),
		refused:     counter("istiod_xds_refused_streams_total", "Streams refused, by reason.", "reason"),
		ackSeconds:  histogram("istiod_xds_ack_seconds", "Time from a response to its acknowledgement."),
		convergence: histogram("istiod_xds_convergence_seconds", "Time from a change in istiod to the acknowledgement of a proxy that has it."),
		unwarmed:    prometheus.NewCounter(prometheus.CounterOpts{Name: "istiod_xds_warming_timeouts_total", Help: "Times that a proxy's routes went on although it had not taken all endpoints of new clusters."}),
		rejectedNow: prometheus.NewDesc("istiod_xds_rejected_resources", "Resources whose newest form the proxy refused.", []string{labelProxy, labelType}, nil),
		lag: prometheus.NewDesc("istiod_xds_ack_lag_seconds", "Age of the oldest response that the proxy has not acknowledged; 0 when none.",
			[]string{labelProxy, labelType}, nil),
		unacked:   prometheus.NewDesc("istiod_xds_behind_changes", "How many changes of the state the proxy has not been sent.", []string{labelProxy, labelType}, nil),
		connected: prometheus.NewDesc("istiod_xds_proxies", "Proxies connected.", nil, nil),
		proxies:   proxies,
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.sent, m.acked, m.rejected, m.stale, m.bytes, m.refused, m.ackSeconds, m.convergence, m.unwarmed}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.lag
	ch <- m.unacked
	ch <- m.connected
	ch <- m.rejectedNow
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
	proxies := m.proxies()
	ch <- prometheus.MustNewConstMetric(m.connected, prometheus.GaugeValue, float64(len(proxies)))
	seen := map[string]bool{}
	for _, p := range proxies {
		// Two streams of one proxy, as in the moment of a reconnect, would be a duplicate series.
		if seen[p.Proxy] {
			continue
		}
		seen[p.Proxy] = true
		for _, t := range p.Types {
			ch <- prometheus.MustNewConstMetric(m.lag, prometheus.GaugeValue, t.LagSeconds, p.Proxy, t.Type)
			ch <- prometheus.MustNewConstMetric(m.unacked, prometheus.GaugeValue, float64(t.Behind), p.Proxy, t.Type)
			ch <- prometheus.MustNewConstMetric(m.rejectedNow, prometheus.GaugeValue, float64(len(t.Rejected)), p.Proxy, t.Type)
		}
	}
}

func (m *metrics) observe(h *prometheus.HistogramVec, typeURL string, since, now time.Time) {
	h.WithLabelValues(shortType(typeURL)).Observe(now.Sub(since).Seconds())
}
