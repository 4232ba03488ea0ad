package telemetry

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// MaxTCPSeries bounds the label sets kept: a node talks to far fewer, and 20,000 of about 1 KiB are 20 MiB.
	MaxTCPSeries = 20_000
	// tcpSeriesIdle is how long a label set without a connection stays when room is needed. Scrapes are a
	// minute apart at most, so the last value of an evicted series has been seen.
	tcpSeriesIdle = 10 * time.Minute
	// tcpSweepEvery bounds how often the table is searched for idle series once it is full.
	tcpSweepEvery = 10 * time.Second
)

// Peer is one end of a connection in metric labels. Empty fields become "unknown".
type Peer struct {
	Workload, CanonicalService, CanonicalRevision, Namespace, Principal, App, Version, Cluster string
}

// TCPLabels is a label set of the TCP metrics. It is comparable and is the key of a series.
type TCPLabels struct {
	Reporter                               string
	Source, Destination                    Peer
	Service, ServiceName, ServiceNamespace string
	ResponseFlags, Security                string
}

type tcpSeries struct {
	labels                                 TCPLabels
	opened, closed, failed, sent, received atomic.Uint64
	users                                  int       // guarded by TCPMetrics.mu
	idleSince                              time.Time // guarded by TCPMetrics.mu; set when users drops to 0
}

// TCPMetrics is Istio's TCP metric set with a bounded number of series.
type TCPMetrics struct {
	mu        sync.Mutex
	series    map[TCPLabels]*tcpSeries
	limit     int
	now       func() time.Time
	lastSweep time.Time
	overflow  atomic.Uint64

	opened, closed, failed, sent, received, dropped *prometheus.Desc
}

// NewTCPMetrics returns the set, registered with reg.
func NewTCPMetrics(reg prometheus.Registerer) *TCPMetrics {
	m := newTCPMetrics(MaxTCPSeries, time.Now)
	reg.MustRegister(m)
	return m
}

func newTCPMetrics(limit int, now func() time.Time) *TCPMetrics {
	names := tcpLabelNames()
	return &TCPMetrics{
		series:   map[TCPLabels]*tcpSeries{},
		limit:    limit,
		now:      now,
		opened:   prometheus.NewDesc(MetricConnectionsOpened, "TCP connections opened.", names, nil),
		closed:   prometheus.NewDesc(MetricConnectionsClosed, "TCP connections closed.", names, nil),
		failed:   prometheus.NewDesc(MetricConnectionsFailed, "TCP connections that failed or were refused.", names, nil),
		sent:     prometheus.NewDesc(MetricSentBytes, "Bytes sent in response, to the client.", names, nil),
		received: prometheus.NewDesc(MetricReceivedBytes, "Bytes received in request, from the client.", names, nil),
		dropped:  prometheus.NewDesc(MetricSeriesDropped, "Connections counted without labels because too many series exist.", nil, nil),
	}
}

// TCPConnection counts one connection. Its methods may be called from any goroutine; Close once.
type TCPConnection struct {
	m      *TCPMetrics
	series *tcpSeries
}

// Open counts an opened connection.
func (m *TCPMetrics) Open(l TCPLabels) *TCPConnection {
	s := m.acquire(l)
	s.opened.Add(1)
	return &TCPConnection{m: m, series: s}
}

// AddBytes counts bytes of the request (from the client) and of the response
// (to the client). Both reporters count the same, as Istio does.
func (c *TCPConnection) AddBytes(request, response uint64) {
	c.series.received.Add(request)
	c.series.sent.Add(response)
}

// Close counts the end; flags other than FlagNone also count a failure.
func (c *TCPConnection) Close(flags string) {
	s := c.series
	if flags != FlagNone && flags != "" && flags != s.labels.ResponseFlags {
		l := s.labels
		l.ResponseFlags = flags
		failed := c.m.acquire(l)
		failed.closed.Add(1)
		failed.failed.Add(1)
		c.m.release(failed)
	} else {
		s.closed.Add(1)
	}
	c.m.release(s)
}

func (m *TCPMetrics) acquire(l TCPLabels) *tcpSeries {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.series[l]
	if !ok {
		if len(m.series) >= m.limit {
			m.sweepLocked()
		}
		if len(m.series) >= m.limit {
			m.overflow.Add(1)
			l = TCPLabels{Reporter: l.Reporter}
			s, ok = m.series[l]
		}
		if !ok {
			s = &tcpSeries{labels: l}
			m.series[l] = s
		}
	}
	s.users++
	return s
}

func (m *TCPMetrics) release(s *tcpSeries) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.users--
	if s.users == 0 {
		s.idleSince = m.now()
	}
}

func (m *TCPMetrics) sweepLocked() {
	now := m.now()
	if now.Sub(m.lastSweep) < tcpSweepEvery {
		return
	}
	m.lastSweep = now
	for l, s := range m.series {
		if s.users == 0 && now.Sub(s.idleSince) >= tcpSeriesIdle {
			delete(m.series, l)
		}
	}
}

// Describe implements prometheus.Collector.
func (m *TCPMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.opened, m.closed, m.failed, m.sent, m.received, m.dropped} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *TCPMetrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	all := make([]*tcpSeries, 0, len(m.series))
	for _, s := range m.series {
		all = append(all, s)
	}
	m.mu.Unlock()
	for _, s := range all {
		values := s.labels.values()
		emit := func(d *prometheus.Desc, v *atomic.Uint64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v.Load()), values...)
		}
		if s.opened.Load() > 0 {
			emit(m.opened, &s.opened)
			emit(m.sent, &s.sent)
			emit(m.received, &s.received)
		}
		emit(m.closed, &s.closed)
		if s.failed.Load() > 0 {
			emit(m.failed, &s.failed)
		}
	}
	ch <- prometheus.MustNewConstMetric(m.dropped, prometheus.CounterValue, float64(m.overflow.Load()))
}

func tcpLabelNames() []string {
	return []string{
		LabelReporter,
		LabelSourceWorkload, LabelSourceCanonicalService, LabelSourceCanonicalRevision, LabelSourceNamespace,
		LabelSourcePrincipal, LabelSourceApp, LabelSourceVersion, LabelSourceCluster,
		LabelDestinationService, LabelDestinationServiceNamespace, LabelDestinationServiceName,
		LabelDestinationWorkload, LabelDestinationCanonicalService, LabelDestinationCanonicalRevision,
		LabelDestinationNamespace, LabelDestinationPrincipal, LabelDestinationApp, LabelDestinationVersion,
		LabelDestinationCluster,
		LabelRequestProtocol, LabelResponseFlags, LabelSecurityPolicy,
	}
}

// values returns the label values in the order of tcpLabelNames.
func (l TCPLabels) values() []string {
	flags, security := l.ResponseFlags, l.Security
	if flags == "" {
		flags = FlagNone
	}
	if security == "" {
		security = SecurityUnknown
	}
	v := append(make([]string, 0, 23), l.Reporter)
	v = l.Source.appendValues(v)
	v = append(v, l.Service, l.ServiceNamespace, l.ServiceName)
	v = l.Destination.appendValues(v)
	v = append(v, ProtocolTCP, flags, security)
	for i := range v {
		if v[i] == "" {
			v[i] = Unknown
		}
	}
	return v
}

func (p Peer) appendValues(v []string) []string {
	return append(v, p.Workload, p.CanonicalService, p.CanonicalRevision, p.Namespace, p.Principal, p.App, p.Version, p.Cluster)
}
