package admin

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/state"
)

// workload is a workload on the page, with the field names of Istio's dump.
type workload struct {
	UID               string            `json:"uid"`
	Name              string            `json:"name"`
	Namespace         string            `json:"namespace"`
	Addresses         []netip.Addr      `json:"workloadIps"`
	Identity          string            `json:"identity"`
	Protocol          string            `json:"protocol"`
	Network           string            `json:"network"`
	Node              string            `json:"node"`
	ClusterID         string            `json:"clusterId"`
	WorkloadName      string            `json:"workloadName"`
	WorkloadType      string            `json:"workloadType"`
	CanonicalName     string            `json:"canonicalName"`
	CanonicalRevision string            `json:"canonicalRevision"`
	Healthy           bool              `json:"healthy"`
	HostNetwork       bool              `json:"hostNetwork,omitempty"`
	Waypoint          string            `json:"waypoint,omitempty"`
	Policies          []string          `json:"authorizationPolicies,omitempty"`
	Services          map[string]string `json:"services,omitempty"`
}

func newWorkload(w *state.Workload) workload {
	v := workload{
		UID: w.UID, Name: w.Name, Namespace: w.Namespace, Addresses: w.Addresses, Identity: w.Identity().String(),
		Protocol: "TCP", Network: w.Network, Node: w.Node, ClusterID: w.ClusterID, WorkloadName: w.WorkloadName,
		WorkloadType: w.WorkloadType, CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Healthy: w.Healthy, HostNetwork: w.HostNetwork, Waypoint: gateway(w.Waypoint), Policies: w.Policies,
		Services: map[string]string{},
	}
	if w.Protocol == state.ProtocolHBONE {
		v.Protocol = "HBONE"
	}
	for _, s := range w.Services {
		v.Services[s.Key] = portList(s.Ports)
	}
	return v
}

type service struct {
	Name      string   `json:"name"`
	Namespace string   `json:"namespace"`
	Hostname  string   `json:"hostname"`
	VIPs      []string `json:"vips"`
	Ports     string   `json:"ports"`
	SANs      []string `json:"subjectAltNames,omitempty"`
	Waypoint  string   `json:"waypoint,omitempty"`
}

func newService(s *state.Service) service {
	v := service{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname, VIPs: []string{}, Ports: portList(s.Ports),
		SANs: s.SubjectAltNames, Waypoint: gateway(s.Waypoint),
	}
	for _, p := range s.VIPs {
		a := p.Prefix.String()
		if p.Prefix.IsSingleIP() {
			a = p.Prefix.Addr().String()
		}
		v.VIPs = append(v.VIPs, p.Network+"/"+a)
	}
	return v
}

func portList(ports []state.Port) string {
	var parts []string
	for _, p := range ports {
		parts = append(parts, fmt.Sprintf("%d:%d", p.Service, p.Target))
	}
	return strings.Join(parts, " ")
}

func gateway(g *state.GatewayAddress) string {
	switch {
	case g == nil:
		return ""
	case g.Hostname != "":
		return g.Namespace + "/" + g.Hostname
	default:
		return g.Network + "/" + g.Address.String()
	}
}
