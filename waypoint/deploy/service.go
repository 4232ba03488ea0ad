package deploy

import (
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	// statusPort is the Service port of readiness, which load balancers outside of the cluster ask.
	statusPort = "status-port"
	// maxPortName is the longest name of a Service port: a DNS label.
	maxPortName = 63
	// addressIP and addressHostname are Gateway API's types of addresses.
	addressIP       = "IPAddress"
	addressHostname = "Hostname"
)

func portText(n int) string { return strconv.Itoa(n) }

func (b *builder) service() *corev1.Service {
	both := corev1.IPFamilyPolicyPreferDualStack
	out := &corev1.Service{
		TypeMeta: typeMeta("v1", "Service"), ObjectMeta: b.meta(b.name),
		Spec: corev1.ServiceSpec{
			Type: b.serviceType, IPFamilyPolicy: &both, Selector: b.selector(), Ports: servicePorts(b.g.Listeners),
		},
	}
	if len(b.g.Addresses) > 0 && b.serviceType == corev1.ServiceTypeLoadBalancer {
		out.Spec.LoadBalancerIP = b.g.Addresses[0].Value
	}
	return out
}

// servicePorts are the status port and one port for each port number that a listener has; several listeners may share one.
func servicePorts(listeners []model.Listener) []corev1.ServicePort {
	tcp := "tcp"
	out := []corev1.ServicePort{{
		Name: statusPort, Port: ports.Readiness, TargetPort: intstr.FromInt32(ports.Readiness), Protocol: corev1.ProtocolTCP, AppProtocol: &tcp,
	}}
	seen := map[uint16]bool{ports.Readiness: true}
	names := map[string]bool{statusPort: true}
	for _, l := range listeners {
		if l.Port == 0 || seen[l.Port] {
			continue
		}
		seen[l.Port] = true
		protocol := protocolName(l.Protocol)
		name := portName(l.Name, protocol, l.Port, names)
		names[name] = true
		out = append(out, corev1.ServicePort{
			Name: name, Port: int32(l.Port), TargetPort: intstr.FromInt32(int32(l.Port)), Protocol: corev1.ProtocolTCP, AppProtocol: &protocol,
		})
	}
	return out
}

// portName makes a DNS label of a listener's name, which may be a DNS subdomain, and keeps it apart from names in use.
func portName(listener, protocol string, port uint16, used map[string]bool) string {
	name := strings.ReplaceAll(listener, ".", "-")
	if name == "" {
		name = protocol
	}
	suffix := "-" + strconv.Itoa(int(port))
	short := strings.Trim(name[:min(len(name), maxPortName)], "-")
	if !used[short] && short != "" {
		return short
	}
	return strings.Trim(name[:min(len(name), maxPortName-len(suffix))], "-") + suffix
}

// protocolName is a Service's appProtocol. TLS on the outside is tcp to whoever routes to the gateway, except that
// Istio says https and tls, and dashboards read it.
func protocolName(p model.ListenerProtocol) string {
	switch p {
	case model.ListenHTTP:
		return "http"
	case model.ListenHTTPS:
		return "https"
	case model.ListenTLS:
		return "tls"
	case model.ListenHBONE:
		return "hbone"
	}
	return "tcp"
}
