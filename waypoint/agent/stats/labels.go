package stats

import (
	"cmp"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// Values of request_protocol at layer 7.
const (
	protocolHTTP = "http"
	protocolGRPC = "grpc"
)

// hostMarker stands between "name.namespace" and the cluster's domain in the host name of a Kubernetes service.
const hostMarker = "svc"

// labels are Istio's labels for the tags that waypoint/config gave, sorted.
func (s Self) labels(tags []*dto.LabelPair, tcp bool) []label {
	in := make(map[string]string, len(tags))
	out := make(map[string]string, len(tags)+24)
	for _, t := range tags {
		if consumed(t.GetName()) {
			in[t.GetName()] = known(t.GetValue())
		} else {
			out[t.GetName()] = t.GetValue() // asked for by a Telemetry resource
		}
	}
	source, security := s.Peer, telemetry.SecurityUnknown
	if in[names.TagReporter] != names.ReporterSource {
		source = parseBaggage(in[names.TagSource])
		// What a waypoint is sent comes through a tunnel, and a tunnel's other end has proved who it is.
		if in[names.TagSourcePrincipal] != "" {
			security = telemetry.SecurityMutualTLS
		}
	}
	setSource(out, source)
	setDestination(out, in)
	setService(out, in)
	setRequest(out, in, tcp)
	set(out, telemetry.LabelSecurityPolicy, security)
	// A label that is a tag of its own is left out of the statistic when a Telemetry resource removes it.
	for _, name := range []string{names.TagReporter, names.TagSourcePrincipal, names.TagDestinationPrincipal} {
		if v, there := in[name]; there {
			set(out, name, v)
		}
	}
	for name := range strings.SplitSeq(in[names.TagRemoved], ",") {
		delete(out, name)
	}
	list := make([]label, 0, len(out))
	for name, value := range out {
		list = append(list, label{name, value})
	}
	slices.SortFunc(list, func(a, b label) int { return cmp.Compare(a.name, b.name) })
	return list
}

// consumed tells tags that are unpacked here from those that pass.
func consumed(tag string) bool {
	switch tag {
	case names.TagReporter, names.TagSource, names.TagSourcePrincipal, names.TagDestination, names.TagDestinationPrincipal,
		names.TagHost, names.TagService, names.TagServiceNamespace, names.TagRequested,
		names.TagCode, names.TagGRPC, names.TagFlags, names.TagRemoved:
		return true
	}
	return false
}

// known is v, or empty if Envoy did not know it.
func known(v string) string {
	if v == names.Unknown {
		return ""
	}
	return v
}

// set sets a label unless a Telemetry resource did.
func set(out map[string]string, name, value string) {
	if _, overridden := out[name]; overridden {
		return
	}
	if value == "" {
		value = telemetry.Unknown
	}
	out[name] = value
}

func setSource(out map[string]string, p telemetry.Peer) {
	set(out, telemetry.LabelSourceWorkload, p.Workload)
	set(out, telemetry.LabelSourceCanonicalService, p.CanonicalService)
	set(out, telemetry.LabelSourceCanonicalRevision, p.CanonicalRevision)
	set(out, telemetry.LabelSourceNamespace, p.Namespace)
	set(out, telemetry.LabelSourceApp, p.App)
	set(out, telemetry.LabelSourceVersion, p.Version)
	set(out, telemetry.LabelSourceCluster, p.Cluster)
}

func setDestination(out, in map[string]string) {
	p, _ := names.UnpackPeer(in[names.TagDestination]) // the zero Peer is unknown throughout
	set(out, telemetry.LabelDestinationWorkload, p.Workload)
	set(out, telemetry.LabelDestinationNamespace, p.Namespace)
	set(out, telemetry.LabelDestinationCanonicalService, p.CanonicalName)
	set(out, telemetry.LabelDestinationCanonicalRevision, p.CanonicalRevision)
	set(out, telemetry.LabelDestinationApp, p.App)
	set(out, telemetry.LabelDestinationVersion, p.Version)
	set(out, telemetry.LabelDestinationCluster, p.Cluster)
}

// setService names the service that was chosen, else the one that was asked for.
func setService(out, in map[string]string) {
	host, name, namespace := in[names.TagHost], in[names.TagService], in[names.TagServiceNamespace]
	if host == "" {
		host = in[names.TagRequested]
	}
	if host != "" && name == "" {
		name = host
		if parts := strings.Split(host, "."); len(parts) > 2 && parts[2] == hostMarker {
			name, namespace = parts[0], parts[1]
		}
	}
	for _, l := range []label{{names.TagHost, host}, {names.TagService, name}, {names.TagServiceNamespace, namespace}} {
		if _, there := in[l.name]; there {
			set(out, l.name, l.value)
		}
	}
}

func setRequest(out, in map[string]string, tcp bool) {
	if flags, there := in[names.TagFlags]; there {
		if flags == "" {
			flags = telemetry.FlagNone
		}
		set(out, telemetry.LabelResponseFlags, flags)
	}
	if tcp {
		set(out, telemetry.LabelRequestProtocol, telemetry.ProtocolTCP)
		return
	}
	protocol := protocolHTTP
	if status := in[names.TagGRPC]; status != "" {
		protocol = protocolGRPC
		set(out, names.TagGRPC, status)
	}
	set(out, telemetry.LabelRequestProtocol, protocol)
	if code, there := in[names.TagCode]; there {
		if code == "" {
			code = "0" // as Envoy writes it where no response was sent
		}
		set(out, names.TagCode, code)
	}
}

// parseBaggage reads what a source's node proxy says of the source: W3C baggage with OpenTelemetry's resource names. It
// reads what it knows and skips the rest. The claim is the node proxy's, not the workload's.
func parseBaggage(value string) telemetry.Peer {
	var p telemetry.Peer
	for part := range strings.SplitSeq(value, ",") {
		key, v, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			continue
		}
		v, _, _ = strings.Cut(v, ";") // properties
		switch key {
		case "k8s.cluster.name":
			p.Cluster = v
		case "k8s.namespace.name":
			p.Namespace = v
		case "k8s.deployment.name", "k8s.statefulset.name", "k8s.daemonset.name", "k8s.cronjob.name", "k8s.job.name", "k8s.pod.name":
			p.Workload = v
		case "service.name":
			p.CanonicalService, p.App = v, v
		case "service.version":
			p.CanonicalRevision, p.Version = v, v
		}
	}
	return p
}
