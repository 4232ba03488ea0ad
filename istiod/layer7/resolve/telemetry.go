package resolve

import (
	"slices"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// levels are the Telemetries that apply to a proxy, from the widest to the narrowest: the mesh, the namespace, the
// pods' labels, the Gateway; of several on one level the oldest counts (Istio, Telemetry).
func (b *builder) levels() []*model.Telemetry {
	all := applying[*model.Telemetry](b, nil, "")
	level := func(t *model.Telemetry) int {
		switch {
		case len(t.Targets) > 0:
			return 3
		case len(t.Selector) > 0:
			return 2
		case t.Namespace != b.r.RootNamespace:
			return 1
		}
		return 0
	}
	var byLevel [4]*model.Telemetry
	for _, t := range all {
		n := level(t)
		if old := byLevel[n]; old == nil || t.Created.Before(old.Created) {
			byLevel[n] = t
		}
	}
	return slices.DeleteFunc(byLevel[:], func(t *model.Telemetry) bool { return t == nil })
}

// applies: a waypoint stands in for the server's side, a gateway is a client of what is behind it.
func (b *builder) applies(client, server bool) bool {
	if client == server {
		return true
	}
	return b.t.Waypoint == server
}

// HTTP computes what the filters of a proxy share beside what its services need: logs, traces and metrics.
func (b *builder) telemetry(out *model.HTTPFilters) {
	levels := b.levels()
	b.logs(out, levels)
	b.tracing(out, levels)
	for _, t := range levels {
		for _, m := range t.Metrics {
			if b.applies(m.Client, m.Server) && b.counted(m.Providers) {
				out.Metrics = append(out.Metrics, m)
			}
		}
	}
}

// counted tells whether a change of metrics is for those that this mesh keeps: Prometheus', whatever the provider is
// called. Nobody named means them.
func (b *builder) counted(providers []string) bool {
	return len(providers) == 0 || slices.ContainsFunc(providers, func(name string) bool {
		p := b.r.Settings().Providers[name]
		return p != nil && p.Prometheus
	})
}

func (b *builder) logs(out *model.HTTPFilters, levels []*model.Telemetry) {
	m := b.r.Settings()
	providers, filter, off := m.DefaultLogs, "", false
	for _, t := range levels {
		for _, l := range t.Logs {
			if !b.applies(l.Client, l.Server) {
				continue
			}
			off = l.Disabled
			if len(l.Providers) > 0 {
				providers = l.Providers
			}
			if l.Filter != "" {
				filter = l.Filter
			}
		}
	}
	if off {
		return
	}
	if len(providers) == 0 && m.AccessLog != "" {
		out.Logs = append(out.Logs, model.AccessLog{
			LogFile: model.LogFile{Path: m.AccessLog, Text: m.AccessLogText, JSON: m.AccessLogJSON}, Filter: filter,
		})
	}
	for _, name := range providers {
		p := m.Providers[name]
		switch {
		case p == nil:
		case p.Log != nil:
			out.Logs = append(out.Logs, model.AccessLog{LogFile: *p.Log, Filter: filter})
		case p.OTLP != nil && p.OTLP.Logs:
			if cluster, ok := b.collector(p.OTLP); ok {
				out.Logs = append(out.Logs, model.AccessLog{OTLP: p.OTLP, Cluster: cluster, Filter: filter})
			}
		}
	}
}

func (b *builder) tracing(out *model.HTTPFilters, levels []*model.Telemetry) {
	m := b.r.Settings()
	providers, percent, off := m.DefaultTracing, m.Sampling, false
	var tags []model.TraceTag
	meshTags, propagation := true, true
	for _, t := range levels {
		for _, l := range t.Tracing {
			if !b.applies(l.Client, l.Server) {
				continue
			}
			if l.Disabled || l.Enabled {
				off = l.Disabled
			}
			if len(l.Providers) > 0 {
				providers = l.Providers
			}
			if l.Percent != nil {
				percent = *l.Percent
			}
			if len(l.Tags) > 0 {
				tags = l.Tags
			}
			if l.MeshTags != nil {
				meshTags = *l.MeshTags
			}
			if l.Propagation != nil {
				propagation = *l.Propagation
			}
		}
	}
	if off {
		return
	}
	for _, name := range providers {
		p := m.Providers[name]
		if p == nil || p.OTLP == nil || p.OTLP.Logs {
			continue
		}
		if cluster, ok := b.collector(p.OTLP); ok {
			out.Tracing = &model.Tracing{OTLP: *p.OTLP, Cluster: cluster, Percent: percent, Tags: tags, Service: b.t.Name + "." + b.t.Namespace,
				NoMeshTags: !meshTags, NoPropagation: !propagation}
			return // Envoy has one tracer for each listener
		}
	}
}

func (b *builder) collector(o *model.OTLP) (string, bool) {
	name, _, bad := Destination(b.r, o.Backend, b.r.RootNamespace, 0)
	if bad != nil {
		return "", false
	}
	b.clusters[name] = true
	return name, true
}
