package translate

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// annotationDryRun on a policy: evaluated and logged, not enforced.
const annotationDryRun = "istio.io/dry-run"

// Attributes of a rule's conditions that the node proxy can see on a connection.
const (
	whenSourceIP         = "source.ip"
	whenSourceNamespace  = "source.namespace"
	whenSourcePrincipal  = "source.principal"
	whenSourceAccount    = "source.serviceAccount"
	whenDestinationIP    = "destination.ip"
	whenDestinationPort  = "destination.port"
	unsupportedTrustDoms = "trustDomains"
)

// Policy is a policy in the form that the node proxy enforces.
type Policy struct {
	model.Key
	// Selector is empty for a policy of a whole namespace or of the mesh; those
	// apply by their scope and are never listed in a workload.
	Selector map[string]string
	// Wire is nil when the node proxy does not enforce this policy at all.
	Wire *security.Authorization
	// Notes say what of the policy the node proxy does not enforce, for the object's status.
	Notes []string
}

// AuthorizationPolicy translates a policy. It returns nil for one that targets
// Gateways or Services, which is a waypoint's.
//
// An error names the fields that make no sense. The Policy that comes with it is
// the closest safe one: an ALLOW rule that holds an error is left out, a DENY rule
// loses only the values that cannot be read. A caller that has an earlier good
// translation uses that instead.
func AuthorizationPolicy(cfg Config, ap *securityv1.AuthorizationPolicy) (*Policy, error) {
	spec := &ap.Spec
	if spec.GetTargetRef() != nil || len(spec.GetTargetRefs()) > 0 {
		return nil, nil
	}
	out := &Policy{
		Key:      model.Key{Namespace: ap.Namespace, Name: ap.Name},
		Selector: spec.GetSelector().GetMatchLabels(),
	}
	wire := &security.Authorization{Name: ap.Name, Namespace: ap.Namespace, Scope: security.Scope_WORKLOAD_SELECTOR}
	if len(out.Selector) == 0 {
		wire.Scope = security.Scope_NAMESPACE
		if ap.Namespace == cfg.RootNamespace {
			wire.Scope = security.Scope_GLOBAL
		}
	}
	switch spec.GetAction() {
	case securityapi.AuthorizationPolicy_ALLOW:
	case securityapi.AuthorizationPolicy_DENY:
		wire.Action = security.Action_DENY
	default:
		out.Notes = append(out.Notes, fmt.Sprintf("ztunnel does not support the action %s", spec.GetAction()))
		return out, nil
	}
	if v := ap.Annotations[annotationDryRun]; v != "" {
		dry, err := strconv.ParseBool(v)
		if err != nil {
			out.Notes = append(out.Notes, fmt.Sprintf("annotation %s: %q is neither true nor false; the policy is enforced", annotationDryRun, v))
		}
		wire.DryRun = dry
	}

	var errs []error
	dropped := map[string]bool{}
	for i, r := range spec.GetRules() {
		t := ruleTranslation{namespace: ap.Namespace, field: fmt.Sprintf("spec.rules[%d]", i), l7: dropped}
		rule, keep := t.rule(r, wire.Action)
		errs = append(errs, t.errs...)
		if keep && (len(t.errs) == 0 || wire.Action == security.Action_DENY) {
			wire.Rules = append(wire.Rules, rule)
		}
	}
	if len(dropped) > 0 {
		out.Notes = append(out.Notes, l7Note(wire, dropped))
	}
	out.Wire = wire
	return out, errors.Join(errs...)
}

func l7Note(wire *security.Authorization, dropped map[string]bool) string {
	names := make([]string, 0, len(dropped))
	for n := range dropped {
		names = append(names, n)
	}
	slices.Sort(names)
	effect := "rules of this ALLOW policy that use them match nothing"
	if wire.Action == security.Action_DENY {
		effect = "this DENY policy applies without them"
	}
	return fmt.Sprintf("ztunnel does not see %s: %s; a waypoint does", strings.Join(names, ", "), effect)
}

// ruleTranslation collects what is wrong with one rule, and what of it is layer 7.
type ruleTranslation struct {
	namespace string
	field     string
	l7        map[string]bool
	l7Found   bool
	errs      []error
}

// rule translates one rule: its to, from and when are clauses, all of which must
// hold. An ALLOW rule with any layer 7 part is dropped whole, since without that
// part it would allow more; in a DENY rule only that part is dropped.
func (t *ruleTranslation) rule(r *securityapi.Rule, action security.Action) (*security.Rule, bool) {
	out := &security.Rule{}
	if to := r.GetTo(); len(to) > 0 {
		c := &security.Clause{}
		for i, o := range to {
			c.Matches = append(c.Matches, t.operation(fmt.Sprintf("to[%d].operation", i), o.GetOperation()))
		}
		out.Clauses = append(out.Clauses, c)
	}
	if from := r.GetFrom(); len(from) > 0 {
		c := &security.Clause{}
		for i, f := range from {
			c.Matches = append(c.Matches, t.source(fmt.Sprintf("from[%d].source", i), f.GetSource()))
		}
		out.Clauses = append(out.Clauses, c)
	}
	for i, w := range r.GetWhen() {
		m := t.condition(fmt.Sprintf("when[%d]", i), w)
		out.Clauses = append(out.Clauses, &security.Clause{Matches: []*security.Match{m}})
	}
	return out, action != security.Action_ALLOW || !t.l7Found
}

