package translate

import (
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// annotationDistribution is Istio's annotation for Kubernetes versions without the Service field, and for whole namespaces.
const annotationDistribution = "networking.istio.io/traffic-distribution"

// Labels and annotations of waypoints beside use-waypoint itself, as istio.io/api names them.
const (
	labelIngressWaypoint         = "istio.io/ingress-use-waypoint"
	labelWaypointCanary          = "istio.io/use-waypoint-canary"
	labelWaypointCanaryNamespace = "istio.io/use-waypoint-canary-namespace"
	annotationCanaryWeight       = "istio.io/use-waypoint-canary-weight"
)

// Namespace reads what of a namespace touches its pods and services.
func Namespace(ns *corev1.Namespace) *model.Namespace {
	return &model.Namespace{
		Name:            ns.Name,
		Labels:          ns.Labels,
		MeshLabel:       ns.Labels[ports.LabelDataplaneMode],
		Terminating:     ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating,
		Waypoint:        serviceWaypointRef(ns.Labels, ns.Annotations, ns.Name),
		IngressWaypoint: strings.EqualFold(ns.Labels[labelIngressWaypoint], "true"),
		Distribution:    distribution(ns.Annotations[annotationDistribution]),
		Bypass:          bypass(ns.Annotations),
	}
}

// waypointRef reads the use-waypoint labels of an object in namespace ns.
func waypointRef(labels map[string]string, ns string) model.WaypointRef {
	name := labels[ports.LabelUseWaypoint]
	switch name {
	case "":
		return model.WaypointRef{}
	case "none":
		return model.WaypointRef{None: true}
	}
	if other := labels[ports.LabelUseWaypointNamespace]; other != "" {
		ns = other
	}
	return model.WaypointRef{Key: model.Key{Namespace: ns, Name: name}}
}

// serviceWaypointRef reads the canary's labels too, which only services and namespaces have.
func serviceWaypointRef(labels, annotations map[string]string, ns string) model.WaypointRef {
	ref := waypointRef(labels, ns)
	name := labels[labelWaypointCanary]
	if name == "" || name == "none" {
		return ref
	}
	ref.Canary = model.Key{Namespace: ns, Name: name}
	if other := labels[labelWaypointCanaryNamespace]; other != "" {
		ref.Canary.Namespace = other
	}
	if v, ok := annotations[annotationCanaryWeight]; ok {
		n, err := strconv.ParseUint(v, 10, 8)
		if err != nil || n > 100 {
			ref.CanaryInvalid = true
		} else {
			ref.CanaryWeight = uint32(n)
		}
	}
	return ref
}

// distribution reads a preference for close endpoints. A value it does not know
// means no preference, and not the namespace's: the user did choose.
func distribution(s string) model.Distribution {
	switch strings.ToLower(s) {
	case "":
		return model.DistributionUnset
	case "preferclose", "prefersamezone":
		return model.DistributionSameZone
	case "prefersamenode":
		return model.DistributionSameNode
	}
	return model.DistributionAny
}
