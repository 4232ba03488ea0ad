package gatewayapi

import (
	"fmt"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// TCPRoute reads a TCPRoute. Its rules match every connection of what they are attached to.
func TCPRoute(cfg translate.Config, r *gwv1.TCPRoute) *model.Route {
	t, out := newRoute(model.KindTCPRoute, cfg, r, &r.Spec.CommonRouteSpec, nil)
	for i, rule := range r.Spec.Rules {
		out.TCP = append(out.TCP, t.l4Rule(rule.Name, rule.BackendRefs, i))
	}
	return out
}

// TLSRoute reads a TLSRoute. Its hostnames are SNI names; none means every name of the listener.
func TLSRoute(cfg translate.Config, r *gwv1.TLSRoute) *model.Route {
	t, out := newRoute(model.KindTLSRoute, cfg, r, &r.Spec.CommonRouteSpec, r.Spec.Hostnames)
	for i, rule := range r.Spec.Rules {
		l4 := t.l4Rule(rule.Name, rule.BackendRefs, i)
		if len(out.Hostnames) > 0 {
			l4.Matches = []model.L4Match{{SNI: out.Hostnames}}
		}
		out.TLS = append(out.TLS, l4)
	}
	return out
}

func (t *routeTranslation) l4Rule(name *gwv1.SectionName, refs []gwv1.BackendRef, index int) model.L4Rule {
	out := model.L4Rule{Name: string(or(name, ""))}
	for i, r := range refs {
		out.Backends = append(out.Backends, t.weighted(r, fmt.Sprintf("spec.rules[%d].backendRefs[%d]", index, i)))
	}
	return out
}
