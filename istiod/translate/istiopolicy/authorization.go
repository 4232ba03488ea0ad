package istiopolicy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

const (
	// annotationDryRun on a policy: evaluated and logged, not enforced.
	annotationDryRun = "istio.io/dry-run"
	// spiffeScheme does not belong into Istio's principals.
	spiffeScheme = "spiffe://"
)

// Authorization translates a policy with all its layer-7 fields. The result is never nil.
func Authorization(cfg translate.Config, ap *securityv1.AuthorizationPolicy) (*model.Authorization, error) {
	spec := &ap.Spec
	p := &problems{}
	out := &model.Authorization{Meta: meta(model.KindAuthorizationPolicy, ap.ObjectMeta)}
	out.Targets, out.Selector = p.attachment(cfg, ap.Namespace, spec.GetSelector(), spec.GetTargetRef(), spec.GetTargetRefs())
	p.action(spec, out)
	if v := ap.Annotations[annotationDryRun]; v != "" {
		dry, err := strconv.ParseBool(v)
		if err != nil {
			p.warn("annotation %s: %q is neither true nor false; the policy is enforced", annotationDryRun, v)
		}
		out.DryRun = dry
	}
	for i, r := range spec.GetRules() {
		t := authzRule{problems: p, namespace: ap.Namespace, field: fmt.Sprintf("spec.rules[%d]", i)}
		before := len(p.errs)
		rules := t.rule(r)
		// Without the condition that cannot be read, the rule would match more: that is safe unless it allows.
		if out.Action == model.AuthzAllow && len(p.errs) > before {
			continue
		}
		out.Rules = append(out.Rules, rules...)
	}
	if len(spec.GetRules()) == 0 && out.Action != model.AuthzAllow {
		p.warn("spec.rules: empty, so that the policy never applies; [{}] matches every request")
	}
	out.Warnings = p.warnings
	return out, p.err()
}

// action reads what a policy does. A CUSTOM policy that names nobody to ask refuses what it would ask about, as Istio
// does when the provider is missing (pilot/pkg/security/authz/builder).
func (p *problems) action(spec *securityapi.AuthorizationPolicy, out *model.Authorization) {
	provider := spec.GetProvider().GetName()
	switch spec.GetAction() {
	case securityapi.AuthorizationPolicy_ALLOW:
		out.Action = model.AuthzAllow
	case securityapi.AuthorizationPolicy_DENY:
		out.Action = model.AuthzDeny
	case securityapi.AuthorizationPolicy_AUDIT:
		out.Action = model.AuthzAudit
	case securityapi.AuthorizationPolicy_CUSTOM:
		out.Action, out.Provider = model.AuthzCustom, provider
		if provider == "" {
			p.fail("spec.provider.name", "empty, but action CUSTOM asks a provider; what the rules match is denied")
			out.Action = model.AuthzDeny
		}
		return
	default:
		p.failValue("spec.action", spec.GetAction().String(), "unknown; what the rules match is denied")
		out.Action = model.AuthzDeny
	}
	if spec.GetProvider() != nil {
		p.failValue("spec.provider.name", provider, "only action CUSTOM asks a provider")
	}
}

// authzRule translates one rule.
type authzRule struct {
	*problems
	namespace, field string
}

// rule gives one rule, or several of which each must be tried: a source that limits principals and trust domains at
// once takes a rule of its own, since both are patterns on one name and both must hold.
func (t *authzRule) rule(r *securityapi.Rule) []model.AuthzRule {
	base := model.AuthzRule{}
	for i, o := range r.GetTo() {
		base.To = append(base.To, t.operation(fmt.Sprintf("%s.to[%d].operation", t.field, i), o.GetOperation()))
	}
	for i, c := range r.GetWhen() {
		if cond, ok := t.condition(fmt.Sprintf("%s.when[%d]", t.field, i), c); ok {
			base.When = append(base.When, cond)
		}
	}
	var apart []model.AuthzRule
	for i, f := range r.GetFrom() {
		source, domains := t.source(fmt.Sprintf("%s.from[%d].source", t.field, i), f.GetSource())
		if len(domains) > 0 && len(source.Principals.In) > 0 {
			own := base
			own.From = []model.AuthzSource{source}
			own.When = append(slices.Clone(base.When), model.AuthzCondition{Key: whenSourcePrincipal, Patterns: model.Patterns{In: domains}})
			apart = append(apart, own)
			continue
		}
		source.Principals.In = append(source.Principals.In, domains...)
		base.From = append(base.From, source)
	}
	if len(apart) > 0 && len(base.From) == 0 {
		return apart
	}
	return append([]model.AuthzRule{base}, apart...)
}

