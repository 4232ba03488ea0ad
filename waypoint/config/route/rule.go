package route

import (
	"cmp"
	"errors"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// Statuses that a proxy answers by itself.
const (
	// statusInvalid is Gateway API's answer for a rule whose backends are of no use (HTTPRouteRule.backendRefs).
	statusInvalid = 500
	// statusNothing is for a request that no rule takes.
	statusNothing = 404
)

// errNever says that a rule can take no request here.
var errNever = errors.New("the rule takes no request here")

// routeLabels are the metadata of a service's routes.
type routeLabels struct{ metadata *corev3.Metadata }

// hostWriter writes the rules of a host.
type hostWriter struct {
	*builder
	host *model.VirtualHost
}

// rule writes one rule: none, one or two routes.
func (w hostWriter) rule(r *model.RouteRule) []*routev3.Route {
	m, err := w.match(r)
	if err == nil {
		err = m.Validate()
	}
	if err != nil {
		if !errors.Is(err, errNever) {
			w.problem(r, err)
		}
		return nil
	}
	out := &routev3.Route{Name: r.Name, Match: m, Metadata: w.metadata(r.Service)}
	if err := w.fill(out, r); err != nil {
		w.problem(r, err)
		return []*routev3.Route{{Name: r.Name, Match: m, Metadata: out.Metadata, Action: direct(statusInvalid, nil)}}
	}
	return retrySafe(out, r)
}

func (w hostWriter) problem(r *model.RouteRule, err error) {
	w.problems = append(w.problems, Problem{Host: w.host.Name, Rule: r.Name, Err: err})
}

// fill writes what happens to a request.
func (w hostWriter) fill(out *routev3.Route, r *model.RouteRule) error {
	policy, err := w.perRoute(r)
	if err != nil {
		return err
	}
	out.TypedPerFilterConfig = policy
	if w.proxy.HTTP.Tracing != nil && r.Service != "" {
		out.Decorator = &routev3.Decorator{Operation: r.Service + "/*"}
	}
	own := edits{request: writeHeaders(r.Action.Request, true), response: writeHeaders(r.Action.Response, false)}
	own.request.authority = cmp.Or(r.Action.Authority, own.request.authority)
	// Those who forward may move them to the backends.
	ofRoute := &own
	switch {
	case r.Status != 0:
		out.Action = direct(r.Status, nil)
	case r.Action.Redirect != nil:
		out.Action, err = w.redirect(r)
	case r.Action.Direct != nil:
		out.Action = direct(r.Action.Direct.Status, r.Action.Direct.Body)
		w.body = max(w.body, uint32(len(r.Action.Direct.Body)))
	default:
		out.Action, ofRoute, err = w.forward(r, own)
	}
	if err != nil {
		return err
	}
	out.RequestHeadersToAdd, out.RequestHeadersToRemove = ofRoute.request.add, ofRoute.request.remove
	out.ResponseHeadersToAdd, out.ResponseHeadersToRemove = ofRoute.response.add, ofRoute.response.remove
	return out.Validate()
}

// direct answers without a backend.
func direct(status int, body []byte) *routev3.Route_DirectResponse {
	a := &routev3.DirectResponseAction{Status: uint32(status)}
	if len(body) > 0 {
		a.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: body}}
	}
	return &routev3.Route_DirectResponse{DirectResponse: a}
}

// answer is a route that answers by itself.
func answer(m *routev3.RouteMatch, status int) *routev3.Route {
	return &routev3.Route{Match: m, Action: direct(status, nil)}
}

// all matches every request.
func all() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// catchesAll tells whether no request gets beyond the route.
func catchesAll(r *routev3.Route) bool {
	m := r.GetMatch()
	return m.GetPrefix() == "/" && len(m.Headers)+len(m.QueryParameters)+len(m.DynamicMetadata)+len(m.FilterState) == 0 && m.Grpc == nil
}

// metadata tells logs and metrics which service the client called.
func (b *builder) metadata(service string) *corev3.Metadata {
	if service == "" {
		return nil
	}
	if l := b.labels[service]; l != nil {
		return l.metadata
	}
	m := &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		names.MetadataMesh: {Fields: map[string]*structpb.Value{names.KeyHost: structpb.NewStringValue(service)}},
	}}
	b.labels[service] = &routeLabels{m}
	return m
}

// perRoute writes what filters do differently for a rule: its own policy with the host's, and what its action asks.
func (w hostWriter) perRoute(r *model.RouteRule) (map[string]*anypb.Any, error) {
	out := map[string]*anypb.Any{}
	if r.Policy != nil {
		policy, err := w.policy(&w.host.Policy, r.Policy)
		if err != nil {
			return nil, err
		}
		out = policy
	}
	if err := w.actionFilters(out, r); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}
