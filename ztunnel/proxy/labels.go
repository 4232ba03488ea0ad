package proxy

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/state"
)

// peer is a workload in metric labels. The principal is set by the caller, who knows what was proved.
func peer(w *state.Workload) telemetry.Peer {
	if w == nil {
		return telemetry.Peer{}
	}
	return telemetry.Peer{
		Workload: w.WorkloadName, CanonicalService: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Namespace: w.Namespace, App: w.CanonicalName, Version: w.CanonicalRevision, Cluster: w.ClusterID,
	}
}

func claimedPeer(b *baggageInfo) telemetry.Peer {
	return telemetry.Peer{
		Workload: b.workload, CanonicalService: b.service, CanonicalRevision: b.revision,
		Namespace: b.namespace, App: b.service, Version: b.revision, Cluster: b.cluster,
	}
}

// labelsLocked is the connection's label set. A source principal is only named when mutual TLS proved it.
func (f *flow) labelsLocked() telemetry.TCPLabels {
	l := telemetry.TCPLabels{
		Reporter: f.reporter, Source: peer(f.source), Destination: peer(f.dest),
		ResponseFlags: telemetry.FlagNone, Security: telemetry.SecurityUnknown,
	}
	if f.source == nil && f.claimed != nil {
		l.Source = claimedPeer(f.claimed)
	}
	if f.mutualTLS {
		l.Security = telemetry.SecurityMutualTLS
		l.Source.Principal = f.sourceID.String()
	}
	if f.dest != nil {
		l.Destination.Principal = f.dest.Identity().String()
	}
	if f.service != nil {
		l.Service, l.ServiceName, l.ServiceNamespace = f.service.Hostname, f.service.Name, f.service.Namespace
	}
	return l
}

// recordLocked is the connection's log line.
func (f *flow) recordLocked(request, response uint64) *telemetry.AccessRecord {
	r := &telemetry.AccessRecord{
		Direction: telemetry.DirectionOutbound,
		Src:       telemetry.AccessEnd{Addr: f.src}, Dst: telemetry.AccessEnd{Addr: f.dst},
		HBONEAddr: f.hboneAddr,
		BytesSent: request, BytesRecv: response,
		Duration: time.Since(f.start), Policy: f.verdict.Policy, Reason: f.verdict.Reason,
		Flags: f.flags, TraceID: f.trace, Err: f.err,
	}
	if f.reporter == telemetry.ReporterDestination {
		r.Direction = telemetry.DirectionInbound
		r.BytesSent, r.BytesRecv = response, request
	}
	switch {
	case f.source != nil:
		r.Src.Workload, r.Src.Namespace = f.source.Name, f.source.Namespace
	case f.claimed != nil:
		r.Src.Workload, r.Src.Namespace = f.claimed.workload, f.claimed.namespace
	}
	if f.dest != nil {
		r.Dst.Workload, r.Dst.Namespace = f.dest.Name, f.dest.Namespace
	}
	if f.mutualTLS {
		r.Src.Identity = f.sourceID.String()
		if f.dest != nil {
			r.Dst.Identity = f.dest.Identity().String()
		}
	}
	if f.service != nil {
		r.Service = f.service.Hostname
	}
	return r
}
