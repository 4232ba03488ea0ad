package policy

import (
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/identity"
)

// tri is a truth value of three-valued logic: naive works out every condition with
// it and decides only at the end of a match, in another way than Evaluate.
type tri int

const (
	no tri = iota
	unclear
	yes
)

func truth(b bool) tri {
	if b {
		return yes
	}
	return no
}

func anyOf[T any](in []T, is func(T) tri) tri {
	out := no
	for _, v := range in {
		out = max(out, is(v))
	}
	return out
}

func naiveField[T any](pos, neg []T, is func(T) tri) tri {
	out := yes
	if len(pos) > 0 {
		out = anyOf(pos, is)
	}
	if len(neg) > 0 {
		out = min(out, yes-anyOf(neg, is))
	}
	return out
}

func naiveString(value string) func(*security.StringMatch) tri {
	return func(m *security.StringMatch) tri {
		switch t := m.MatchType.(type) {
		case *security.StringMatch_Exact:
			return truth(value == t.Exact)
		case *security.StringMatch_Prefix:
			return truth(strings.HasPrefix(value, t.Prefix))
		case *security.StringMatch_Suffix:
			return truth(strings.HasSuffix(value, t.Suffix))
		case *security.StringMatch_Presence:
			return truth(value != "")
		}
		return unclear
	}
}

func naiveIP(ip netip.Addr) func(*security.Address) tri {
	return func(a *security.Address) tri {
		base, ok := netip.AddrFromSlice(a.Address)
		if !ok || int(a.Length) > base.BitLen() || base.Is4In6() && a.Length < 96 {
			return unclear
		}
		// Compare bit by bit, all in v6 form.
		x, y, skip := ip.As16(), base.As16(), 0
		if base.Is4() {
			skip = 96
		}
		if ip.Unmap().Is4() != base.Unmap().Is4() {
			return no
		}
		for i := range int(a.Length) + skip {
			if (x[i/8]^y[i/8])&(0x80>>(i%8)) != 0 {
				return no
			}
		}
		return yes
	}
}

func naiveMatch(m *amatch, c Conn) tri {
	var ns, who string
	if c.HasSource {
		ns, who = c.Source.Namespace, strings.TrimPrefix(c.Source.String(), "spiffe://")
	}
	port := func(p uint32) tri {
		if p > 65535 {
			return unclear
		}
		return truth(uint16(p) == c.Dest.Port())
	}
	person := func(m *security.StringMatch) tri {
		if m.MatchType != nil && !c.HasSource {
			return no
		}
		return naiveString(who)(m)
	}
	sa := func(a *security.ServiceAccountMatch) tri {
		return truth(c.HasSource && a.Namespace == c.Source.Namespace && a.ServiceAccount == c.Source.ServiceAccount)
	}
	if proto.Size(m) == 0 {
		return no
	}
	out := yes
	if len(m.Extensions) > 0 {
		out = unclear
	}
	for _, f := range []tri{
		naiveField(m.Namespaces, m.NotNamespaces, naiveString(ns)),
		naiveField(m.Principals, m.NotPrincipals, person),
		naiveField(m.ServiceAccounts, m.NotServiceAccounts, sa),
		naiveField(m.SourceIps, m.NotSourceIps, naiveIP(c.SourceIP)),
		naiveField(m.DestinationIps, m.NotDestinationIps, naiveIP(c.Dest.Addr())),
		naiveField(m.DestinationPorts, m.NotDestinationPorts, port),
	} {
		out = min(out, f)
	}
	return out
}

func naivePolicy(a *auth, c Conn) bool {
	for _, r := range a.Rules {
		all := true
		for _, cl := range r.Clauses {
			hit := len(cl.Matches) == 0
			for _, m := range cl.Matches {
				v := naiveMatch(m, c)
				hit = hit || v == yes || v == unclear && a.Action == security.Action_DENY
			}
			all = all && hit
		}
		if all {
			return true
		}
	}
	return false
}

func naive(as []*auth, c Conn) bool {
	denied, anyAllow, allowed := false, false, false
	for _, a := range as {
		if a.DryRun {
			continue
		}
		hit := naivePolicy(a, c)
		if a.Action == security.Action_DENY {
			denied = denied || hit
		} else {
			anyAllow, allowed = true, allowed || hit
		}
	}
	return !denied && (!anyAllow || allowed)
}

// choices turns fuzzing bytes into decisions; it yields zeros when they run out.
type choices struct{ b []byte }

func (c *choices) n(limit int) int {
	if len(c.b) == 0 {
		return 0
	}
	v := int(c.b[0]) % limit
	c.b = c.b[1:]
	return v
}

