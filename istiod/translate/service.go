package translate

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	// labelManaged marks the Deployment and Service that istiod makes of a Gateway.
	labelManaged             = "gateway.istio.io/managed"
	managedWaypoint          = "istio.io-mesh-controller"
	managedEastWest          = "istio.io-eastwest-controller"
	protocolGRPCWeb          = "grpc-web"
	appProtocolH2C           = "kubernetes.io/h2c"
	appProtocolWebSocket     = "kubernetes.io/ws"
	appProtocolWebSocketTLS  = "kubernetes.io/wss"
	hostnameServiceSeparator = ".svc."
	// Types of addresses of a Gateway, as the Gateway API names them.
	addressIP       = "IPAddress"
	addressHostname = "Hostname"
)

// serverFirstPorts belong to protocols in which the server speaks first, so that
// nobody may wait for the client's bytes to guess what it is.
var serverFirstPorts = [...]int32{25, 53, 3306, 27017}

// ServiceHostname is the full DNS name of a Kubernetes Service.
func ServiceHostname(cfg Config, k model.Key) string {
	return k.Name + "." + k.Namespace + hostnameServiceSeparator + cfg.Domain
}

// Service reads a Kubernetes Service. It returns nil for an ExternalName, which has no addresses of its own.
func Service(cfg Config, s *corev1.Service) (*model.Service, error) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, nil
	}
	key := model.Key{Namespace: s.Namespace, Name: s.Name}
	out := &model.Service{
		Key:             key,
		Hostname:        ServiceHostname(cfg, key),
		Selector:        s.Spec.Selector,
		Families:        serviceFamilies(s.Spec.IPFamilies),
		PublishNotReady: s.Spec.PublishNotReadyAddresses,
		Distribution:    distribution(s.Annotations[annotationDistribution]),
		Waypoint:        serviceWaypointRef(s.Labels, s.Annotations, s.Namespace),
		LoadBalancer:    s.Spec.Type == corev1.ServiceTypeLoadBalancer,
		External:        externalAddresses(s),
		Generation:      s.Generation,
		Bypass:          bypass(s.Annotations),
	}
	if v, ok := s.Labels[labelIngressWaypoint]; ok {
		ingress := strings.EqualFold(v, "true")
		out.IngressWaypoint = &ingress
	}
	switch s.Labels[labelManaged] {
	case managedWaypoint, managedEastWest:
		out.NoWaypoint = true
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		out.NodeLocal = true
	}
	if d := s.Spec.TrafficDistribution; d != nil {
		// A value of the field that we do not know leaves the annotations in force.
		if got := distribution(*d); got == model.DistributionSameZone || got == model.DistributionSameNode {
			out.Distribution = got
		}
	}
	var err error
	if out.Ports, err = servicePorts(s.Spec.Ports); err != nil {
		return nil, err
	}
	vips := s.Spec.ClusterIPs
	if len(vips) == 0 && s.Spec.ClusterIP != "" {
		vips = []string{s.Spec.ClusterIP}
	}
	for i, vip := range vips {
		if vip == corev1.ClusterIPNone || vip == "" {
			continue
		}
		a, err := parseAddr(fmt.Sprintf("spec.clusterIPs[%d]", i), vip)
		if err != nil {
			return nil, err
		}
		out.VIPs = append(out.VIPs, a)
	}
	return out, nil
}

// externalAddresses are those that a load balancer or the user gave the service.
func externalAddresses(s *corev1.Service) []model.GatewayAddress {
	var out []model.GatewayAddress
	for _, in := range s.Status.LoadBalancer.Ingress {
		switch {
		case in.IP != "":
			out = append(out, model.GatewayAddress{Type: addressIP, Value: in.IP})
		case in.Hostname != "":
			out = append(out, model.GatewayAddress{Type: addressHostname, Value: in.Hostname})
		}
	}
	for _, ip := range s.Spec.ExternalIPs {
		out = append(out, model.GatewayAddress{Type: addressIP, Value: ip})
	}
	return out
}

// servicePorts keeps TCP ports: the tunnel carries nothing else.
func servicePorts(in []corev1.ServicePort) ([]model.ServicePort, error) {
	var out []model.ServicePort
	for i, p := range in {
		if p.Protocol != corev1.ProtocolTCP && p.Protocol != "" {
			continue
		}
		field := fmt.Sprintf("spec.ports[%d]", i)
		n, err := parsePort(field+".port", int64(p.Port))
		if err != nil {
			return nil, err
		}
		port := model.ServicePort{Name: p.Name, Port: n, Target: n, Protocol: appProtocol(p)}
		switch {
		case p.TargetPort.StrVal != "":
			port.Target, port.TargetName = 0, p.TargetPort.StrVal
		case p.TargetPort.IntVal != 0:
			if port.Target, err = parsePort(field+".targetPort", int64(p.TargetPort.IntVal)); err != nil {
				return nil, err
			}
		}
		out = append(out, port)
	}
	return out, nil
}

