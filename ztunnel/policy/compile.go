package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	contract "github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/security"
)

// MaxElements bounds one policy: its rules, clauses, matches and values together.
// Each is looked at for each connection, so a larger one is refused rather than
// allowed to slow every connection of the node; at 20 ns each this is about 1 ms.
const MaxElements = 50_000

// Scope says which workloads a policy applies to.
type Scope uint8

// The scopes.
const (
	ScopeGlobal Scope = iota
	ScopeNamespace
	ScopeWorkload // those that name it
)

// Policy is one compiled Authorization. Immutable.
type Policy struct {
	name       string // namespace/name
	namespace  string
	dryRunName string
	scope      Scope
	deny       bool
	dryRun     bool
	unusable   bool
	opening    bool // for connections as they open only
	rules      []rule
	config     *security.Authorization
}

type rule struct {
	clauses []clause
	unknown bool // holds a field that we cannot read
}

type clause struct {
	alternatives []match
	unknown      bool
}

type match struct {
	empty, unknown bool

	namespaces, principals field[pattern]
	accounts               field[account]
	sourceIPs, destIPs     field[netip.Prefix]
	destPorts              field[uint16]
}

// field is one attribute of a match with its negation. unread says that a value
// exists which could not be read.
type field[T any] struct {
	any, none             []T
	anyUnread, noneUnread bool
}

// holds: a value of any matches (or there is none), and no value of none does.
// When only an unread value could settle it, the answer is that of the safe side:
// yes for a DENY, no for an ALLOW.
func (f *field[T]) holds(deny bool, is func(T) bool) bool {
	if len(f.any) > 0 || f.anyUnread {
		found := f.anyUnread && deny
		for i := 0; i < len(f.any) && !found; i++ {
			found = is(f.any[i])
		}
		if !found {
			return false
		}
	}
	for _, v := range f.none {
		if is(v) {
			return false
		}
	}
	return !f.noneUnread || deny
}

// Name is namespace/name.
func (p *Policy) Name() string { return p.name }

// Namespace is the policy's own namespace.
func (p *Policy) Namespace() string { return p.namespace }

// Scope says which workloads p applies to.
func (p *Policy) Scope() Scope { return p.scope }

// Config is the message p was compiled from, for display; nil for an Unusable one.
func (p *Policy) Config() *security.Authorization { return p.config }

// Unusable stands in for a policy that selects workloads by name but was refused
// and has no earlier good version: it denies everything, because what it would
// have allowed or denied is not known.
func Unusable(name string) *Policy {
	return &Policy{name: name, scope: ScopeWorkload, deny: true, unusable: true, rules: []rule{{}}}
}

// Compile prepares a for Evaluate. It refuses what it cannot make sense of as a
// whole (no name, unknown action or scope, too large); single values that it
// cannot read are kept as conditions that fail closed. It keeps a, which must not
// change afterwards.
func Compile(a *security.Authorization) (*Policy, error) {
	p := &Policy{name: a.GetNamespace() + "/" + a.GetName(), namespace: a.GetNamespace(), dryRun: a.GetDryRun(), config: a}
	if a.GetName() == "" || strings.Contains(a.GetName(), "/") || strings.Contains(a.GetNamespace(), "/") {
		return nil, fmt.Errorf("compile policy %q: name is empty or holds a slash", p.name)
	}
	switch a.GetScope() {
	case security.Scope_GLOBAL:
		p.scope = ScopeGlobal
	case security.Scope_NAMESPACE:
		p.scope = ScopeNamespace
	case security.Scope_WORKLOAD_SELECTOR:
		p.scope = ScopeWorkload
	default:
		return nil, fmt.Errorf("compile policy %q: unknown scope %d", p.name, a.GetScope())
	}
	switch a.GetAction() {
	case security.Action_ALLOW:
		p.dryRunName = "allow " + p.name
	case security.Action_DENY:
		p.deny, p.dryRunName = true, "deny "+p.name
	default:
		return nil, fmt.Errorf("compile policy %q: unknown action %d", p.name, a.GetAction())
	}
	if n := elements(a); n > MaxElements {
		return nil, fmt.Errorf("compile policy %q: %d rules, matches and values are more than %d", p.name, n, MaxElements)
	}
	p.opening = strings.HasPrefix(a.GetName(), contract.WaypointRequiredPrefix)
	p.rules = make([]rule, 0, len(a.GetRules()))
	for _, r := range a.GetRules() {
		p.rules = append(p.rules, compileRule(r))
	}
	return p, nil
}

func compileRule(r *security.Rule) rule {
	out := rule{unknown: hasUnknown(r), clauses: make([]clause, 0, len(r.GetClauses()))}
	for _, c := range r.GetClauses() {
		cl := clause{unknown: hasUnknown(c), alternatives: make([]match, 0, len(c.GetMatches()))}
		for _, m := range c.GetMatches() {
			cl.alternatives = append(cl.alternatives, compileMatch(m))
		}
		out.clauses = append(out.clauses, cl)
	}
	return out
}

func compileMatch(m *security.Match) match {
	out := match{unknown: len(m.GetExtensions()) > 0 || hasUnknown(m)}
	out.namespaces.any, out.namespaces.anyUnread = patterns(m.GetNamespaces())
	out.namespaces.none, out.namespaces.noneUnread = patterns(m.GetNotNamespaces())
	out.principals.any, out.principals.anyUnread = patterns(m.GetPrincipals())
	out.principals.none, out.principals.noneUnread = patterns(m.GetNotPrincipals())
	out.accounts.any, out.accounts.anyUnread = accounts(m.GetServiceAccounts())
	out.accounts.none, out.accounts.noneUnread = accounts(m.GetNotServiceAccounts())
	out.sourceIPs.any, out.sourceIPs.anyUnread = prefixes(m.GetSourceIps())
	out.sourceIPs.none, out.sourceIPs.noneUnread = prefixes(m.GetNotSourceIps())
	out.destIPs.any, out.destIPs.anyUnread = prefixes(m.GetDestinationIps())
	out.destIPs.none, out.destIPs.noneUnread = prefixes(m.GetNotDestinationIps())
	out.destPorts.any, out.destPorts.anyUnread = ports(m.GetDestinationPorts())
	out.destPorts.none, out.destPorts.noneUnread = ports(m.GetNotDestinationPorts())
	out.empty = !out.unknown && values(m) == 0
	return out
}

// elements counts what Evaluate may have to look at.
func elements(a *security.Authorization) int {
	n := len(a.GetRules())
	for _, r := range a.GetRules() {
		n += len(r.GetClauses())
		for _, c := range r.GetClauses() {
			n += len(c.GetMatches())
			for _, m := range c.GetMatches() {
				n += values(m)
			}
		}
	}
	return n
}

func values(m *security.Match) int {
	return len(m.GetNamespaces()) + len(m.GetNotNamespaces()) +
		len(m.GetPrincipals()) + len(m.GetNotPrincipals()) +
		len(m.GetServiceAccounts()) + len(m.GetNotServiceAccounts()) +
		len(m.GetSourceIps()) + len(m.GetNotSourceIps()) +
		len(m.GetDestinationIps()) + len(m.GetNotDestinationIps()) +
		len(m.GetDestinationPorts()) + len(m.GetNotDestinationPorts())
}

func hasUnknown(m protoreflect.ProtoMessage) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }
