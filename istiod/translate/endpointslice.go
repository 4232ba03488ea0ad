package translate

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// EndpointSlice reads which pods a slice connects to its service. It returns nil
// for a slice that belongs to no service or holds names instead of addresses.
func EndpointSlice(s *discoveryv1.EndpointSlice) *model.EndpointSlice {
	service := s.Labels[discoveryv1.LabelServiceName]
	if service == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	out := &model.EndpointSlice{Key: model.Key{Namespace: s.Namespace, Name: s.Name}, Service: service}
	for _, p := range s.Ports {
		if p.Port == nil || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
			continue
		}
		port, err := parsePort("ports", int64(*p.Port))
		if err != nil {
			continue // the API server lets no such slice pass, and one from a directory must not reach a wrong port
		}
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		if out.Ports == nil {
			out.Ports = map[string]uint16{}
		}
		out.Ports[name] = port
	}
	for i := range s.Endpoints {
		ref := s.Endpoints[i].TargetRef
		if ref == nil || ref.Kind != string(model.KindPod) {
			out.Addresses = append(out.Addresses, addressEndpoint(&s.Endpoints[i])...)
			continue
		}
		out.Endpoints = append(out.Endpoints, model.Endpoint{
			Pod:    podKey(ref, s.Namespace),
			PodUID: string(ref.UID),
		})
	}
	return out
}

// addressEndpoint reads an endpoint that no pod stands for; an address that cannot be one is passed over.
func addressEndpoint(e *discoveryv1.Endpoint) []model.AddressEndpoint {
	out := model.AddressEndpoint{Ready: e.Conditions.Ready == nil || *e.Conditions.Ready}
	if e.Zone != nil {
		out.Zone = *e.Zone
	}
	for _, text := range e.Addresses {
		if a, err := parseAddr("endpoints.addresses", text); err == nil {
			out.Addresses = append(out.Addresses, a)
		}
	}
	if len(out.Addresses) == 0 {
		return nil
	}
	return []model.AddressEndpoint{out}
}

func podKey(ref *corev1.ObjectReference, ns string) model.Key {
	if ref.Namespace != "" {
		ns = ref.Namespace
	}
	return model.Key{Namespace: ns, Name: ref.Name}
}
