package state

import (
	"maps"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/policy"
)

// policies is all policies with the lists by which they are found. Policies are few
// and change seldom, so a change copies the maps.
type policies struct {
	byName  map[string]*policy.Policy
	refused map[string]*policy.Policy // stand-ins for refused ones without a good version

	global      []*policy.Policy
	byNamespace map[string][]*policy.Policy
}

func (p policies) clone() policies {
	out := policies{byName: maps.Clone(p.byName), refused: maps.Clone(p.refused)}
	if out.byName == nil {
		out.byName = map[string]*policy.Policy{}
	}
	if out.refused == nil {
		out.refused = map[string]*policy.Policy{}
	}
	return out
}

func (p *policies) set(one *policy.Policy) {
	p.byName[one.Name()] = one
	delete(p.refused, one.Name())
}

// refuse keeps the last good version, or notes that there is none.
func (p *policies) refuse(name string) {
	if p.byName[name] == nil {
		p.refused[name] = policy.Unusable(name)
	}
}

func (p *policies) remove(name string) {
	delete(p.byName, name)
	delete(p.refused, name)
}

// index fills the lists, sorted by name so that a verdict names the same policy on
// every node.
func (p *policies) index() {
	p.global, p.byNamespace = nil, map[string][]*policy.Policy{}
	for _, one := range p.byName {
		switch one.Scope() {
		case policy.ScopeGlobal:
			p.global = append(p.global, one)
		case policy.ScopeNamespace:
			p.byNamespace[one.Namespace()] = append(p.byNamespace[one.Namespace()], one)
		}
	}
	byName := func(a, b *policy.Policy) int { return strings.Compare(a.Name(), b.Name()) }
	slices.SortFunc(p.global, byName)
	for _, list := range p.byNamespace {
		slices.SortFunc(list, byName)
	}
}

// Policies are the policies that apply to connections to dst. A policy that dst
// names but that has not arrived is left out, as Istio does: policies and workloads
// come separately, and one that was deleted may be named a moment longer. One that
// arrived and was refused denies everything (policy.Unusable).
func (v *Snapshot) Policies(dst *Workload) policy.Set {
	set := policy.Set{Global: v.policies.global, Namespace: v.policies.byNamespace[dst.Namespace]}
	for _, name := range dst.Policies {
		p := v.policies.byName[name]
		if p == nil {
			p = v.policies.refused[name]
		}
		if p != nil {
			set.Workload = append(set.Workload, p)
		}
	}
	return set
}

// AllPolicies calls f for each policy in order of name until it returns false.
func (v *Snapshot) AllPolicies(f func(*policy.Policy) bool) {
	for _, name := range slices.Sorted(maps.Keys(v.policies.byName)) {
		if !f(v.policies.byName[name]) {
			return
		}
	}
}
