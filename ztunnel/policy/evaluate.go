package policy

import (
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/identity"
)

// Conn is what a verdict depends on.
type Conn struct {
	Source    identity.Identity
	HasSource bool // false: the peer proved no identity (plaintext)
	SourceIP  netip.Addr
	Dest      netip.AddrPort
}

// Verdict is the outcome with its reason.
type Verdict struct {
	Allowed bool
	Policy  string   // namespace/name of the policy that decided; empty if none did
	Reason  string   // one of the Reason constants
	DryRun  []string // what dry-run policies would have done: "deny ns/name", "allow ns/name", DryRunDefaultDeny
}

// The reasons of a verdict.
const (
	ReasonNoPolicy    = "no policy applies"
	ReasonNotDenied   = "no deny policy matches and no allow policy exists"
	ReasonDenied      = "a deny policy matches"
	ReasonUnusable    = "a policy of this workload could not be read"
	ReasonAllowed     = "an allow policy matches"
	ReasonDefaultDeny = "no allow policy matches"
)

// DryRunDefaultDeny in Verdict.DryRun says that the dry-run ALLOW policies, once
// enforced, would deny this connection because none of them matches.
const DryRunDefaultDeny = "no dry-run allow policy matches"

// Set is the policies that apply to one workload.
type Set struct {
	Global    []*Policy // of the whole mesh
	Namespace []*Policy // of the workload's namespace
	Workload  []*Policy // that select the workload
}

// Len is the number of policies in the set.
func (s *Set) Len() int { return len(s.Global) + len(s.Namespace) + len(s.Workload) }

// Names lists the policies of the set as namespace/name, in order of evaluation.
func (s *Set) Names() []string {
	names := make([]string, 0, s.Len())
	for _, list := range s.lists() {
		for _, p := range list {
			names = append(names, p.name)
		}
	}
	return names
}

// Standing is the set for connections that are open already: without the policies which say how a new one has to
// come. Those that were open before a service got its waypoint had no other way.
func (s Set) Standing() Set {
	if slices.ContainsFunc(s.Workload, (*Policy).isOpening) {
		s.Workload = slices.DeleteFunc(slices.Clone(s.Workload), (*Policy).isOpening)
	}
	return s
}

func (p *Policy) isOpening() bool { return p.opening }

func (s *Set) lists() [3][]*Policy { return [3][]*Policy{s.Namespace, s.Global, s.Workload} }

// Evaluate decides whether c may pass under s.
func Evaluate(s Set, c Conn) Verdict {
	c.SourceIP = plain(c.SourceIP)
	c.Dest = netip.AddrPortFrom(plain(c.Dest.Addr()), c.Dest.Port())
	v := Verdict{Allowed: true, Reason: ReasonNoPolicy}
	lists := s.lists()
	var allows, dryAllows, dryAllowed int
	for _, list := range lists {
		for _, p := range list {
			switch {
			case p.deny:
				v.Reason = ReasonNotDenied
			case p.dryRun:
				dryAllows++
			default:
				allows++
			}
			if !p.dryRun && !p.deny || !p.matches(&c) {
				continue
			}
			if !p.dryRun {
				reason := ReasonDenied
				if p.unusable {
					reason = ReasonUnusable
				}
				return Verdict{Policy: p.name, Reason: reason, DryRun: v.DryRun}
			}
			if !p.deny {
				dryAllowed++
			}
			v.DryRun = append(v.DryRun, p.dryRunName)
		}
	}
	if allows == 0 {
		if dryAllows > 0 {
			v.Reason = ReasonNotDenied
			if dryAllowed == 0 {
				v.DryRun = append(v.DryRun, DryRunDefaultDeny)
			}
		}
		return v
	}
	for _, list := range lists {
		for _, p := range list {
			if !p.deny && !p.dryRun && p.matches(&c) {
				return Verdict{Allowed: true, Policy: p.name, Reason: ReasonAllowed, DryRun: v.DryRun}
			}
		}
	}
	return Verdict{Reason: ReasonDefaultDeny, DryRun: v.DryRun}
}

// plain strips what must not matter in a comparison: the zone, and the v6 form of
// a v4 address that a dual-stack socket reports.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// matches: any rule suffices; no rules match nothing.
func (p *Policy) matches(c *Conn) bool {
	for i := range p.rules {
		if p.rules[i].matches(c, p.deny) {
			return true
		}
	}
	return false
}

// matches: all clauses must hold. What cannot be read holds for a DENY only.
func (r *rule) matches(c *Conn, deny bool) bool {
	if r.unknown && !deny {
		return false
	}
	for i := range r.clauses {
		if !r.clauses[i].matches(c, deny) {
			return false
		}
	}
	return true
}

// matches: any match suffices; a clause without matches holds for everything.
func (cl *clause) matches(c *Conn, deny bool) bool {
	if cl.unknown {
		return deny
	}
	if len(cl.alternatives) == 0 {
		return true
	}
	for i := range cl.alternatives {
		if cl.alternatives[i].matches(c, deny) {
			return true
		}
	}
	return false
}

// matches: all fields that are set must hold; a match without fields never does.
func (m *match) matches(c *Conn, deny bool) bool {
	if m.empty || m.unknown && !deny {
		return false
	}
	if !m.destPorts.holds(deny, func(p uint16) bool { return p == c.Dest.Port() }) ||
		!m.sourceIPs.holds(deny, func(p netip.Prefix) bool { return p.Contains(c.SourceIP) }) ||
		!m.destIPs.holds(deny, func(p netip.Prefix) bool { return p.Contains(c.Dest.Addr()) }) {
		return false
	}
	if !m.accounts.holds(deny, func(a account) bool {
		return c.HasSource && a.namespace == c.Source.Namespace && a.name == c.Source.ServiceAccount
	}) {
		return false
	}
	var who principal // stays empty without an identity, and then matches no principal
	if c.HasSource {
		who = principal{c.Source.TrustDomain, "/ns/", c.Source.Namespace, "/sa/", c.Source.ServiceAccount}
	}
	if !m.principals.holds(deny, func(p pattern) bool { return c.HasSource && p.matches(&who) }) {
		return false
	}
	ns := principal{}
	if c.HasSource {
		ns[0] = c.Source.Namespace
	}
	return m.namespaces.holds(deny, func(p pattern) bool { return p.matches(&ns) })
}
