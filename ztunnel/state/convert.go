package state

import (
	"errors"
	"fmt"
	"net/netip"
	"sort"
	"strings"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/workload"
)

const (
	defaultServiceAccount = "default"
	defaultCapacity       = 1
	maxPort               = 65535
)

// convertWorkload checks a message and makes a Workload of it.
func convertWorkload(in *workload.Workload, intern *interner) (*Workload, error) {
	w := &Workload{
		UID: in.GetUid(), Name: in.GetName(),
		Namespace:         intern.str(in.GetNamespace()),
		TrustDomain:       intern.str(or(in.GetTrustDomain(), ports.DefaultTrustDomain)),
		ServiceAccount:    intern.str(or(in.GetServiceAccount(), defaultServiceAccount)),
		Network:           intern.str(in.GetNetwork()),
		ClusterID:         intern.str(or(in.GetClusterId(), ports.DefaultClusterID)),
		Node:              intern.str(in.GetNode()),
		Hostname:          in.GetHostname(),
		WorkloadName:      intern.str(in.GetWorkloadName()),
		CanonicalName:     intern.str(in.GetCanonicalName()),
		CanonicalRevision: intern.str(in.GetCanonicalRevision()),
		Locality: Locality{
			intern.str(in.GetLocality().GetRegion()), intern.str(in.GetLocality().GetZone()), intern.str(in.GetLocality().GetSubzone()),
		},
		Capacity:     defaultCapacity,
		NativeTunnel: in.GetNativeTunnel(),
	}
	if w.UID == "" {
		return nil, errors.New("workload has no uid")
	}
	if strings.HasSuffix(w.UID, "/"+w.Name) {
		w.Name = w.UID[len(w.UID)-len(w.Name):] // the same bytes, held once
	}
	if in.GetCapacity() != nil {
		w.Capacity = in.GetCapacity().GetValue()
	}
	var err error
	if err = convertEnums(in, w); err != nil {
		return nil, err
	}
	if len(in.GetAddresses()) > 0 {
		w.Addresses = make([]netip.Addr, 0, len(in.GetAddresses()))
	}
	for _, b := range in.GetAddresses() {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return nil, fmt.Errorf("address of %d bytes", len(b))
		}
		w.Addresses = append(w.Addresses, a.Unmap())
	}
	if w.Waypoint, err = convertGateway(in.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	if w.NetworkGateway, err = convertGateway(in.GetNetworkGateway()); err != nil {
		return nil, fmt.Errorf("network gateway: %w", err)
	}
	if w.Services, err = convertMemberships(in.GetServices(), intern); err != nil {
		return nil, err
	}
	w.Policies = intern.list(in.GetAuthorizationPolicies())
	if w.Protocol == ProtocolHBONE {
		if err := w.Identity().Validate(); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func convertEnums(in *workload.Workload, w *Workload) error {
	switch in.GetTunnelProtocol() {
	case workload.TunnelProtocol_NONE:
	case workload.TunnelProtocol_HBONE:
		w.Protocol = ProtocolHBONE
	default:
		return fmt.Errorf("unsupported tunnel protocol %v", in.GetTunnelProtocol())
	}
	switch in.GetStatus() {
	case workload.WorkloadStatus_HEALTHY:
		w.Healthy = true
	case workload.WorkloadStatus_UNHEALTHY:
	default:
		return fmt.Errorf("unknown status %v", in.GetStatus())
	}
	switch in.GetNetworkMode() {
	case workload.NetworkMode_STANDARD:
	case workload.NetworkMode_HOST_NETWORK:
		w.HostNetwork = true
	default:
		return fmt.Errorf("unknown network mode %v", in.GetNetworkMode())
	}
	switch in.GetWorkloadType() {
	case workload.WorkloadType_DEPLOYMENT:
		w.WorkloadType = "deployment"
	case workload.WorkloadType_CRONJOB:
		w.WorkloadType = "cronjob"
	case workload.WorkloadType_POD:
		w.WorkloadType = "pod"
	case workload.WorkloadType_JOB:
		w.WorkloadType = "job"
	default:
		return fmt.Errorf("unknown workload type %v", in.GetWorkloadType())
	}
	if t := in.GetApplicationTunnel(); t != nil {
		if t.GetPort() > maxPort {
			return fmt.Errorf("application tunnel: port %d", t.GetPort())
		}
		w.ApplicationTunnel = &ApplicationTunnel{Port: uint16(t.GetPort())}
		switch t.GetProtocol() {
		case workload.ApplicationTunnel_NONE:
		case workload.ApplicationTunnel_PROXY:
			w.ApplicationTunnel.Proxy = true
		default:
			return fmt.Errorf("unknown application tunnel protocol %v", t.GetProtocol())
		}
	}
	return nil
}

func convertMemberships(in map[string]*workload.PortList, intern *interner) ([]WorkloadService, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make([]WorkloadService, 0, len(in))
	for key, list := range in {
		if ns, host, ok := strings.Cut(key, "/"); !ok || ns == "" || host == "" || strings.Contains(host, "/") {
			return nil, fmt.Errorf("service %q is not namespace/hostname", key)
		}
		ports, err := convertPorts(list.GetPorts())
		if err != nil {
			return nil, fmt.Errorf("service %q: %w", key, err)
		}
		out = append(out, WorkloadService{Key: intern.str(key), Ports: ports})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return intern.memberships(out), nil
}

func convertPorts(in []*workload.Port) ([]Port, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make([]Port, 0, len(in))
	for _, p := range in {
		if p.GetServicePort() > maxPort || p.GetTargetPort() > maxPort {
			return nil, fmt.Errorf("port %d:%d is out of range", p.GetServicePort(), p.GetTargetPort())
		}
		out = append(out, Port{uint16(p.GetServicePort()), uint16(p.GetTargetPort())})
	}
	return out, nil
}

func convertGateway(in *workload.GatewayAddress) (*GatewayAddress, error) {
	if in == nil {
		return nil, nil
	}
	if in.GetHboneMtlsPort() > maxPort {
		return nil, fmt.Errorf("port %d is out of range", in.GetHboneMtlsPort())
	}
	out := &GatewayAddress{HBONEPort: uint16(in.GetHboneMtlsPort())}
	if out.HBONEPort == 0 {
		out.HBONEPort = ports.HBONE
	}
	switch d := in.GetDestination().(type) {
	case *workload.GatewayAddress_Hostname:
		out.Namespace, out.Hostname = d.Hostname.GetNamespace(), d.Hostname.GetHostname()
		if out.Hostname == "" {
			return nil, errors.New("empty host name")
		}
	case *workload.GatewayAddress_Address:
		a, ok := netip.AddrFromSlice(d.Address.GetAddress())
		if !ok {
			return nil, fmt.Errorf("address of %d bytes", len(d.Address.GetAddress()))
		}
		out.Network, out.Address = d.Address.GetNetwork(), a.Unmap()
	default:
		return nil, errors.New("neither host name nor address")
	}
	return out, nil
}

// convertService checks a message and makes a Service of it.
func convertService(in *workload.Service, intern *interner) (*Service, error) {
	s := &Service{
		Name: in.GetName(), Namespace: intern.str(in.GetNamespace()), Hostname: in.GetHostname(),
		SubjectAltNames: append([]string(nil), in.GetSubjectAltNames()...), Canonical: in.GetCanonical(),
		// An unknown visibility counts as public, as it was before the field existed.
		NamespaceOnly: in.GetVisibility() == workload.Service_NAMESPACE,
	}
	if s.Hostname == "" || s.Namespace == "" || strings.Contains(s.Hostname, "/") || strings.Contains(s.Namespace, "/") {
		return nil, fmt.Errorf("service %q is not namespace/hostname", s.Key())
	}
	for _, a := range in.GetAddresses() {
		p, err := convertVIP(a)
		if err != nil {
			return nil, err
		}
		s.VIPs = append(s.VIPs, NetworkPrefix{intern.str(a.GetNetwork()), p})
	}
	var err error
	if s.Ports, err = convertPorts(in.GetPorts()); err != nil {
		return nil, err
	}
	if s.Waypoint, err = convertGateway(in.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	for _, ww := range in.GetWeightedWaypoints() {
		gw, err := convertGateway(ww.GetDestination())
		if err != nil || gw == nil {
			return nil, fmt.Errorf("weighted waypoint: %w", errors.Join(err, errors.New("no destination")))
		}
		s.WeightedWaypoints = append(s.WeightedWaypoints, WeightedWaypoint{*gw, ww.GetWeight()})
	}
	if s.LoadBalancing, err = convertLoadBalancing(in.GetLoadBalancing()); err != nil {
		return nil, err
	}
	switch in.GetIpFamilies() {
	case workload.IPFamilies_AUTOMATIC:
	case workload.IPFamilies_IPV4_ONLY:
		s.IPFamilies = IPv4Only
	case workload.IPFamilies_IPV6_ONLY:
		s.IPFamilies = IPv6Only
	case workload.IPFamilies_DUAL:
		s.IPFamilies = IPDual
	default:
		return nil, fmt.Errorf("unknown IP families %v", in.GetIpFamilies())
	}
	return s, nil
}

func convertVIP(in *workload.NetworkAddress) (netip.Prefix, error) {
	a, ok := netip.AddrFromSlice(in.GetAddress())
	if !ok {
		return netip.Prefix{}, fmt.Errorf("VIP of %d bytes", len(in.GetAddress()))
	}
	bits := uint32(a.BitLen())
	if in.Length != nil {
		bits = in.GetLength()
	}
	if bits > uint32(a.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("VIP %v has prefix length %d", a, bits)
	}
	if a.Is4In6() {
		if bits < 96 {
			return netip.Prefix{}, fmt.Errorf("VIP %v has prefix length %d", a, bits)
		}
		a, bits = a.Unmap(), bits-96
	}
	return netip.PrefixFrom(a, int(bits)).Masked(), nil
}

func convertLoadBalancing(in *workload.LoadBalancing) (*LoadBalancing, error) {
	if in == nil {
		return nil, nil
	}
	out := &LoadBalancing{}
	for _, s := range in.GetRoutingPreference() {
		if s < workload.LoadBalancing_REGION || s > workload.LoadBalancing_NETWORK {
			return nil, fmt.Errorf("unknown routing preference %v", s)
		}
		out.Preference = append(out.Preference, Scope(s)) // the same numbers
	}
	switch in.GetMode() {
	case workload.LoadBalancing_UNSPECIFIED_MODE:
	case workload.LoadBalancing_STRICT:
		out.Mode = ModeStrict
	case workload.LoadBalancing_FAILOVER:
		out.Mode = ModeFailover
	case workload.LoadBalancing_PASSTHROUGH:
		out.Mode = ModePassthrough
	default:
		return nil, fmt.Errorf("unknown load balancing mode %v", in.GetMode())
	}
	switch in.GetHealthPolicy() {
	case workload.LoadBalancing_ONLY_HEALTHY:
	case workload.LoadBalancing_ALLOW_ALL:
		out.AllowUnhealthy = true
	default:
		return nil, fmt.Errorf("unknown health policy %v", in.GetHealthPolicy())
	}
	return out, nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
