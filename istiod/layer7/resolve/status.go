package resolve

import (
	"fmt"
	"slices"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/graph"
	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// Types of a Gateway's addresses.
const (
	addressIP       = string(gwv1.IPAddressType)
	addressHostname = string(gwv1.HostnameAddressType)
)

// Class computes the status of a GatewayClass; nil if it is not ours.
func Class(c *model.GatewayClass) *model.Status {
	if !c.Ours {
		return nil
	}
	out := &model.Status{Meta: c.Meta}
	accepted := condition(typeAccepted, string(gwv1.GatewayClassReasonAccepted), "the class is handled by this mesh", true)
	if c.Invalid != nil {
		accepted = *c.Invalid
		accepted.Type = typeAccepted
	}
	out.Conditions = []model.Condition{accepted}
	out.Features = featuresOf(c.Waypoint)
	return out
}

// GatewayResult is what became of a Gateway.
type GatewayResult struct {
	Status model.Status
	// Waypoint is what graph is told, if it is one that can be used.
	Waypoint *model.Waypoint
}

// Gateway computes the status of a Gateway of ours, and the waypoint that it is. started says that pods which are not
// ready yet may be starting: a waypoint that has never been ready does not take traffic, one that was does.
func Gateway(r *index.Reader, g *model.Gateway, bound, started bool) GatewayResult {
	out := GatewayResult{Status: model.Status{Meta: g.Meta}}
	states := Listeners(r, g, g.Namespace)
	attached := map[string]int{}
	for _, a := range r.AttachedTo(index.NewID(model.KindGateway, g.Key)) {
		for _, l := range a.Listeners {
			attached[l]++
		}
	}
	out.Status.Listeners = ListenerStatuses(states, attached)
	accepted := gatewayAccepted(r, g, states)
	key := model.Key{Namespace: g.Namespace, Name: ServiceName(g)}
	s := r.KubeService(key)
	var pods, ready int
	if s != nil {
		for _, e := range r.EndpointsOf(key) {
			pods++
			if e.Ready {
				ready++
			}
		}
		out.Status.Addresses = addresses(g, s)
	}
	out.Status.Conditions = []model.Condition{accepted, programmed(g, accepted, s, out.Status.Addresses, ready)}
	if c := clientCertificate(r, g); c != nil {
		out.Status.Conditions = append(out.Status.Conditions, *c)
	}
	if g.InsecureFrontend {
		out.Status.Conditions = append(out.Status.Conditions, condition(
			string(gwv1.GatewayConditionInsecureFrontendValidationMode), string(gwv1.GatewayReasonConfigurationChanged),
			"spec.tls.frontend lets in clients whose certificate is absent or does not verify", true))
	}
	if g.Waypoint && accepted.OK {
		out.Waypoint = waypoint(r, g, translate.ServiceHostname(r.Config, key))
		out.Waypoint.Ready = s != nil && (ready > 0 || bound || started && pods > 0)
	}
	return out
}

func gatewayAccepted(r *index.Reader, g *model.Gateway, states []ListenerState) model.Condition {
	if g.Invalid != nil {
		c := *g.Invalid
		c.Type = typeAccepted
		return c
	}
	if g.Parameters != nil {
		if _, ok := r.Data(*g.Parameters); !ok {
			return condition(typeAccepted, string(gwv1.GatewayReasonInvalidParameters),
				fmt.Sprintf("%s %q of spec.infrastructure.parametersRef does not exist", g.Parameters.Kind, g.Parameters.Key), false)
		}
	}
	good, bad := 0, []string{}
	for i := range states {
		switch l := &states[i]; {
		case !l.Usable():
			bad = append(bad, l.Name)
		default:
			good++
		}
	}
	switch {
	case len(bad) == 0:
		return condition(typeAccepted, string(gwv1.GatewayReasonAccepted), "the Gateway is accepted", true)
	case good == 0:
		return condition(typeAccepted, string(gwv1.GatewayReasonListenersNotValid), "no listener is valid: "+strings.Join(bad, ", "), false)
	}
	return condition(typeAccepted, string(gwv1.GatewayReasonListenersNotValid), "these listeners are not valid: "+strings.Join(bad, ", "), true)
}

// addresses are those by which a Gateway is reached.
func addresses(g *model.Gateway, s *index.Service) []model.GatewayAddress {
	if len(s.Kube.External) > 0 {
		return s.Kube.External
	}
	if s.Kube.LoadBalancer {
		return nil // it is still to come
	}
	if g.Waypoint && len(s.VIPs) > 0 {
		return []model.GatewayAddress{{Type: addressIP, Value: s.VIPs[0].String()}}
	}
	return []model.GatewayAddress{{Type: addressHostname, Value: s.Host}}
}

// programmed tells whether traffic can come in.
func programmed(g *model.Gateway, accepted model.Condition, s *index.Service, got []model.GatewayAddress, ready int) model.Condition {
	no := func(reason gwv1.GatewayConditionReason, format string, args ...any) model.Condition {
		return condition(typeProgrammed, string(reason), fmt.Sprintf(format, args...), false)
	}
	switch {
	case !accepted.OK:
		return no(gwv1.GatewayReasonInvalid, "%s", accepted.Message)
	case s == nil && len(g.Addresses) > 1:
		return no(gwv1.GatewayReasonAddressNotUsable, "a gateway has one address, and %d are asked for", len(g.Addresses))
	case s == nil:
		return no(gwv1.GatewayReasonPending, "Service %q does not exist yet", ServiceName(g))
	case len(got) == 0:
		return no(gwv1.GatewayReasonAddressNotAssigned, "Service %q has no address yet: nothing assigned one for its load balancer", s.Name)
	}
	for _, want := range g.Addresses {
		if want.Type == addressIP && want.Value != "" && !slices.Contains(got, want) {
			return no(gwv1.GatewayReasonAddressNotUsable, "address %s was not assigned", want.Value)
		}
	}
	if ready == 0 {
		return no(gwv1.GatewayReasonPending, "no pod of Service %q is ready", s.Name)
	}
	return condition(typeProgrammed, string(gwv1.GatewayReasonProgrammed), "proxies are ready to take traffic", true)
}

// clientCertificate judges the certificate that a Gateway shows to backends; nil if it has none.
func clientCertificate(r *index.Reader, g *model.Gateway) *model.Condition {
	ref := g.BackendClientCert
	if ref == nil {
		return nil
	}
	out := condition(typeResolvedRefs, string(gwv1.GatewayReasonResolvedRefs), "all references are resolved", true)
	switch {
	case ref.Invalid != nil:
		out = *ref.Invalid
		out.Type = typeResolvedRefs
	case !r.Granted(ref.Grant):
		out = condition(typeResolvedRefs, string(gwv1.GatewayReasonRefNotPermitted),
			fmt.Sprintf("no ReferenceGrant in namespace %q lets this Gateway refer to %s %q", ref.Namespace, ref.Kind, ref.Name), false)
	default:
		if _, err := certificateIn(r, ref.ObjectRef, r.Now); err != nil {
			out = condition(typeResolvedRefs, string(gwv1.GatewayReasonInvalidClientCertificateRef), err.Error(), false)
		}
	}
	return &out
}

// waypoint is what a use-waypoint label resolves to.
func waypoint(r *index.Reader, g *model.Gateway, host string) *model.Waypoint {
	out := &model.Waypoint{Key: g.Key, For: g.For, Hostname: host, HBONEPort: ports.HBONE, Namespaces: map[string]bool{}}
	for i := range g.Listeners {
		l := &g.Listeners[i]
		switch {
		case l.Protocol != model.ListenHBONE:
		case l.Allowed.All:
			out.AllNamespaces = true
		case !l.Allowed.Same:
			for _, ns := range r.AllNamespaces() {
				if Allows(r, l.Allowed, g.Namespace, ns.Name) {
					out.Namespaces[ns.Name] = true
				}
			}
		}
	}
	return out
}

// Binding computes the condition istio.io/WaypointBound of a service, and which waypoints serve it.
func Binding(r *index.Reader, s *index.Service) (*model.Condition, []model.Key) {
	b := r.BindingOf(s)
	if b.Asked == (model.Key{}) {
		return nil, nil
	}
	if b.Waypoint == nil {
		c := condition(typeBound, b.Reason, b.Message, false)
		return &c, nil
	}
	keys := []model.Key{b.Waypoint.Key}
	if b.Canary != nil {
		keys = append(keys, b.Canary.Key)
	}
	if !b.Waypoint.Ready {
		c := condition(typeBound, graph.ReasonNotReady, fmt.Sprintf("waypoint %q is not ready", b.Waypoint.Key), false)
		return &c, keys // it is configured, so that it knows the service once it is
	}
	message := "attached to waypoint " + b.Waypoint.Key.String()
	switch {
	case b.Ingress:
		message += "; what comes from gateways goes through it too"
	case b.IngressLabel:
		message += "; what comes from gateways does not go through it (label istio.io/ingress-use-waypoint)"
	}
	if b.Reason != "" {
		message += "; canary waypoint not attached: " + b.Message
	}
	c := condition(typeBound, "WaypointAccepted", message, true)
	return &c, keys
}

const (
	typeBound            = "istio.io/WaypointBound"
	typeMissing          = "istio.io/WaypointMissing"
	typeWaypointAccepted = "WaypointAccepted"
)

// Entry computes the status of a ServiceEntry.
func Entry(r *index.Reader, e *model.ServiceEntry) model.Status {
	out := model.Status{Meta: e.Meta}
	if len(e.Hosts) == 0 {
		return out
	}
	c, keys := Binding(r, index.EntryService(e, e.Hosts[0]))
	if c != nil {
		out.Conditions = append(out.Conditions, *c)
	}
	if strings.HasPrefix(e.Hosts[0], "*") && len(keys) == 0 {
		out.Conditions = append(out.Conditions, condition(typeMissing, "NoWaypointForWildcardService",
			"a ServiceEntry for a wildcard host has no effect without a waypoint", true))
	}
	return out
}

// Policy computes the status of a policy that names targets: at least one must exist and be bound to a waypoint, or
// be a gateway. Policies without targets have nothing to be told here.
func Policy(r *index.Reader, meta model.Meta, targets []model.PolicyTarget, warnings []string) model.Status {
	out := model.Status{Meta: meta}
	if len(targets) == 0 {
		if len(warnings) > 0 {
			out.Conditions = []model.Condition{condition(typeAccepted, "PartiallyInvalid", join(slices.Clone(warnings)), true)}
		}
		return out
	}
	var missing, unbound []string
	good := 0
	for _, t := range targets {
		switch exists, bound := found(r, meta.Namespace, t); {
		case !exists:
			missing = append(missing, fmt.Sprintf("%s %q does not exist", t.Kind, t.Key))
		case !bound:
			unbound = append(unbound, fmt.Sprintf("%s %q is not bound to a waypoint", t.Kind, t.Key))
		default:
			good++
		}
	}
	problems := slices.Concat(missing, unbound, warnings)
	c := condition(typeWaypointAccepted, "Accepted", "bound to "+fmt.Sprint(good)+" targets", true)
	switch {
	case good == 0 && len(missing) > 0:
		c = condition(typeWaypointAccepted, "TargetNotFound", join(problems), false)
	case good == 0:
		c = condition(typeWaypointAccepted, "AncestorNotBound", join(problems), false)
	case len(problems) > 0:
		c = condition(typeWaypointAccepted, "PartiallyInvalid", join(problems), true)
	}
	out.Conditions = []model.Condition{c}
	return out
}

// found tells whether a policy's target exists and whether a proxy stands for it.
func found(r *index.Reader, namespace string, t model.PolicyTarget) (exists, bound bool) {
	switch t.Kind {
	case "Gateway":
		g := r.Gateway(t.Key)
		if g == nil {
			return false, false
		}
		c := r.Class(g.Class)
		return true, c != nil && c.Ours
	case "GatewayClass":
		c := r.Class(t.Name)
		return c != nil, c != nil && c.Ours && namespace == r.RootNamespace
	case "Service":
		s := r.KubeService(t.Key)
		if s == nil {
			return false, false
		}
		return true, r.BindingOf(s).Waypoint != nil
	case "ServiceEntry":
		e := r.Entry(t.Key)
		if e == nil || len(e.Hosts) == 0 {
			return e != nil, false
		}
		return true, r.BindingOf(index.EntryService(e, e.Hosts[0])).Waypoint != nil
	case "HTTPRoute", "GRPCRoute":
		return r.Route(model.Kind(t.Kind), t.Key) != nil, true
	}
	return false, false
}

// BackendTLS computes the status of a BackendTLSPolicy, for each gateway or waypoint that reaches a target.
func BackendTLS(r *index.Reader, p *model.BackendTLS, ancestors []model.Key) model.Status {
	out := model.Status{Meta: p.Meta}
	accepted := condition(typeAccepted, string(gwv1.PolicyReasonAccepted), "the policy is in force", true)
	resolved := condition(typeResolvedRefs, string(gwv1.BackendTLSPolicyReasonResolvedRefs), "all references are resolved", true)
	good := 0
	for _, ref := range p.CARefs {
		if _, err := rootsIn(r, ref); err != nil {
			resolved = condition(typeResolvedRefs, string(gwv1.BackendTLSPolicyReasonInvalidCACertificateRef), err.Error(), false)
		} else {
			good++
		}
	}
	switch {
	case p.Invalid != nil && p.Invalid.Type == typeResolvedRefs:
		resolved = *p.Invalid
		if good == 0 {
			accepted = condition(typeAccepted, string(gwv1.BackendTLSPolicyReasonNoValidCACertificate), resolved.Message, false)
		}
	case p.Invalid != nil:
		accepted = *p.Invalid
	case len(p.CARefs) > 0 && good == 0:
		accepted = condition(typeAccepted, string(gwv1.BackendTLSPolicyReasonNoValidCACertificate), resolved.Message, false)
	case conflicted(r, p):
		accepted = condition(typeAccepted, string(gwv1.PolicyReasonConflicted), "an older policy has the same target", false)
	case !anyTarget(r, p):
		accepted = condition(typeAccepted, string(gwv1.PolicyReasonTargetNotFound), "no target exists", false)
	}
	for _, key := range ancestors {
		out.Parents = append(out.Parents, model.ParentStatus{
			Parent: model.Parent{Kind: model.ParentGateway, Key: key}, Conditions: []model.Condition{accepted, resolved},
		})
	}
	return out
}

// conflicted tells whether an older policy has all of this one's targets.
func conflicted(r *index.Reader, p *model.BackendTLS) bool {
	for _, t := range p.Targets {
		mine := true
		for _, o := range index.Targeting[*model.BackendTLS](r, t.Kind, t.Key) {
			if o.Key != p.Key && index.Older(o.Meta, p.Meta) < 0 && slices.Contains(o.Targets, t) {
				mine = false
			}
		}
		if mine {
			return false
		}
	}
	return len(p.Targets) > 0
}

func anyTarget(r *index.Reader, p *model.BackendTLS) bool {
	return slices.ContainsFunc(p.Targets, func(t model.PolicyTarget) bool {
		if t.Kind == "Service" {
			return r.ServiceFor(translate.ServiceHostname(r.Config, t.Key), t.Namespace) != nil
		}
		return r.Entry(t.Key) != nil
	})
}

// IstioGateway computes the status of a Gateway of Istio's API.
func IstioGateway(r *index.Reader, g *model.Gateway) model.Status {
	var problems []string
	states := Listeners(r, g, g.Namespace)
	for i := range states {
		l := &states[i]
		for _, c := range []*model.Condition{l.Refused, l.Unresolved} {
			if c != nil {
				problems = append(problems, fmt.Sprintf("server %q: %s", l.Name, c.Message))
			}
		}
	}
	return model.Status{Meta: g.Meta, Conditions: []model.Condition{verdict(problems)}}
}