func (t *ruleTranslation) operation(field string, o *securityapi.Operation) *security.Match {
	t.layer7("hosts", o.GetHosts())
	t.layer7("notHosts", o.GetNotHosts())
	t.layer7("methods", o.GetMethods())
	t.layer7("notMethods", o.GetNotMethods())
	t.layer7("paths", o.GetPaths())
	t.layer7("notPaths", o.GetNotPaths())
	return &security.Match{
		DestinationPorts:    t.ports(field+".ports", o.GetPorts()),
		NotDestinationPorts: t.ports(field+".notPorts", o.GetNotPorts()),
	}
}

func (t *ruleTranslation) source(field string, s *securityapi.Source) *security.Match {
	t.layer7("remoteIpBlocks", s.GetRemoteIpBlocks())
	t.layer7("notRemoteIpBlocks", s.GetNotRemoteIpBlocks())
	t.layer7("requestPrincipals", s.GetRequestPrincipals())
	t.layer7("notRequestPrincipals", s.GetNotRequestPrincipals())
	// The wire format has no field for a trust domain alone.
	t.layer7(unsupportedTrustDoms, append(s.GetTrustDomains(), s.GetNotTrustDomains()...))
	return &security.Match{
		SourceIps:          t.cidrs(field+".ipBlocks", s.GetIpBlocks()),
		NotSourceIps:       t.cidrs(field+".notIpBlocks", s.GetNotIpBlocks()),
		Namespaces:         matches(s.GetNamespaces()),
		NotNamespaces:      matches(s.GetNotNamespaces()),
		ServiceAccounts:    t.accounts(field+".serviceAccounts", s.GetServiceAccounts()),
		NotServiceAccounts: t.accounts(field+".notServiceAccounts", s.GetNotServiceAccounts()),
		Principals:         matches(s.GetPrincipals()),
		NotPrincipals:      matches(s.GetNotPrincipals()),
	}
}

// condition translates one key of when. A key that is not seen at layer 4 leaves
// the match empty, which never matches.
func (t *ruleTranslation) condition(field string, c *securityapi.Condition) *security.Match {
	m := &security.Match{}
	yes, no := c.GetValues(), c.GetNotValues()
	switch c.GetKey() {
	case whenSourceIP:
		m.SourceIps, m.NotSourceIps = t.cidrs(field+".values", yes), t.cidrs(field+".notValues", no)
	case whenDestinationIP:
		m.DestinationIps, m.NotDestinationIps = t.cidrs(field+".values", yes), t.cidrs(field+".notValues", no)
	case whenDestinationPort:
		m.DestinationPorts, m.NotDestinationPorts = t.ports(field+".values", yes), t.ports(field+".notValues", no)
	case whenSourceNamespace:
		m.Namespaces, m.NotNamespaces = matches(yes), matches(no)
	case whenSourcePrincipal:
		m.Principals, m.NotPrincipals = matches(yes), matches(no)
	case whenSourceAccount:
		m.ServiceAccounts, m.NotServiceAccounts = t.accounts(field+".values", yes), t.accounts(field+".notValues", no)
	default:
		t.l7Found = true
		t.l7[c.GetKey()] = true
	}
	return m
}

func (t *ruleTranslation) layer7(name string, values []string) {
	if len(values) > 0 {
		t.l7Found = true
		t.l7[name] = true
	}
}

func (t *ruleTranslation) fail(field, format string, args ...any) {
	t.errs = append(t.errs, fmt.Errorf("read "+t.field+"."+field+": "+format, args...))
}

func (t *ruleTranslation) ports(field string, in []string) []uint32 {
	var out []uint32
	for _, s := range in {
		p, err := strconv.ParseUint(s, 10, 16)
		if err != nil || p == 0 {
			t.fail(field, "%q is not a port", s)
			continue
		}
		out = append(out, uint32(p))
	}
	return out
}

func (t *ruleTranslation) cidrs(field string, in []string) []*security.Address {
	var out []*security.Address
	for _, s := range in {
		p, err := parseBlock(s)
		if err != nil {
			t.fail(field, "%q is neither an address nor a CIDR", s)
			continue
		}
		out = append(out, &security.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())})
	}
	return out
}

func parseBlock(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("read block %q: %w", s, err)
		}
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("read address %q: %w", s, err)
	}
	if a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("read address %q: has a zone", s)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// accounts reads "<namespace>/<name>", or "<name>" in the policy's own namespace.
func (t *ruleTranslation) accounts(field string, in []string) []*security.ServiceAccountMatch {
	var out []*security.ServiceAccountMatch
	for _, s := range in {
		ns, name, ok := strings.Cut(s, "/")
		if !ok {
			ns, name = t.namespace, s
		}
		if ns == "" || name == "" || strings.Contains(name, "/") {
			t.fail(field, "%q is not a service account", s)
			continue
		}
		out = append(out, &security.ServiceAccountMatch{Namespace: ns, ServiceAccount: name})
	}
	return out
}

// matches reads strings with an asterisk at one end: "*" any value, "*x" a suffix, "x*" a prefix.
func matches(in []string) []*security.StringMatch {
	var out []*security.StringMatch
	for _, s := range in {
		m := &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: s}}
		switch {
		case s == "*":
			m.MatchType = &security.StringMatch_Presence{Presence: &emptypb.Empty{}}
		case strings.HasPrefix(s, "*"):
			m.MatchType = &security.StringMatch_Suffix{Suffix: s[1:]}
		case strings.HasSuffix(s, "*"):
			m.MatchType = &security.StringMatch_Prefix{Prefix: s[:len(s)-1]}
		}
		out = append(out, m)
	}
	return out
}
