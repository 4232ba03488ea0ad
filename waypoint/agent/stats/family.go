package stats

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
)

// family is one metric with its series, by their labels.
type family struct {
	name, help string
	kind       dto.MetricType
	limit      int
	dropped    uint64
	series     map[string]*series
	order      []*series // as they came
}

// series is one label set and what was added up under it.
type series struct {
	labels  []label // sorted
	value   float64 // of a counter or gauge; of a histogram the sum
	count   float64
	buckets map[float64]float64 // upper bound → cumulative count
}

type label struct{ name, value string }

func newFamily(name, help string, kind dto.MetricType, limit int) *family {
	return &family{name: name, help: help, kind: kind, limit: limit, series: map[string]*series{}}
}

// add adds m's value to the series of these labels.
func (f *family) add(labels []label, m *dto.Metric) {
	s := f.find(labels)
	if s == nil {
		f.dropped++
		return
	}
	switch {
	case m.GetCounter() != nil:
		s.value += m.GetCounter().GetValue()
	case m.GetGauge() != nil:
		s.value += m.GetGauge().GetValue()
	case m.GetHistogram() != nil:
		h := m.GetHistogram()
		s.value += h.GetSampleSum()
		s.count += float64(h.GetSampleCount()) + h.GetSampleCountFloat()
		if s.buckets == nil {
			s.buckets = make(map[float64]float64, len(h.GetBucket()))
		}
		for _, b := range h.GetBucket() {
			s.buckets[b.GetUpperBound()] += float64(b.GetCumulativeCount()) + b.GetCumulativeCountFloat()
		}
	}
}

// find returns the series of these labels, a new one if need be; nil if there are too many.
func (f *family) find(labels []label) *series {
	var key strings.Builder
	for _, l := range labels {
		// 0xff is in no UTF-8 text, so that two different lists make two different keys.
		key.WriteString(l.name)
		key.WriteByte(0xff)
		key.WriteString(l.value)
		key.WriteByte(0xff)
	}
	s := f.series[key.String()]
	if s == nil {
		if len(f.series) >= f.limit {
			return nil
		}
		s = &series{labels: labels}
		f.series[key.String()] = s
		f.order = append(f.order, s)
	}
	return s
}

// message is the metric as the text writer wants it.
func (f *family) message() *dto.MetricFamily {
	out := &dto.MetricFamily{Name: &f.name, Help: &f.help, Type: &f.kind}
	for _, s := range f.order {
		m := &dto.Metric{Label: make([]*dto.LabelPair, 0, len(s.labels))}
		for i := range s.labels {
			m.Label = append(m.Label, &dto.LabelPair{Name: &s.labels[i].name, Value: &s.labels[i].value})
		}
		switch f.kind {
		case dto.MetricType_COUNTER:
			m.Counter = &dto.Counter{Value: &s.value}
		case dto.MetricType_HISTOGRAM:
			m.Histogram = s.histogram()
		default:
			out.Type = dto.MetricType_GAUGE.Enum()
			m.Gauge = &dto.Gauge{Value: &s.value}
		}
		out.Metric = append(out.Metric, m)
	}
	return out
}

func (s *series) histogram() *dto.Histogram {
	h := &dto.Histogram{SampleCountFloat: &s.count, SampleSum: &s.value}
	for _, bound := range slices.SortedFunc(maps.Keys(s.buckets), cmp.Compare) {
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: proto.Float64(bound), CumulativeCountFloat: proto.Float64(s.buckets[bound])})
	}
	return h
}
