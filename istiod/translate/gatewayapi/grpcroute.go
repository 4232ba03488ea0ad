package gatewayapi

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// anyElement matches one element of a path: a service, or a method, that is not asked for.
const anyElement = "[^/]+"

// GRPCRoute reads a GRPCRoute. A method match becomes a match of the path /service/method, which is how gRPC names it.
func GRPCRoute(cfg translate.Config, r *gwv1.GRPCRoute) *model.Route {
	t, out := newRoute(model.KindGRPCRoute, cfg, r, &r.Spec.CommonRouteSpec, r.Spec.Hostnames)
	for i := range r.Spec.Rules {
		rt := &ruleTranslation{routeTranslation: t, index: i, field: fmt.Sprintf("spec.rules[%d]", i)}
		rt.grpc(&r.Spec.Rules[i])
		out.HTTP = append(out.HTTP, rt.out)
	}
	return out
}

func (t *ruleTranslation) grpc(r *gwv1.GRPCRouteRule) {
	t.out.Name = string(or(r.Name, ""))
	for i := range r.Matches {
		t.alternative(t.grpcMatch(&r.Matches[i], fmt.Sprintf("%s.matches[%d]", t.field, i)))
	}
	if len(r.Matches) == 0 {
		// "If no matches are specified, the implementation MUST match every gRPC request."
		t.out.Matches = []model.HTTPMatch{{GRPC: true}}
	}
	filters := make([]gwv1.HTTPRouteFilter, len(r.Filters))
	for i, f := range r.Filters {
		filters[i] = httpFilter(f)
	}
	t.filters(filters, t.field+".filters")
	for i, b := range r.BackendRefs {
		field := fmt.Sprintf("%s.backendRefs[%d]", t.field, i)
		backend := t.weighted(b.BackendRef, field)
		for j, f := range b.Filters {
			h := httpFilter(f)
			t.refuse(backendFilter(&backend, &h, fmt.Sprintf("%s.filters[%d]", field, j)))
		}
		t.out.Backends = append(t.out.Backends, backend)
	}
	t.session(r.SessionPersistence)
	t.finish()
}

// httpFilter is the same filter of an HTTPRoute: GRPCRoute has a part of its types, with the same names and settings.
func httpFilter(f gwv1.GRPCRouteFilter) gwv1.HTTPRouteFilter {
	return gwv1.HTTPRouteFilter{
		Type:                   gwv1.HTTPRouteFilterType(f.Type),
		RequestHeaderModifier:  f.RequestHeaderModifier,
		ResponseHeaderModifier: f.ResponseHeaderModifier,
		RequestMirror:          f.RequestMirror,
		ExtensionRef:           f.ExtensionRef,
	}
}

func (t *ruleTranslation) grpcMatch(m *gwv1.GRPCRouteMatch, field string) model.HTTPMatch {
	out := model.HTTPMatch{GRPC: true, Path: t.grpcPath(m.Method, field+".method")}
	for i, h := range m.Headers {
		name := strings.ToLower(string(h.Name))
		t.refuseMatch(token(fmt.Sprintf("%s.headers[%d].name", field, i), name))
		if slices.ContainsFunc(out.Headers, func(o model.NamedMatch) bool { return o.Name == name }) {
			continue
		}
		out.Headers = append(out.Headers, model.NamedMatch{Name: name,
			StringMatch: t.value(string(or(h.Type, gwv1.GRPCHeaderMatchExact)), h.Value, fmt.Sprintf("%s.headers[%d]", field, i))})
	}
	return out
}

func (t *ruleTranslation) grpcPath(m *gwv1.GRPCMethodMatch, field string) *model.StringMatch {
	if m == nil {
		return nil
	}
	service, method := or(m.Service, ""), or(m.Method, "")
	if service == "" && method == "" {
		t.refuseMatch(unsupported(field, "service or method is required"))
		return nil
	}
	switch kind := or(m.Type, gwv1.GRPCMethodMatchExact); kind {
	case gwv1.GRPCMethodMatchExact:
		if strings.Contains(service, "/") || strings.Contains(method, "/") {
			t.refuseMatch(unsupported(field, "names have no slashes"))
		}
		switch {
		case method == "":
			return &model.StringMatch{Kind: model.MatchPrefix, Value: "/" + service + "/"}
		case service == "":
			return &model.StringMatch{Kind: model.MatchRegex, Value: "/" + anyElement + "/" + regexp.QuoteMeta(method)}
		}
		return &model.StringMatch{Value: "/" + service + "/" + method}
	case gwv1.GRPCMethodMatchRegularExpression:
		t.refuseMatch(regex(field+".service", service))
		t.refuseMatch(regex(field+".method", method))
		return &model.StringMatch{Kind: model.MatchRegex, Value: "/" + element(service) + "/" + element(method)}
	default:
		t.refuseMatch(unsupported(field+".type", "%q is unknown", kind))
		return nil
	}
}

// element keeps an alternative in its own element of the path.
func element(expr string) string {
	if expr == "" {
		return anyElement
	}
	return "(?:" + expr + ")"
}