func (c *choices) text() string {
	return []string{"", "a", "b", "ab", "a/ns/b/sa/ab", "a/ns/", "/sa/ab", "ab/ns/a/sa/b", "ns/b"}[c.n(9)]
}

func (c *choices) name() string { return []string{"a", "b", "ab"}[c.n(3)] }

func (c *choices) addr() netip.Addr {
	return netip.MustParseAddr([]string{"10.0.0.1", "10.0.1.1", "fd00::1", "fd00::1:0:0:1", "::ffff:10.0.0.1", "::1"}[c.n(6)])
}

func (c *choices) strings() (out []*security.StringMatch) {
	for range c.n(6) - 3 {
		out = append(out, []*security.StringMatch{exactly(c.text()), startsWith(c.text()), endsWith(c.text()), present(), {}}[c.n(5)])
	}
	return out
}

func (c *choices) ranges() (out []*security.Address) {
	for range c.n(6) - 3 {
		a := &security.Address{Address: c.addr().AsSlice(), Length: []uint32{0, 8, 24, 31, 32, 90, 96, 120, 128, 129}[c.n(10)]}
		if c.n(8) == 7 {
			a.Address = a.Address[1:]
		}
		out = append(out, a)
	}
	return out
}

func (c *choices) accounts() (out []*security.ServiceAccountMatch) {
	for range c.n(6) - 3 {
		out = append(out, &security.ServiceAccountMatch{Namespace: c.name(), ServiceAccount: c.name()})
	}
	return out
}

func (c *choices) ports() (out []uint32) {
	for range c.n(6) - 3 {
		out = append(out, []uint32{0, 80, 8080, 65535, 65536 + 80}[c.n(5)])
	}
	return out
}

func (c *choices) match() *amatch {
	m := &amatch{
		Namespaces: c.strings(), NotNamespaces: c.strings(), Principals: c.strings(), NotPrincipals: c.strings(),
		ServiceAccounts: c.accounts(), NotServiceAccounts: c.accounts(), SourceIps: c.ranges(), NotSourceIps: c.ranges(),
		DestinationIps: c.ranges(), NotDestinationIps: c.ranges(), DestinationPorts: c.ports(), NotDestinationPorts: c.ports(),
	}
	if c.n(8) == 7 {
		m.Extensions = []*workload.Extension{{Name: "x"}}
	}
	return m
}

func (c *choices) policies() (out []*auth) {
	for range c.n(4) {
		a := &auth{Name: "p", Namespace: "ns", Scope: security.Scope(c.n(3)), Action: security.Action(c.n(2)), DryRun: c.n(4) == 3}
		for range c.n(3) {
			r := &security.Rule{}
			for range c.n(3) {
				cl := &security.Clause{}
				for range c.n(3) {
					cl.Matches = append(cl.Matches, c.match())
				}
				r.Clauses = append(r.Clauses, cl)
			}
			a.Rules = append(a.Rules, r)
		}
		out = append(out, a)
	}
	return out
}

func (c *choices) conn() Conn {
	out := Conn{SourceIP: c.addr(), Dest: netip.AddrPortFrom(c.addr(), []uint16{80, 8080, 65535, 1}[c.n(4)])}
	if c.n(3) > 0 {
		out.HasSource = true
		out.Source = identity.Identity{TrustDomain: c.name(), Namespace: c.name(), ServiceAccount: c.name()}
	}
	return out
}

// FuzzAgainstNaive compares Evaluate with an evaluator that reads the messages
// directly and shares no code with it.
func FuzzAgainstNaive(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 4, 3, 2})
	f.Add([]byte("\x01\x02\x03\x01\x01\x01\x01\x04\x05\x04\x03\x05\x00\x04\x00\x00\x05\x04\x03\x02\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &choices{data}
		conn, as := c.conn(), c.policies()
		got, want := Evaluate(setOf(t, as...), conn), naive(as, conn)
		if got.Allowed != want {
			t.Errorf("Evaluate says %+v, naive says %v, for %+v under %v", got, want, conn, as)
		}
	})
}

// FuzzCompile feeds arbitrary bytes as a resource: no panic, and what compiles
// also evaluates.
func FuzzCompile(f *testing.F) {
	seed, err := proto.Marshal(allow(&amatch{Principals: strs(exactly("a")), SourceIps: []*security.Address{ipRange("10.0.0.0/8")}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		a := &auth{}
		if proto.Unmarshal(data, a) != nil {
			return
		}
		p, err := Compile(a)
		if err != nil {
			return
		}
		Evaluate(Set{Namespace: []*Policy{p}}, webClient)
		Evaluate(Set{Namespace: []*Policy{p}}, plaintext)
	})
}