// appProtocol follows Istio's protocol selection: the field appProtocol, else the
// prefix of the port's name, else what the port number says.
func appProtocol(p corev1.ServicePort) model.AppProtocol {
	name := p.Name
	if p.AppProtocol != nil {
		name = *p.AppProtocol
		switch name {
		case appProtocolH2C:
			return model.ProtocolHTTP2
		case appProtocolWebSocket:
			return model.ProtocolHTTP1
		case appProtocolWebSocketTLS:
			return model.ProtocolTLS
		}
	}
	name = strings.ToLower(name)
	// gRPC-Web is HTTP/1 or 2 and no value of the API: nothing is claimed of it.
	if strings.HasPrefix(name, protocolGRPCWeb) {
		return model.ProtocolUnknown
	}
	prefix, _, _ := strings.Cut(name, "-")
	switch prefix {
	case "http":
		return model.ProtocolHTTP1
	case "http2":
		return model.ProtocolHTTP2
	case "grpc":
		return model.ProtocolGRPC
	case "tcp":
		return model.ProtocolTCP
	case "https", "tls":
		return model.ProtocolTLS
	// Names that Istio knows and the workload API has no value for.
	case "udp", "http_proxy", "mongo", "redis", "mysql":
		return model.ProtocolUnknown
	}
	for _, known := range serverFirstPorts {
		if p.Port == known {
			return model.ProtocolTCP
		}
	}
	return model.ProtocolUnknown
}

func serviceFamilies(in []corev1.IPFamily) model.IPFamilies {
	switch {
	case len(in) == 2:
		return model.FamiliesDual
	case len(in) == 1 && in[0] == corev1.IPv4Protocol:
		return model.FamiliesV4
	case len(in) == 1:
		return model.FamiliesV6
	}
	return model.FamiliesAutomatic
}

// ServiceInputs is everything beside the service that proxies learn of it.
type ServiceInputs struct {
	// Distribution of the namespace, for a service that chooses none.
	Distribution model.Distribution
	Waypoint     *model.Waypoint
	// Canary gets CanaryWeight percent of the connections, if it is not nil.
	Canary       *model.Waypoint
	CanaryWeight uint32
	// IngressWaypoint sends what comes from gateways through the waypoint too.
	IngressWaypoint bool
}

// ServiceWire makes what proxies learn of a service.
func ServiceWire(cfg Config, s *model.Service, in ServiceInputs) *workload.Service {
	out := &workload.Service{
		Name:          s.Name,
		Namespace:     s.Namespace,
		Hostname:      s.Hostname,
		Waypoint:      waypointAddress(cfg, in.Waypoint),
		LoadBalancing: loadBalancing(s, in.Distribution),
		IpFamilies:    workload.IPFamilies(s.Families),
		// A Kubernetes Service owns its hostname; a ServiceEntry of the same host does not.
		Canonical:          true,
		IngressUseWaypoint: in.IngressWaypoint,
	}
	if in.Waypoint != nil && in.Canary != nil {
		out.WeightedWaypoints = []*workload.WeightedWaypoint{
			{Destination: waypointAddress(cfg, in.Waypoint), Weight: 100 - in.CanaryWeight},
			{Destination: waypointAddress(cfg, in.Canary), Weight: in.CanaryWeight},
		}
	}
	for _, vip := range s.VIPs {
		out.Addresses = append(out.Addresses, &workload.NetworkAddress{Network: cfg.Network, Address: vip.AsSlice()})
	}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, &workload.Port{
			ServicePort: uint32(p.Port),
			TargetPort:  uint32(p.Target),
			AppProtocol: workload.AppProtocol(p.Protocol),
		})
	}
	return out
}

// loadBalancing: internalTrafficPolicy is a rule and so comes before a preference.
func loadBalancing(s *model.Service, inherited model.Distribution) *workload.LoadBalancing {
	d := s.Distribution
	if d == model.DistributionUnset {
		d = inherited
	}
	var lb *workload.LoadBalancing
	switch {
	case s.NodeLocal:
		lb = &workload.LoadBalancing{
			RoutingPreference: []workload.LoadBalancing_Scope{workload.LoadBalancing_NODE},
			Mode:              workload.LoadBalancing_STRICT,
		}
	case d == model.DistributionSameZone, d == model.DistributionSameNode:
		lb = &workload.LoadBalancing{
			RoutingPreference: []workload.LoadBalancing_Scope{
				workload.LoadBalancing_NETWORK, workload.LoadBalancing_REGION, workload.LoadBalancing_ZONE,
			},
			Mode: workload.LoadBalancing_FAILOVER,
		}
		if d == model.DistributionSameNode {
			lb.RoutingPreference = append(lb.RoutingPreference, workload.LoadBalancing_SUBZONE, workload.LoadBalancing_NODE)
		}
	}
	if s.PublishNotReady {
		if lb == nil {
			lb = &workload.LoadBalancing{}
		}
		lb.HealthPolicy = workload.LoadBalancing_ALLOW_ALL
	}
	return lb
}
