package resolve

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// AttachResult is what became of a route.
type AttachResult struct {
	Status model.Status
	// Gateways it is attached to, with the listeners.
	Gateways map[index.ID]index.Attachment
}

// Attach decides to which listeners a route is attached, and what its author is told.
func Attach(r *index.Reader, route *model.Route) AttachResult {
	out := AttachResult{Status: model.Status{Meta: route.Meta}, Gateways: map[index.ID]index.Attachment{}}
	if route.Kind == model.KindVirtualService {
		attachVirtual(r, route, &out)
		return out
	}
	rules := ruleConditions(route)
	for _, p := range route.Parents {
		var c call
		if p.Kind == model.ParentService || p.Kind == model.ParentServiceEntry {
			c.gateway = model.MeshGateway
		}
		refs := references(r, route, c)
		accepted, listeners := attachTo(r, route, p)
		if accepted == nil {
			continue // the parent is another controller's
		}
		st := model.ParentStatus{Parent: p, Conditions: []model.Condition{*accepted, refs}}
		if accepted.OK && len(rules) > 0 {
			st.Conditions = append(slices.Clone(rules), refs)
		}
		out.Status.Parents = append(out.Status.Parents, st)
		if accepted.OK && p.Kind == model.ParentGateway {
			id := index.NewID(model.KindGateway, p.Key)
			a, ok := out.Gateways[id]
			if !ok {
				a = index.Attachment{Route: route, Parent: p}
			}
			for _, l := range listeners {
				if !slices.Contains(a.Listeners, l) {
					a.Listeners = append(a.Listeners, l)
				}
			}
			out.Gateways[id] = a
		}
	}
	return out
}

func accepted() *model.Condition {
	c := condition(typeAccepted, string(gwv1.RouteReasonAccepted), "the route is accepted", true)
	return &c
}

func notAccepted(reason gwv1.RouteConditionReason, format string, args ...any) *model.Condition {
	c := condition(typeAccepted, string(reason), fmt.Sprintf(format, args...), false)
	return &c
}

// attachTo judges one parent; a nil condition means that it is not ours to judge.
func attachTo(r *index.Reader, route *model.Route, p model.Parent) (*model.Condition, []string) {
	switch p.Kind {
	case model.ParentGateway:
		return attachToGateway(r, route, p)
	case model.ParentService, model.ParentServiceEntry:
		return attachToService(r, p), nil
	}
	return nil, nil
}

func attachToService(r *index.Reader, p model.Parent) *model.Condition {
	if p.Invalid != nil {
		return p.Invalid
	}
	var ports []model.ServicePort
	if p.Kind == model.ParentService {
		s := r.KubeService(p.Key)
		if s == nil {
			return notAccepted(gwv1.RouteReasonNoMatchingParent, "Service %q does not exist", p.Key)
		}
		ports = s.Ports
	} else {
		e := r.Entry(p.Key)
		if e == nil {
			return notAccepted(gwv1.RouteReasonNoMatchingParent, "ServiceEntry %q does not exist", p.Key)
		}
		ports = e.Ports
	}
	if !slices.ContainsFunc(ports, func(port model.ServicePort) bool { return selects(p, port) }) {
		return notAccepted(gwv1.RouteReasonNoMatchingParent, "%q has no such port", p.Key)
	}
	return accepted()
}

// attachToGateway finds the listeners that a route may attach to, and if none, why not.
func attachToGateway(r *index.Reader, route *model.Route, p model.Parent) (*model.Condition, []string) {
	g := r.Gateway(p.Key)
	if g == nil {
		return nil, nil
	}
	if c := r.Class(g.Class); c == nil || !c.Ours {
		return nil, nil
	}
	if p.Invalid != nil {
		return p.Invalid, nil
	}
	var attached []string
	named, allowed := false, false
	for i := range g.Listeners {
		l := &g.Listeners[i]
		if p.Section != "" && p.Section != l.Name || p.Port != 0 && p.Port != l.Port {
			continue
		}
		named = true
		if !slices.Contains(kindsOf(l), route.Kind) || !Allows(r, l.Allowed, g.Namespace, route.Namespace) {
			continue
		}
		allowed = true
		if len(intersect(l.Hostname, hostnamesOf(route, l))) > 0 {
			attached = append(attached, l.Name)
		}
	}
	switch {
	case !named:
		return notAccepted(gwv1.RouteReasonNoMatchingParent, "Gateway %q has no such listener", p.Key), nil
	case !allowed:
		return notAccepted(gwv1.RouteReasonNotAllowedByListeners, "no listener of Gateway %q allows %ss of namespace %q", p.Key, route.Kind, route.Namespace), nil
	case len(attached) == 0:
		return notAccepted(gwv1.RouteReasonNoMatchingListenerHostname, "no listener of Gateway %q has one of the route's hostnames", p.Key), nil
	}
	return accepted(), attached
}

// hostnamesOf are the names that a route competes for on a listener; connections without names have none.
func hostnamesOf(route *model.Route, l *model.Listener) []string {
	if l.Protocol == model.ListenTCP || l.Protocol == model.ListenHBONE || route.Kind == model.KindTCPRoute {
		return nil
	}
	return route.Hostnames
}

// Allows tells whether objects of namespace other may attach to something of namespace own.
func Allows(r *index.Reader, s model.NamespaceSelector, own, other string) bool {
	switch {
	case s.All:
		return true
	case s.Same:
		return own == other
	}
	selector, err := labels.Parse(s.Labels)
	if err != nil {
		return false
	}
	ns := r.NamespaceOf(other)
	return ns != nil && selector.Matches(labels.Set(ns.Labels))
}

