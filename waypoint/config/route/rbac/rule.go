package rbac

import (
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// writer writes one rule. Envoy's policy matches if one of its permissions and one of its principals do; a permission
// stands for an operation, a principal for a source and all conditions.
type writer struct {
	Options
	allow bool
	// split holds for each policy that the rule became the principals that its operation's ports are; empty if the
	// rule is one policy.
	split [][]*rbacv3.Principal
	// dropped says that something cannot be checked, so that an ALLOW may not hold.
	dropped bool
}

// rule gives the policies that together are the rule: one, or one for each operation if the operations have ports
// that only a principal can check (on a waypoint, where the port is in filter state and permissions see none):
// (a or b) and c is (a and c) or (b and c).
func (w *writer) rule(r model.AuthzRule) []*rbacv3.Policy {
	conditions := w.conditions(r.When)
	var permissions []*rbacv3.Permission
	for _, o := range r.To {
		permission, ports := w.operation(o)
		permissions = append(permissions, andPermissions(append(permission, conditions.permissions...)))
		w.split = append(w.split, ports)
	}
	if len(r.To) == 0 {
		permissions = []*rbacv3.Permission{andPermissions(conditions.permissions)}
	}
	var sources [][]*rbacv3.Principal
	for _, s := range r.From {
		sources = append(sources, append(w.source(s), conditions.principals...))
	}
	if len(r.From) == 0 {
		sources = [][]*rbacv3.Principal{conditions.principals}
	}
	if w.dropped && w.allow {
		w.split = nil
		return nil
	}
	if !anyPorts(w.split) {
		w.split = nil
		return []*rbacv3.Policy{{Permissions: permissions, Principals: principals(sources, nil)}}
	}
	var out []*rbacv3.Policy
	for i, p := range permissions {
		out = append(out, &rbacv3.Policy{Permissions: []*rbacv3.Permission{p}, Principals: principals(sources, w.split[i])})
	}
	return out
}

func anyPorts(split [][]*rbacv3.Principal) bool {
	for _, s := range split {
		if len(s) > 0 {
			return true
		}
	}
	return false
}

// principals gives one principal for each source, with what must hold besides.
func principals(sources [][]*rbacv3.Principal, also []*rbacv3.Principal) []*rbacv3.Principal {
	var out []*rbacv3.Principal
	for _, s := range sources {
		all := make([]*rbacv3.Principal, 0, len(s)+len(also))
		out = append(out, andPrincipals(append(append(all, s...), also...)))
	}
	return out
}

// drop notes that what follows needs a request.
func (w *writer) drop() { w.dropped = true }

// source writes who calls.
func (w *writer) source(s model.AuthzSource) []*rbacv3.Principal {
	var and []*rbacv3.Principal
	and = append(and, w.each(w.expand(s.Principals), w.principal)...)
	if !empty(s.RequestPrincipals) {
		and = append(and, w.request(s.RequestPrincipals, requestPrincipals)...)
	}
	and = append(and, w.each(s.ServiceAccounts, w.account)...)
	and = append(and, w.each(s.Namespaces, w.namespace)...)
	and = append(and, blocks(s.RemoteIPs, remoteIP)...)
	and = append(and, blocks(s.IPs, w.sourceIP)...)
	return and
}

// operation writes what is called, and the ports as principals if permissions cannot check them.
func (w *writer) operation(o model.AuthzOperation) (and []*rbacv3.Permission, ports []*rbacv3.Principal) {
	for _, p := range []struct {
		model.Patterns
		write func(string) *rbacv3.Permission
	}{{o.Hosts, host}, {o.Methods, method}, {o.Paths, path}} {
		switch {
		case empty(p.Patterns):
		case w.TCP:
			w.drop()
		default:
			and = append(and, eachPermission(p.Patterns, p.write)...)
		}
	}
	if empty(o.Ports) {
		return and, nil
	}
	if w.Waypoint {
		return and, w.each(o.Ports, w.authorityPort)
	}
	return append(and, eachPermission(o.Ports, w.port)...), nil
}

func empty(p model.Patterns) bool { return len(p.In)+len(p.Not) == 0 }

// each writes values of which one must match and values of which none may. A value that cannot be written is left
// out: of those that may match, all being left out means that nothing can be checked.
func (w *writer) each(p model.Patterns, write func(string) *rbacv3.Principal) []*rbacv3.Principal {
	in, badIn := writeAll(p.In, write)
	not, badNot := writeAll(p.Not, write)
	if badIn || badNot {
		w.drop()
	}
	var out []*rbacv3.Principal
	if len(in) > 0 {
		out = append(out, orPrincipals(in))
	}
	if len(not) > 0 {
		out = append(out, notPrincipal(orPrincipals(not)))
	}
	return out
}

func writeAll(values []string, write func(string) *rbacv3.Principal) (out []*rbacv3.Principal, bad bool) {
	for _, v := range values {
		p := write(v)
		if p == nil {
			bad = true
			continue
		}
		out = append(out, p)
	}
	return out, bad
}

func eachPermission(p model.Patterns, write func(string) *rbacv3.Permission) []*rbacv3.Permission {
	var in, not, out []*rbacv3.Permission
	for _, v := range p.In {
		in = append(in, write(v))
	}
	for _, v := range p.Not {
		not = append(not, write(v))
	}
	if len(in) > 0 {
		out = append(out, orPermissions(in))
	}
	if len(not) > 0 {
		out = append(out, notPermission(orPermissions(not)))
	}
	return out
}

// request writes what only a request has.
func (w *writer) request(p model.Patterns, write func([]string) *rbacv3.Principal) []*rbacv3.Principal {
	if w.TCP {
		w.drop()
		return nil
	}
	var out []*rbacv3.Principal
	if len(p.In) > 0 {
		out = append(out, write(p.In))
	}
	if len(p.Not) > 0 {
		out = append(out, notPrincipal(write(p.Not)))
	}
	return out
}
