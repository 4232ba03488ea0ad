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
	for i := range s.Endpoints {
		ref := s.Endpoints[i].TargetRef
		if ref == nil || ref.Kind != string(model.KindPod) {
			continue
		}
		out.Endpoints = append(out.Endpoints, model.Endpoint{
			Pod:    podKey(ref, s.Namespace),
			PodUID: string(ref.UID),
		})
	}
	return out
}

func podKey(ref *corev1.ObjectReference, ns string) model.Key {
	if ref.Namespace != "" {
		ns = ref.Namespace
	}
	return model.Key{Namespace: ns, Name: ref.Name}
}