// intersect is what a listener's hostname and a route's have in common, the narrower of each pair; "*" stands for
// every name (Gateway API, HTTPRouteSpec.hostnames).
func intersect(listener string, route []string) []string {
	if listener == "" {
		listener = "*"
	}
	if len(route) == 0 {
		return []string{listener}
	}
	var out []string
	for _, h := range route {
		var got string
		switch {
		case covers(listener, h):
			got = h
		case covers(h, listener):
			got = listener
		default:
			continue
		}
		if !slices.Contains(out, got) {
			out = append(out, got)
		}
	}
	return out
}

// covers tells whether every name of b is one of a. A wildcard stands for one label or more, never for none.
func covers(a, b string) bool {
	if a == "*" || a == b {
		return true
	}
	suffix, ok := strings.CutPrefix(a, "*")
	return ok && strings.HasSuffix(b, suffix) && b != "*"
}

// references judges all that a route refers to: the first reference that leads nowhere is its condition.
func references(r *index.Reader, route *model.Route, by call) model.Condition {
	var first *model.Condition
	check := func(c *model.Condition) {
		if c != nil && first == nil && c.Type != typeAccepted {
			bad := *c
			bad.Type = typeResolvedRefs
			first = &bad
		}
	}
	for i := range route.HTTP {
		rule := &route.HTTP[i]
		if rule.Invalid != nil && rule.Invalid.Type == typeResolvedRefs {
			check(rule.Invalid)
		}
		for j := range rule.Backends {
			_, _, bad := Backend(r, route, &rule.Backends[j], by)
			check(bad)
		}
		for j := range rule.Mirrors {
			_, _, bad := Backend(r, route, &rule.Mirrors[j].Backend, by)
			check(bad)
		}
		if a := rule.ExternalAuth; a != nil {
			_, _, bad := Backend(r, route, &model.Backend{Destination: a.Backend, Grant: a.Grant}, by)
			check(bad)
		}
	}
	for _, rules := range [][]model.L4Rule{route.TCP, route.TLS} {
		for i := range rules {
			for j := range rules[i].Backends {
				_, _, bad := Backend(r, route, &rules[i].Backends[j], by)
				check(bad)
			}
		}
	}
	if first != nil {
		return *first
	}
	return condition(typeResolvedRefs, string(gwv1.RouteReasonResolvedRefs), "all references are resolved", true)
}

// ruleConditions tells of rules that are refused as a whole: of all, the route is not accepted; of some, it is, but
// partially invalid (Gateway API, RouteConditionPartiallyInvalid).
func ruleConditions(route *model.Route) []model.Condition {
	var messages []string
	reason := ""
	total, bad := len(route.HTTP)+len(route.TCP)+len(route.TLS), 0
	see := func(c *model.Condition) {
		if c == nil || c.Type == typeResolvedRefs {
			return
		}
		bad++
		messages = append(messages, c.Message)
		if reason == "" {
			reason = c.Reason
		}
	}
	for i := range route.HTTP {
		c := route.HTTP[i].Invalid
		for j := range route.HTTP[i].Backends {
			// A backend that the API does not allow leaves the rest of the rule as it is.
			if inv := route.HTTP[i].Backends[j].Invalid; c == nil && inv != nil && inv.Type == typeAccepted {
				c = inv
			}
		}
		see(c)
	}
	for _, rules := range [][]model.L4Rule{route.TCP, route.TLS} {
		for i := range rules {
			see(rules[i].Invalid)
		}
	}
	switch {
	case bad == 0:
		return nil
	case bad == total:
		return []model.Condition{condition(typeAccepted, reason, join(messages), false)}
	}
	return []model.Condition{
		*accepted(),
		condition(string(gwv1.RouteConditionPartiallyInvalid), reason, "Dropped Rule(s): "+join(messages), true),
	}
}

// attachVirtual judges a VirtualService: its gateways, its destinations and its delegates.
func attachVirtual(r *index.Reader, route *model.Route, out *AttachResult) {
	var problems []string
	for _, p := range route.Parents {
		if p.Invalid != nil {
			problems = append(problems, p.Invalid.Message)
			continue
		}
		if p.Kind != model.ParentIstioGateway {
			continue
		}
		g := r.IstioGateway(p.Key)
		if g == nil {
			problems = append(problems, fmt.Sprintf("Gateway %q does not exist", p.Key))
			continue
		}
		id := index.NewID(model.KindIstioGateway, p.Key)
		a := index.Attachment{Route: route, Parent: p}
		for i := range g.Listeners {
			if len(serverHosts(g, &g.Listeners[i], route)) > 0 {
				a.Listeners = append(a.Listeners, g.Listeners[i].Name)
			}
		}
		if len(a.Listeners) > 0 {
			out.Gateways[id] = a
		}
	}
	if c := references(r, route, call{gateway: model.MeshGateway}); !c.OK {
		problems = append(problems, c.Message)
	}
	for i := range route.HTTP {
		for _, e := range Delegates(r, route, &route.HTTP[i]) {
			if e.Rule.Invalid != nil {
				problems = append(problems, e.Rule.Invalid.Message)
			}
		}
	}
	for _, rules := range [][]model.L4Rule{route.TCP, route.TLS} {
		for i := range rules {
			if rules[i].Invalid != nil {
				problems = append(problems, rules[i].Invalid.Message)
			}
		}
	}
	out.Status.Conditions = []model.Condition{verdict(problems)}
}

// verdict is the condition of an object of Istio's kinds.
func verdict(problems []string) model.Condition {
	if len(problems) == 0 {
		return condition(typeAccepted, "Accepted", "everything in it is in force", true)
	}
	return condition(typeAccepted, "PartiallyInvalid", join(problems), false)
}
