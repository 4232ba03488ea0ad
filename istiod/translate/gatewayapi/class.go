package gatewayapi

import (
	"fmt"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// GatewayClass reads a class. A class of another controller has Ours false and is otherwise left alone.
func GatewayClass(c *gwv1.GatewayClass) *model.GatewayClass {
	out := &model.GatewayClass{Meta: meta(model.KindGatewayClass, c), Controller: string(c.Spec.ControllerName)}
	switch out.Controller {
	case ControllerGateway:
		out.Ours = true
	case ControllerWaypoint:
		out.Ours, out.Waypoint = true, true
	default:
		return out
	}
	p := c.Spec.ParametersRef
	if p == nil {
		return out
	}
	if p.Group != groupCore || p.Kind != kindConfigMap {
		out.Invalid = notAccepted(gwv1.GatewayClassReasonInvalidParameters,
			fmt.Sprintf("spec.parametersRef: %s is not a ConfigMap", groupKind(p.Group, p.Kind)))
		return out
	}
	if p.Namespace == nil || p.Name == "" {
		out.Invalid = notAccepted(gwv1.GatewayClassReasonInvalidParameters, "spec.parametersRef: namespace and name are required")
		return out
	}
	out.Parameters = &model.ObjectRef{Kind: model.KindConfigMap, Key: model.Key{Namespace: string(*p.Namespace), Name: p.Name}}
	return out
}

// groupKind names a kind in messages.
func groupKind(group gwv1.Group, kind gwv1.Kind) string {
	if group == groupCore {
		return fmt.Sprintf("kind %q", kind)
	}
	return fmt.Sprintf("kind %q of group %q", kind, group)
}
