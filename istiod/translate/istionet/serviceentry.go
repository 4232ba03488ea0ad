package istionet

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// noWaypoint is the value of the label that names a waypoint if there is to be none.
const noWaypoint = "none"

// ServiceEntry reads a ServiceEntry.
func ServiceEntry(cfg translate.Config, e *networkingv1.ServiceEntry) (*model.ServiceEntry, error) {
	o := newObject(cfg, model.KindServiceEntry, e)
	spec := &e.Spec
	out := &model.ServiceEntry{
		Meta:     o.meta,
		External: spec.GetLocation() == networking.ServiceEntry_MESH_EXTERNAL,
		Selector: o.labels("spec.workloadSelector.labels", spec.GetWorkloadSelector().GetLabels()),
		ExportTo: o.exportTo(spec.GetExportTo(), true),
		SANs:     spec.GetSubjectAltNames(),
		Waypoint: waypointRef(e.Labels, e.Namespace),
	}
	if len(spec.GetHosts()) == 0 {
		o.fail("spec.hosts", "is required")
	}
	for i, h := range spec.GetHosts() {
		field := fmt.Sprintf("spec.hosts[%d]", i)
		if h == "*" {
			o.fail(field, "* stands for every host")
		} else {
			o.domain(field, h)
		}
		out.Hosts = append(out.Hosts, strings.ToLower(h))
	}
	out.Addresses = o.prefixes("spec.addresses", spec.GetAddresses())
	if len(spec.GetAddresses()) == 0 && len(out.Hosts) == 1 {
		// Addresses that were allocated stand in the status. With several hosts they differ by host.
		for _, a := range e.Status.GetAddresses() {
			if p, err := netip.ParseAddr(a.GetValue()); err == nil && p.Zone() == "" {
				out.Addresses = append(out.Addresses, netip.PrefixFrom(p.Unmap(), p.Unmap().BitLen()))
			}
		}
	}
	out.Ports = o.entryPorts(spec.GetPorts())
	o.resolution(spec, out)
	o.manyHosts(spec, out)
	if spec.GetWorkloadSelector() != nil && len(spec.GetEndpoints()) > 0 {
		o.fail("spec.workloadSelector", "excludes endpoints")
	}
	names := out.Resolution == model.ResolveDNS || out.Resolution == model.ResolveDNSRoundRobin
	for i, w := range spec.GetEndpoints() {
		out.Endpoints = append(out.Endpoints, o.endpoint(fmt.Sprintf("spec.endpoints[%d]", i), w, spec.GetPorts(), names))
	}
	if err := o.err(kindServiceEntry); err != nil {
		return nil, err
	}
	return out, nil
}

// waypointRef reads the labels that choose a waypoint.
func waypointRef(labels map[string]string, ns string) model.WaypointRef {
	name := labels[ports.LabelUseWaypoint]
	switch name {
	case "":
		return model.WaypointRef{}
	case noWaypoint:
		return model.WaypointRef{None: true}
	}
	if other := labels[ports.LabelUseWaypointNamespace]; other != "" {
		ns = other
	}
	return model.WaypointRef{Key: model.Key{Namespace: ns, Name: name}}
}

// protocol reads the name of a protocol as Istio's API has it. It does not know those that are no TCP.
func protocol(s string) (p model.AppProtocol, ok bool) {
	switch strings.ToUpper(s) {
	case "":
		return model.ProtocolUnknown, true
	case "HTTP", "HTTP_PROXY":
		return model.ProtocolHTTP1, true
	case "HTTP2", "GRPC-WEB":
		return model.ProtocolHTTP2, true
	case "GRPC":
		return model.ProtocolGRPC, true
	case "HTTPS", "TLS":
		return model.ProtocolTLS, true
	case "TCP", "MONGO", "REDIS", "MYSQL":
		return model.ProtocolTCP, true
	}
	return model.ProtocolUnknown, false
}

func (o *object) entryPorts(in []*networking.ServicePort) []model.ServicePort {
	var out []model.ServicePort
	names, numbers := map[string]bool{}, map[uint32]bool{}
	for i, p := range in {
		field := fmt.Sprintf("spec.ports[%d]", i)
		if p == nil {
			o.fail(field, "is null")
			continue
		}
		if !isLabel(p.GetName()) {
			o.fail(field+".name", "%q is not the name of a port", p.GetName())
		}
		if names[p.GetName()] {
			o.fail(field+".name", "%q is there twice", p.GetName())
		}
		if numbers[p.GetNumber()] {
			o.fail(field+".number", "%d is there twice", p.GetNumber())
		}
		names[p.GetName()], numbers[p.GetNumber()] = true, true
		port := model.ServicePort{Name: p.GetName(), Port: o.port(field+".number", p.GetNumber())}
		if port.Target = port.Port; p.GetTargetPort() != 0 {
			port.Target = o.port(field+".targetPort", p.GetTargetPort())
		}
		if strings.EqualFold(p.GetProtocol(), "UDP") {
			// The tunnel carries nothing but TCP.
			continue
		}
		var ok bool
		if port.Protocol, ok = protocol(p.GetProtocol()); !ok {
			o.fail(field+".protocol", "%q is unknown", p.GetProtocol())
		}
		out = append(out, port)
	}
	return out
}

