package deploy

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// maxAddresses is how many addresses a Gateway's status can hold.
const maxAddresses = 16

// Report is what became of one gateway, for its status. Generation is that of the Gateway it is about.
type Report struct {
	Key        model.Key
	Generation int64
	// Addresses at which the gateway is reached: of the load balancer, or inside the cluster.
	Addresses []model.GatewayAddress
	// Ready pods, of Wanted.
	Ready, Wanted int32
	// LoadBalancer says that addresses come from outside of the cluster and may be waited for.
	LoadBalancer bool
	// Problem says what keeps the objects from being applied; its Type is Accepted for parameters that
	// cannot be used, else Programmed.
	Problem *model.Condition
}

// Programmed is the condition of this name (Gateway API, GatewayConditionProgrammed).
func (r Report) Programmed() model.Condition {
	c := model.Condition{Type: string(gatewayv1.GatewayConditionProgrammed)}
	switch {
	case r.Problem != nil:
		c.Reason, c.Message = string(gatewayv1.GatewayReasonInvalid), r.Problem.Message
		if r.Problem.Type == c.Type {
			c.Reason = r.Problem.Reason
		}
	case r.Ready == 0:
		c.Reason = string(gatewayv1.GatewayReasonPending)
		c.Message = fmt.Sprintf("waiting for pods: 0 of %d are ready", r.Wanted)
	case len(r.Addresses) == 0 && r.LoadBalancer:
		c.Reason = string(gatewayv1.GatewayReasonAddressNotAssigned)
		c.Message = "the cluster has not given the Service of type LoadBalancer an address"
	case len(r.Addresses) == 0:
		c.Reason = string(gatewayv1.GatewayReasonAddressNotAssigned)
		c.Message = "the Service has no address"
	default:
		c.OK, c.Reason = true, string(gatewayv1.GatewayReasonProgrammed)
		c.Message = fmt.Sprintf("%d of %d pods are ready", r.Ready, r.Wanted)
	}
	return c
}

// observe fills in what the objects in the cluster say.
func (r *Report) observe(d *appsv1.Deployment, s *corev1.Service, domain string) {
	if d != nil {
		r.Wanted = 1
		if d.Spec.Replicas != nil {
			r.Wanted = *d.Spec.Replicas
		}
		r.Ready = d.Status.ReadyReplicas
	}
	if s != nil {
		r.LoadBalancer = s.Spec.Type == corev1.ServiceTypeLoadBalancer
		r.Addresses = addresses(s, domain)
	}
}

func addresses(s *corev1.Service, domain string) []model.GatewayAddress {
	var out []model.GatewayAddress
	add := func(kind, value string) {
		if value != "" && len(out) < maxAddresses {
			out = append(out, model.GatewayAddress{Type: kind, Value: value})
		}
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, i := range s.Status.LoadBalancer.Ingress {
			add(addressIP, i.IP)
			add(addressHostname, i.Hostname)
		}
		return out
	}
	for _, ip := range s.Spec.ClusterIPs {
		if ip != corev1.ClusterIPNone {
			add(addressIP, ip)
		}
	}
	if len(out) > 0 {
		add(addressHostname, s.Name+"."+s.Namespace+".svc."+domain)
	}
	return out
}