// source reads who calls. domains are the trust domains of which the caller must be in one, as patterns of principals.
func (t *authzRule) source(field string, s *securityapi.Source) (out model.AuthzSource, domains []string) {
	out = model.AuthzSource{
		Principals:        both(t.principalList, field+".principals", s.GetPrincipals(), field+".notPrincipals", s.GetNotPrincipals()),
		RequestPrincipals: both(t.strings, field+".requestPrincipals", s.GetRequestPrincipals(), field+".notRequestPrincipals", s.GetNotRequestPrincipals()),
		Namespaces:        both(t.namespaceList, field+".namespaces", s.GetNamespaces(), field+".notNamespaces", s.GetNotNamespaces()),
		ServiceAccounts:   both(t.accounts, field+".serviceAccounts", s.GetServiceAccounts(), field+".notServiceAccounts", s.GetNotServiceAccounts()),
		IPs:               model.Blocks{In: t.blocks(field+".ipBlocks", s.GetIpBlocks()), Not: t.blocks(field+".notIpBlocks", s.GetNotIpBlocks())},
		RemoteIPs:         model.Blocks{In: t.blocks(field+".remoteIpBlocks", s.GetRemoteIpBlocks()), Not: t.blocks(field+".notRemoteIpBlocks", s.GetNotRemoteIpBlocks())},
	}
	domains = t.trustDomains(field+".trustDomains", s.GetTrustDomains())
	out.Principals.Not = append(out.Principals.Not, t.trustDomains(field+".notTrustDomains", s.GetNotTrustDomains())...)
	set := len(s.GetPrincipals()) + len(s.GetNotPrincipals()) + len(s.GetRequestPrincipals()) + len(s.GetNotRequestPrincipals()) +
		len(s.GetNamespaces()) + len(s.GetNotNamespaces()) + len(s.GetServiceAccounts()) + len(s.GetNotServiceAccounts()) +
		len(s.GetIpBlocks()) + len(s.GetNotIpBlocks()) + len(s.GetRemoteIpBlocks()) + len(s.GetNotRemoteIpBlocks()) +
		len(s.GetTrustDomains()) + len(s.GetNotTrustDomains())
	if set == 0 {
		t.fail(field, "empty; leave out from for every source")
	}
	return out, domains
}

func (t *authzRule) operation(field string, o *securityapi.Operation) model.AuthzOperation {
	out := model.AuthzOperation{
		Hosts:   both(t.strings, field+".hosts", o.GetHosts(), field+".notHosts", o.GetNotHosts()),
		Ports:   both(t.ports, field+".ports", o.GetPorts(), field+".notPorts", o.GetNotPorts()),
		Methods: both(t.strings, field+".methods", o.GetMethods(), field+".notMethods", o.GetNotMethods()),
		Paths:   both(t.paths, field+".paths", o.GetPaths(), field+".notPaths", o.GetNotPaths()),
	}
	set := len(o.GetHosts()) + len(o.GetNotHosts()) + len(o.GetPorts()) + len(o.GetNotPorts()) +
		len(o.GetMethods()) + len(o.GetNotMethods()) + len(o.GetPaths()) + len(o.GetNotPaths())
	if set == 0 {
		t.fail(field, "empty; leave out to for every operation")
	}
	return out
}

// both reads a list and its negation.
func both(read func(field string, in []string) []string, in string, yes []string, not string, no []string) model.Patterns {
	return model.Patterns{In: read(in, yes), Not: read(not, no)}
}

// strings reads patterns. Istio takes an asterisk that is not at an end literally, which nobody means: a warning.
func (p *problems) strings(field string, in []string) []string {
	var out []string
	for _, s := range in {
		if s == "" {
			p.fail(field, "holds an empty value")
			continue
		}
		if !oneAsterisk(s) {
			p.warn("%s: %q matches only itself; an asterisk is a pattern at one end only", field, s)
		}
		out = append(out, s)
	}
	return out
}

// oneAsterisk tells whether s is exact, or a pattern with one asterisk at an end.
func oneAsterisk(s string) bool {
	switch strings.Count(s, "*") {
	case 0:
		return true
	case 1:
		return s[0] == '*' || s[len(s)-1] == '*'
	}
	return false
}

func (p *problems) principalList(field string, in []string) []string {
	for _, s := range in {
		if strings.HasPrefix(s, spiffeScheme) {
			p.warn("%s: %q matches nobody; a principal is written without %s", field, s, spiffeScheme)
		}
	}
	return p.strings(field, in)
}

// namespaceList refuses several asterisks, which Istio alone allows here and the model has no form for.
func (p *problems) namespaceList(field string, in []string) []string {
	var out []string
	for _, s := range in {
		if !oneAsterisk(s) {
			p.failValue(field, s, "an asterisk may stand at one end only")
			continue
		}
		out = append(out, s)
	}
	return p.strings(field, out)
}

// trustDomains turns patterns of trust domains into patterns of principals, which begin with them.
func (p *problems) trustDomains(field string, in []string) []string {
	var out []string
	for _, s := range in {
		switch {
		case s == "" || strings.Contains(s, "/"):
			p.failValue(field, s, "is not a trust domain")
		case s == "*":
			out = append(out, s)
		case strings.HasPrefix(s, "*") || !oneAsterisk(s):
			p.failValue(field, s, "an asterisk may stand at the end only")
		case strings.HasSuffix(s, "*"):
			out = append(out, s)
		default:
			out = append(out, s+"/*")
		}
	}
	return out
}

// accounts reads "<namespace>/<name>", or "<name>" in the policy's own namespace, without patterns.
func (t *authzRule) accounts(field string, in []string) []string {
	var out []string
	for _, s := range in {
		ns, name, ok := strings.Cut(s, "/")
		if !ok {
			ns, name = t.namespace, s
		}
		if ns == "" || name == "" || strings.Contains(name, "/") || strings.Contains(s, "*") {
			t.failValue(field, s, "is not a service account")
			continue
		}
		out = append(out, ns+"/"+name)
	}
	return out
}

func (p *problems) ports(field string, in []string) []string {
	var out []string
	for _, s := range in {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			p.failValue(field, s, "is not a port")
			continue
		}
		out = append(out, strconv.FormatUint(n, 10))
	}
	return out
}

func (p *problems) blocks(field string, in []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		block, err := parseBlock(s)
		if err != nil {
			p.failValue(field, s, "is neither an address nor a CIDR")
			continue
		}
		out = append(out, block)
	}
	return out
}

func parseBlock(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		b, err := netip.ParsePrefix(s)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("read block %q: %w", s, err)
		}
		return b.Masked(), nil
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
