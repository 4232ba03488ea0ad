package translate

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// labelSubzone is Istio's label for the third level of locality; Kubernetes has two.
const labelSubzone = "topology.istio.io/subzone"

// Node reads a node's locality.
func Node(n *corev1.Node) *model.Node {
	return &model.Node{
		Name: n.Name,
		Locality: model.Locality{
			Region:  n.Labels[corev1.LabelTopologyRegion],
			Zone:    n.Labels[corev1.LabelTopologyZone],
			Subzone: n.Labels[labelSubzone],
		},
	}
}
