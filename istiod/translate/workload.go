package translate

import (
	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Labels that name app and version in telemetry, the strongest first.
var (
	canonicalNameLabels     = [...]string{ports.LabelCanonicalName, "app.kubernetes.io/name", "app"}
	canonicalRevisionLabels = [...]string{ports.LabelCanonicalRevision, "app.kubernetes.io/version", "version"}
)

// defaultRevision is what Istio's dashboards expect of a workload without version.
const defaultRevision = "latest"

// WorkloadInputs is everything beside the pod that its workload is made of.
type WorkloadInputs struct {
	// Services that the pod is an endpoint of.
	Services []*model.Service
	// Policies are the names of the policies attached to the pod, in order.
	Policies []string
	Locality model.Locality
	Waypoint *model.Waypoint
}

// WorkloadUID names a pod's workload. The empty group between the slashes is part of the name.
func WorkloadUID(cfg Config, k model.Key) string {
	return cfg.ClusterID + "//Pod/" + k.Namespace + "/" + k.Name
}

// Workload makes what proxies learn of a pod. It returns nil for a pod that
// cannot be reached: one that has no address yet, or has finished.
func Workload(cfg Config, p *model.Pod, in WorkloadInputs) *workload.Workload {
	if p.Finished || len(p.IPs) == 0 {
		return nil
	}
	w := &workload.Workload{
		Uid:                   WorkloadUID(cfg, p.Key),
		Name:                  p.Name,
		Namespace:             p.Namespace,
		Network:               cfg.Network,
		ClusterId:             cfg.ClusterID,
		TrustDomain:           wireTrustDomain(cfg),
		ServiceAccount:        p.ServiceAccount,
		Node:                  p.Node,
		WorkloadName:          p.Owner,
		WorkloadType:          workloadType(p.OwnerType),
		CanonicalName:         firstLabel(p.Labels, canonicalNameLabels[:], p.Owner),
		CanonicalRevision:     firstLabel(p.Labels, canonicalRevisionLabels[:], defaultRevision),
		AuthorizationPolicies: in.Policies,
		Services:              workloadServices(p, in.Services),
		Waypoint:              waypointAddress(cfg, in.Waypoint),
		NativeTunnel:          p.NativeTunnel,
	}
	for _, ip := range p.IPs {
		w.Addresses = append(w.Addresses, ip.AsSlice())
	}
	if p.Tunnel || p.NativeTunnel {
		w.TunnelProtocol = workload.TunnelProtocol_HBONE
	}
	if !p.Ready {
		w.Status = workload.WorkloadStatus_UNHEALTHY
	}
	if p.HostNetwork {
		w.NetworkMode = workload.NetworkMode_HOST_NETWORK
	}
	if l := in.Locality; l != (model.Locality{}) {
		w.Locality = &workload.Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
	}
	return w
}

// wireTrustDomain leaves out the default, as the API wants it.
func wireTrustDomain(cfg Config) string {
	if cfg.TrustDomain == ports.DefaultTrustDomain {
		return ""
	}
	return cfg.TrustDomain
}

func firstLabel(labels map[string]string, names []string, fallback string) string {
	for _, n := range names {
		if v, ok := labels[n]; ok {
			return v
		}
	}
	return fallback
}

func workloadType(t model.OwnerType) workload.WorkloadType {
	switch t {
	case model.OwnerDeployment:
		return workload.WorkloadType_DEPLOYMENT
	case model.OwnerCronJob:
		return workload.WorkloadType_CRONJOB
	case model.OwnerJob:
		return workload.WorkloadType_JOB
	}
	return workload.WorkloadType_POD
}

// workloadServices maps the ports of each service to the pod's own. A port whose
// target is a name that the pod does not have is left out: the pod does not serve it.
func workloadServices(p *model.Pod, services []*model.Service) map[string]*workload.PortList {
	out := make(map[string]*workload.PortList, len(services))
	for _, s := range services {
		list := &workload.PortList{}
		for _, port := range s.Ports {
			target := port.Target
			if port.TargetName != "" {
				var ok bool
				if target, ok = p.TCPPorts[port.TargetName]; !ok {
					continue
				}
			}
			list.Ports = append(list.Ports, &workload.Port{ServicePort: uint32(port.Port), TargetPort: uint32(target)})
		}
		out[s.ResourceName()] = list
	}
	return out
}