// resolution reads how addresses are found, and what else that asks for.
func (o *object) resolution(spec *networking.ServiceEntry, out *model.ServiceEntry) {
	endpoints := len(spec.GetEndpoints())
	cidr := slices.ContainsFunc(spec.GetAddresses(), func(a string) bool { return strings.Contains(a, "/") })
	const field = "spec.resolution"
	switch spec.GetResolution() {
	case networking.ServiceEntry_NONE:
		out.Resolution = model.ResolveNone
		if endpoints > 0 {
			o.fail("spec.endpoints", "are not used with resolution NONE")
		}
		return
	case networking.ServiceEntry_STATIC:
		out.Resolution = model.ResolveStatic
		return
	case networking.ServiceEntry_DNS:
		out.Resolution = model.ResolveDNS
	case networking.ServiceEntry_DNS_ROUND_ROBIN:
		out.Resolution = model.ResolveDNSRoundRobin
		if endpoints > 1 {
			o.fail("spec.endpoints", "are one at most with resolution DNS_ROUND_ROBIN")
		}
	case networking.ServiceEntry_DYNAMIC_DNS:
		out.Resolution = model.ResolveDynamic
		o.dynamic(spec, out)
		return
	default:
		o.fail(field, "%d is unknown", spec.GetResolution())
	}
	if cidr {
		o.fail("spec.addresses", "a CIDR needs resolution NONE or STATIC")
	}
	for i, h := range spec.GetHosts() {
		if endpoints == 0 && isWildcard(h) {
			o.fail(fmt.Sprintf("spec.hosts[%d]", i), "%q cannot be resolved without endpoints", h)
		}
	}
}

// dynamic: each request names the host that is resolved, so that there is nothing else to say.
func (o *object) dynamic(spec *networking.ServiceEntry, out *model.ServiceEntry) {
	for i, h := range spec.GetHosts() {
		if !isWildcard(h) {
			o.fail(fmt.Sprintf("spec.hosts[%d]", i), "%q has no wildcard, as resolution DYNAMIC_DNS needs", h)
		}
	}
	if len(spec.GetAddresses()) > 0 {
		o.fail("spec.addresses", "are not used with resolution DYNAMIC_DNS")
	}
	if len(spec.GetEndpoints()) > 0 {
		o.fail("spec.endpoints", "are not used with resolution DYNAMIC_DNS")
	}
	for i, p := range spec.GetPorts() {
		switch strings.ToUpper(p.GetProtocol()) {
		case "HTTP", "HTTP2", "GRPC", "TLS":
		default:
			o.fail(fmt.Sprintf("spec.ports[%d].protocol", i), "%q does not name a host; HTTP, HTTP2, GRPC and TLS do", p.GetProtocol())
		}
	}
	if !out.External && out.Waypoint.Name != "" {
		o.fail("spec.location", "MESH_INTERNAL with resolution DYNAMIC_DNS cannot have a waypoint")
	}
}

// manyHosts: plain TCP does not say for which of several hosts it is.
func (o *object) manyHosts(spec *networking.ServiceEntry, out *model.ServiceEntry) {
	if len(spec.GetHosts()) < 2 || out.Resolution == model.ResolveNone {
		return
	}
	for i, p := range spec.GetPorts() {
		if parsed, _ := protocol(p.GetProtocol()); parsed == model.ProtocolTCP || parsed == model.ProtocolUnknown {
			o.fail(fmt.Sprintf("spec.ports[%d].protocol", i), "%q cannot tell several hosts apart", p.GetProtocol())
		}
	}
}

func (o *object) endpoint(field string, w *networking.WorkloadEntry, declared []*networking.ServicePort, names bool) model.EntryEndpoint {
	if w == nil {
		o.fail(field, "is null")
		return model.EntryEndpoint{}
	}
	out := model.EntryEndpoint{
		Labels:         o.labels(field+".labels", w.GetLabels()),
		Weight:         w.GetWeight(),
		ServiceAccount: w.GetServiceAccount(),
		Network:        w.GetNetwork(),
	}
	switch a, err := netip.ParseAddr(w.GetAddress()); {
	case err == nil && a.Zone() == "":
		out.Address = a.Unmap()
	case strings.HasPrefix(w.GetAddress(), "unix://"):
		o.fail(field+".address", "sockets of a file system are not supported")
	case !names:
		o.fail(field+".address", "%q is not an address", w.GetAddress())
	case isWildcard(w.GetAddress()):
		o.fail(field+".address", "%q has a wildcard", w.GetAddress())
	default:
		o.domain(field+".address", w.GetAddress())
		out.Host = strings.ToLower(w.GetAddress())
	}
	for _, name := range slices.Sorted(maps.Keys(w.GetPorts())) {
		at := field + ".ports[" + name + "]"
		if !slices.ContainsFunc(declared, func(p *networking.ServicePort) bool { return p.GetName() == name }) {
			o.fail(at, "spec.ports has no port of this name")
		}
		if out.Ports == nil {
			out.Ports = map[string]uint16{}
		}
		out.Ports[name] = o.port(at, w.GetPorts()[name])
	}
	parts := append(strings.SplitN(w.GetLocality(), "/", 3), "", "")
	out.Locality = model.Locality{Region: parts[0], Zone: parts[1], Subzone: parts[2]}
	return out
}
