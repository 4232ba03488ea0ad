package translate

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// EntryPublished tells whether proxies on nodes are told of a ServiceEntry: if its traffic goes to a waypoint, which
// alone knows how to reach the host, or if its endpoints are addresses. Otherwise they pass on what the client asked for.
func EntryPublished(e *model.ServiceEntry, w *model.Waypoint) bool {
	if w != nil {
		return true
	}
	return e.Resolution == model.ResolveStatic && len(e.Endpoints) > 0
}

// EntryWire makes what proxies learn of one host of a ServiceEntry. A Kubernetes Service of the same host owns it.
func EntryWire(cfg Config, e *model.ServiceEntry, host string, in ServiceInputs) *workload.Service {
	out := &workload.Service{
		Name: e.Name, Namespace: e.Namespace, Hostname: host, SubjectAltNames: e.SANs,
		Waypoint: waypointAddress(cfg, in.Waypoint), IngressUseWaypoint: in.IngressWaypoint,
	}
	for _, p := range e.Addresses {
		a := &workload.NetworkAddress{Network: cfg.Network, Address: p.Addr().AsSlice()}
		if !p.IsSingleIP() {
			bits := uint32(p.Bits())
			a.Length = &bits
		}
		out.Addresses = append(out.Addresses, a)
	}
	for _, p := range e.Ports {
		target := p.Target
		if target == 0 {
			target = p.Port
		}
		out.Ports = append(out.Ports, &workload.Port{
			ServicePort: uint32(p.Port), TargetPort: uint32(target), AppProtocol: workload.AppProtocol(p.Protocol),
		})
	}
	if in.Waypoint != nil && in.Canary != nil {
		out.WeightedWaypoints = []*workload.WeightedWaypoint{
			{Destination: waypointAddress(cfg, in.Waypoint), Weight: 100 - in.CanaryWeight},
			{Destination: waypointAddress(cfg, in.Canary), Weight: in.CanaryWeight},
		}
	}
	return out
}

// EntryUID names the workload of an endpoint that a ServiceEntry lists.
func EntryUID(cfg Config, e *model.ServiceEntry, a netip.Addr) string {
	return cfg.ClusterID + "/networking.istio.io/ServiceEntry/" + e.Namespace + "/" + e.Name + "/" + a.String()
}

// EntryWorkload makes what proxies learn of such an endpoint. It speaks no HBONE: it is not a pod of the mesh.
func EntryWorkload(cfg Config, e *model.ServiceEntry, ep *model.EntryEndpoint) *workload.Workload {
	out := &workload.Workload{
		Uid: EntryUID(cfg, e, ep.Address), Name: e.Name, Namespace: e.Namespace, Network: cfg.Network, ClusterId: cfg.ClusterID,
		TrustDomain: wireTrustDomain(cfg), ServiceAccount: ep.ServiceAccount, WorkloadName: e.Name, WorkloadType: workload.WorkloadType_POD,
		CanonicalName:     firstLabel(ep.Labels, canonicalNameLabels[:], e.Name),
		CanonicalRevision: firstLabel(ep.Labels, canonicalRevisionLabels[:], defaultRevision),
		Addresses:         [][]byte{ep.Address.AsSlice()},
		Services:          map[string]*workload.PortList{},
	}
	if ep.Network != "" {
		out.Network = ep.Network
	}
	if l := ep.Locality; l != (model.Locality{}) {
		out.Locality = &workload.Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
	}
	list := &workload.PortList{}
	for _, p := range e.Ports {
		target := ep.Ports[p.Name]
		if target == 0 {
			target = p.Target
		}
		if target == 0 {
			target = p.Port
		}
		list.Ports = append(list.Ports, &workload.Port{ServicePort: uint32(p.Port), TargetPort: uint32(target)})
	}
	for _, host := range e.Hosts {
		out.Services[e.Namespace+"/"+host] = list
	}
	return out
}
