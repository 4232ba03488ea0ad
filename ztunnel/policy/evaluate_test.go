package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/identity"
)

type (
	auth   = security.Authorization
	amatch = security.Match
)

func exactly(s string) *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: s}}
}
func startsWith(s string) *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: s}}
}
func endsWith(s string) *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: s}}
}
func present() *security.StringMatch {
	return &security.StringMatch{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}
}
func strs(m ...*security.StringMatch) []*security.StringMatch { return m }

func ipRange(s string) *security.Address {
	p := netip.MustParsePrefix(s)
	return &security.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
}

func account1(ns, sa string) []*security.ServiceAccountMatch {
	return []*security.ServiceAccountMatch{{Namespace: ns, ServiceAccount: sa}}
}

// one is a policy with one rule of one clause of the given matches.
func one(action security.Action, matches ...*amatch) *auth {
	return &auth{Name: "p", Namespace: "ns", Scope: security.Scope_NAMESPACE, Action: action,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: matches}}}}}
}

func allow(matches ...*amatch) *auth { return one(security.Action_ALLOW, matches...) }
func deny(matches ...*amatch) *auth  { return one(security.Action_DENY, matches...) }

func named(name string, a *auth) *auth { a.Name = name; return a }
func dry(a *auth) *auth                { a.DryRun = true; return a }

func withUnknown(m *amatch) *amatch {
	m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 900, protowire.VarintType), 1))
	return m
}

func setOf(t testing.TB, as ...*auth) Set {
	t.Helper()
	var s Set
	for _, a := range as {
		p, err := Compile(a)
		if err != nil {
			t.Fatal(err)
		}
		switch p.Scope() {
		case ScopeGlobal:
			s.Global = append(s.Global, p)
		case ScopeNamespace:
			s.Namespace = append(s.Namespace, p)
		default:
			s.Workload = append(s.Workload, p)
		}
	}
	return s
}

var (
	webClient = Conn{Source: identity.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "web"}, HasSource: true,
		SourceIP: netip.MustParseAddr("10.1.2.3"), Dest: netip.MustParseAddrPort("10.9.0.7:8080")}
	plaintext = Conn{SourceIP: webClient.SourceIP, Dest: webClient.Dest}
	overV6    = Conn{Source: webClient.Source, HasSource: true,
		SourceIP: netip.MustParseAddr("fd00::1:3"), Dest: netip.MustParseAddrPort("[fd00::9]:8080")}
	mapped = Conn{Source: webClient.Source, HasSource: true,
		SourceIP: netip.MustParseAddr("::ffff:10.1.2.3"), Dest: netip.MustParseAddrPort("[::ffff:10.9.0.7]:8080")}
)

// TestMatch asks of one match whether it holds, through an ALLOW and a DENY policy:
// both must agree where the policy is readable.
func TestMatch(t *testing.T) {
	ns := func(m ...*security.StringMatch) *amatch { return &amatch{Namespaces: m} }
	notNS := func(m ...*security.StringMatch) *amatch { return &amatch{NotNamespaces: m} }
	who := func(m ...*security.StringMatch) *amatch { return &amatch{Principals: m} }
	notWho := func(m ...*security.StringMatch) *amatch { return &amatch{NotPrincipals: m} }
	src := func(c ...string) *amatch {
		m := &amatch{}
		for _, s := range c {
			m.SourceIps = append(m.SourceIps, ipRange(s))
		}
		return m
	}
	dst := func(c string) *amatch { return &amatch{DestinationIps: []*security.Address{ipRange(c)}} }
	notDst := func(c string) *amatch { return &amatch{NotDestinationIps: []*security.Address{ipRange(c)}} }
	for name, tc := range map[string]struct {
		match *amatch
		conn  Conn
		want  bool
	}{
		"empty match never":                    {&amatch{}, webClient, false},
		"empty match never, plaintext":         {&amatch{}, plaintext, false},
		"namespace exact":                      {ns(exactly("shop")), webClient, true},
		"namespace other":                      {ns(exactly("bank")), webClient, false},
		"namespace is compared whole":          {ns(exactly("sho")), webClient, false},
		"namespace prefix":                     {ns(startsWith("sh")), webClient, true},
		"namespace prefix is case sensitive":   {ns(startsWith("Sh")), webClient, false},
		"namespace prefix longer than value":   {ns(startsWith("shopping")), webClient, false},
		"namespace suffix":                     {ns(endsWith("op")), webClient, true},
		"namespace suffix other":               {ns(endsWith("sh")), webClient, false},
		"namespace presence":                   {ns(present()), webClient, true},
		"namespace presence needs identity":    {ns(present()), plaintext, false},
		"namespace exact needs identity":       {ns(exactly("shop")), plaintext, false},
		"namespaces any of two":                {ns(exactly("bank"), exactly("shop")), webClient, true},
		"not namespace excludes":               {notNS(exactly("shop")), webClient, false},
		"not namespace passes other":           {notNS(exactly("bank")), webClient, true},
		"not namespace passes plaintext":       {notNS(exactly("shop")), plaintext, true},
		"not namespace presence is plaintext":  {notNS(present()), plaintext, true},
		"not namespace presence, identity":     {notNS(present()), webClient, false},
		"namespace and not namespace":          {&amatch{Namespaces: strs(startsWith("s")), NotNamespaces: strs(exactly("shop"))}, webClient, false},
		"principal without scheme":             {who(exactly("td/ns/shop/sa/web")), webClient, true},
		"principal with scheme never":          {who(exactly("spiffe://td/ns/shop/sa/web")), webClient, false},
		"principal of other trust domain":      {who(exactly("td2/ns/shop/sa/web")), webClient, false},
		"principal cut short":                  {who(exactly("td/ns/shop/sa/we")), webClient, false},
		"principal too long":                   {who(exactly("td/ns/shop/sa/web2")), webClient, false},
		"principal prefix in trust domain":     {who(startsWith("t")), webClient, true},
		"principal prefix across pieces":       {who(startsWith("td/ns/sh")), webClient, true},
		"principal prefix whole":               {who(startsWith("td/ns/shop/sa/web")), webClient, true},
		"principal prefix too long":            {who(startsWith("td/ns/shop/sa/web/")), webClient, false},
		"principal prefix with scheme never":   {who(startsWith("spiffe://")), webClient, false},
		"principal suffix in account":          {who(endsWith("eb")), webClient, true},
		"principal suffix across pieces":       {who(endsWith("op/sa/web")), webClient, true},
		"principal suffix whole":               {who(endsWith("td/ns/shop/sa/web")), webClient, true},
		"principal suffix too long":            {who(endsWith("/td/ns/shop/sa/web")), webClient, false},
		"principal suffix other":               {who(endsWith("/sa/we")), webClient, false},
		"principal presence":                   {who(present()), webClient, true},
		"principal presence needs identity":    {who(present()), plaintext, false},
		"principal empty prefix, plaintext":    {who(startsWith("")), plaintext, false},
		"not principal presence is plaintext":  {notWho(present()), plaintext, true},
		"not principal presence, identity":     {notWho(present()), webClient, false},
		"not principal excludes":               {notWho(exactly("td/ns/shop/sa/web")), webClient, false},
		"not principal passes other":           {notWho(exactly("td/ns/shop/sa/api")), webClient, true},
		"account":                              {&amatch{ServiceAccounts: account1("shop", "web")}, webClient, true},
		"account in other namespace":           {&amatch{ServiceAccounts: account1("bank", "web")}, webClient, false},
		"account needs identity":               {&amatch{ServiceAccounts: account1("", "")}, plaintext, false},
		"not account excludes":                 {&amatch{NotServiceAccounts: account1("shop", "web")}, webClient, false},
		"not account passes plaintext":         {&amatch{NotServiceAccounts: account1("shop", "web")}, plaintext, true},
		"source ip":                            {src("10.1.2.3/32"), webClient, true},
		"source range":                         {src("10.0.0.0/8"), plaintext, true},
		"source range with host bits":          {src("10.1.2.99/24"), plaintext, true},
		"source outside":                       {src("10.1.3.0/24"), plaintext, false},
		"source any of two":                    {src("192.168.0.0/16", "10.1.0.0/16"), plaintext, true},
		"source everything v4":                 {src("0.0.0.0/0"), plaintext, true},
		"source everything v6 is not v4":       {src("::/0"), plaintext, false},
		"source everything v4 is not v6":       {src("0.0.0.0/0"), overV6, false},
		"source v6":                            {src("fd00::1:0/112"), overV6, true},
		"source v6 outside":                    {src("fd00::2:0/112"), overV6, false},
		"source mapped connection, v4 range":   {src("10.1.2.0/24"), mapped, true},
		"source v4 connection, mapped range":   {src("::ffff:10.1.2.0/120"), webClient, true},
		"source v4 connection, mapped outside": {src("::ffff:10.1.3.0/120"), webClient, false},
		"not source excludes":                  {&amatch{NotSourceIps: []*security.Address{ipRange("10.1.0.0/16")}}, webClient, false},
		"not source passes":                    {&amatch{NotSourceIps: []*security.Address{ipRange("10.2.0.0/16")}}, webClient, true},
		"destination ip":                       {dst("10.9.0.7/32"), webClient, true},
		"destination other":                    {dst("10.9.0.8/32"), webClient, false},
		"destination mapped connection":        {dst("10.9.0.7/32"), mapped, true},
		"not destination excludes":             {notDst("10.9.0.0/24"), webClient, false},
		"not destination passes":               {notDst("10.8.0.0/24"), webClient, true},
		"port":                                 {&amatch{DestinationPorts: []uint32{8080}}, webClient, true},
		"port of several":                      {&amatch{DestinationPorts: []uint32{80, 8080}}, webClient, true},
		"port other":                           {&amatch{DestinationPorts: []uint32{80}}, webClient, false},
		"port, none of several":                {&amatch{DestinationPorts: []uint32{80, 9000}}, webClient, false},
		"not port excludes":                    {&amatch{NotDestinationPorts: []uint32{8080}}, webClient, false},
		"not port passes":                      {&amatch{NotDestinationPorts: []uint32{9999}}, webClient, true},
		"port and not port":                    {&amatch{DestinationPorts: []uint32{8080}, NotDestinationPorts: []uint32{8080}}, webClient, false},
		"fields are anded, all hold":           {&amatch{Namespaces: strs(exactly("shop")), DestinationPorts: []uint32{8080}}, webClient, true},
		"fields are anded, one fails":          {&amatch{Namespaces: strs(exactly("shop")), DestinationPorts: []uint32{80}}, webClient, false},
		"fields are anded, other fails":        {&amatch{Namespaces: strs(exactly("bank")), DestinationPorts: []uint32{8080}}, webClient, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Evaluate(setOf(t, allow(tc.match)), tc.conn).Allowed; got != tc.want {
				t.Errorf("as the only ALLOW policy: allowed = %v, want %v", got, tc.want)
			}
			if got := !Evaluate(setOf(t, deny(tc.match)), tc.conn).Allowed; got != tc.want {
				t.Errorf("as the only DENY policy: denied = %v, want %v", got, tc.want)
			}
		})
	}
}

// TestUnreadableFailsClosed: what cannot be read never lets a connection pass.
func TestUnreadableFailsClosed(t *testing.T) {
	ext := []*workload.Extension{{Name: "future"}}
	badIP := []*security.Address{{Address: []byte{1, 2, 3}, Length: 8}}
	for name, tc := range map[string]struct {
		match       *amatch
		allow, deny bool // whether the match holds in an ALLOW, in a DENY
	}{
		"extension alone":                          {&amatch{Extensions: ext}, false, true},
		"extension beside a true field":            {&amatch{Extensions: ext, DestinationPorts: []uint32{8080}}, false, true},
		"extension beside a false field":           {&amatch{Extensions: ext, DestinationPorts: []uint32{80}}, false, false},
		"unknown wire field":                       {withUnknown(&amatch{DestinationPorts: []uint32{8080}}), false, true},
		"unknown wire field beside a false field":  {withUnknown(&amatch{DestinationPorts: []uint32{80}}), false, false},
		"address of three bytes":                   {&amatch{SourceIps: badIP}, false, true},
		"address of three bytes beside a good one": {&amatch{SourceIps: append([]*security.Address{ipRange("10.0.0.0/8")}, badIP...)}, true, true},
		"address of three bytes beside a miss":     {&amatch{SourceIps: append([]*security.Address{ipRange("11.0.0.0/8")}, badIP...)}, false, true},
		"negated address of three bytes":           {&amatch{NotSourceIps: badIP}, false, true},
		"negated bad address beside a hit":         {&amatch{NotSourceIps: append([]*security.Address{ipRange("10.0.0.0/8")}, badIP...)}, false, false},
		"prefix length beyond the address":         {&amatch{SourceIps: []*security.Address{{Address: []byte{10, 1, 2, 3}, Length: 33}}}, false, true},
		"v4-mapped range wider than all of v4":     {&amatch{SourceIps: []*security.Address{ipRange("::ffff:0:0/90")}}, false, true},
		"port above 65535":                         {&amatch{DestinationPorts: []uint32{65536 + 8080}}, false, true},
		"negated port above 65535":                 {&amatch{NotDestinationPorts: []uint32{65536}}, false, true},
		"string match without a kind":              {&amatch{Namespaces: strs(&security.StringMatch{})}, false, true},
		"negated string match without a kind":      {&amatch{NotPrincipals: strs(&security.StringMatch{})}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Evaluate(setOf(t, allow(tc.match)), webClient).Allowed; got != tc.allow {
				t.Errorf("as ALLOW it holds = %v, want %v", got, tc.allow)
			}
			if got := !Evaluate(setOf(t, deny(tc.match)), webClient).Allowed; got != tc.deny {
				t.Errorf("as DENY it holds = %v, want %v", got, tc.deny)
			}
		})
	}
}

// TestVerdict is about whole policies and sets of them.
func TestVerdict(t *testing.T) {
	hit := &amatch{DestinationPorts: []uint32{8080}}
	miss := &amatch{DestinationPorts: []uint32{1}}
	rules := func(a *auth, r ...*security.Rule) *auth { a.Rules = r; return a }
	and := func(c ...*amatch) *security.Rule {
		r := &security.Rule{}
		for _, m := range c {
			r.Clauses = append(r.Clauses, &security.Clause{Matches: []*amatch{m}})
		}
		return r
	}
	futureClause := &security.Clause{Matches: []*amatch{hit}}
	futureClause.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1))
	futureRule := and(hit)
	futureRule.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 1))
	global := func(a *auth) *auth { a.Scope = security.Scope_GLOBAL; return a }
	selector := func(a *auth) *auth { a.Scope = security.Scope_WORKLOAD_SELECTOR; return a }
	strict := selector(named("strict", deny(&amatch{NotPrincipals: strs(present())})))

	for name, tc := range map[string]struct {
		policies []*auth
		conn     Conn
		want     Verdict
	}{
		"no policy":  {nil, plaintext, Verdict{Allowed: true, Reason: ReasonNoPolicy}},
		"allow hit":  {[]*auth{allow(hit)}, plaintext, Verdict{Allowed: true, Policy: "ns/p", Reason: ReasonAllowed}},
		"allow miss": {[]*auth{allow(miss)}, plaintext, Verdict{Reason: ReasonDefaultDeny}},
		"deny hit":   {[]*auth{deny(hit)}, plaintext, Verdict{Policy: "ns/p", Reason: ReasonDenied}},
		"deny miss":  {[]*auth{deny(miss)}, plaintext, Verdict{Allowed: true, Reason: ReasonNotDenied}},
		"deny beats allow": {[]*auth{named("a", allow(hit)), named("d", deny(hit))}, webClient,
			Verdict{Policy: "ns/d", Reason: ReasonDenied}},
		"deny beats allow in any scope": {[]*auth{named("a", allow(hit)), global(named("d", deny(hit)))}, webClient,
			Verdict{Policy: "ns/d", Reason: ReasonDenied}},
		"second allow hits": {[]*auth{named("a", allow(miss)), global(named("b", allow(hit)))}, webClient,
			Verdict{Allowed: true, Policy: "ns/b", Reason: ReasonAllowed}},
		"allow without rules allows nothing": {[]*auth{rules(allow())}, webClient, Verdict{Reason: ReasonDefaultDeny}},
		"deny without rules denies nothing":  {[]*auth{rules(deny())}, webClient, Verdict{Allowed: true, Reason: ReasonNotDenied}},
		"rule without clauses matches all": {[]*auth{rules(allow(), &security.Rule{})}, plaintext,
			Verdict{Allowed: true, Policy: "ns/p", Reason: ReasonAllowed}},
		"clause without matches matches all": {[]*auth{allow()}, plaintext,
			Verdict{Allowed: true, Policy: "ns/p", Reason: ReasonAllowed}},
		"clause without matches, deny": {[]*auth{deny()}, plaintext, Verdict{Policy: "ns/p", Reason: ReasonDenied}},
		"matches are ored": {[]*auth{allow(miss, hit)}, plaintext,
			Verdict{Allowed: true, Policy: "ns/p", Reason: ReasonAllowed}},
		"an empty match does not help": {[]*auth{allow(miss, &amatch{})}, plaintext, Verdict{Reason: ReasonDefaultDeny}},
		"clauses are anded":            {[]*auth{rules(allow(), and(hit, miss))}, plaintext, Verdict{Reason: ReasonDefaultDeny}},
		"clauses all hold": {[]*auth{rules(allow(), and(hit, &amatch{SourceIps: []*security.Address{ipRange("10.0.0.0/8")}}))}, plaintext,
			Verdict{Allowed: true, Policy: "ns/p", Reason: ReasonAllowed}},
		"rules are ored": {[]*auth{rules(deny(), and(miss), and(hit))}, plaintext, Verdict{Policy: "ns/p", Reason: ReasonDenied}},
		"unknown field in a clause, allow": {[]*auth{rules(allow(), &security.Rule{Clauses: []*security.Clause{futureClause}})}, plaintext,
			Verdict{Reason: ReasonDefaultDeny}},
		"unknown field in a clause, deny": {[]*auth{rules(deny(), &security.Rule{Clauses: []*security.Clause{futureClause}})}, plaintext,
			Verdict{Policy: "ns/p", Reason: ReasonDenied}},
		"unknown field in a rule, allow": {[]*auth{rules(allow(), futureRule)}, plaintext, Verdict{Reason: ReasonDefaultDeny}},
		"unknown field in a rule, deny":  {[]*auth{rules(deny(), futureRule)}, plaintext, Verdict{Policy: "ns/p", Reason: ReasonDenied}},
		"policy extension is no condition": {[]*auth{{Name: "p", Namespace: "ns", Extensions: []*workload.Extension{{Name: "x"}},
			Rules: []*security.Rule{and(hit)}}}, plaintext, Verdict{Allowed: true, Policy: "ns/p", Reason: ReasonAllowed}},
		"strict refuses plaintext":     {[]*auth{strict}, plaintext, Verdict{Policy: "ns/strict", Reason: ReasonDenied}},
		"strict lets identities pass":  {[]*auth{strict}, webClient, Verdict{Allowed: true, Reason: ReasonNotDenied}},
		"strict before an open allow":  {[]*auth{strict, allow(hit)}, plaintext, Verdict{Policy: "ns/strict", Reason: ReasonDenied}},
		"strict and allow, identities": {[]*auth{strict, allow(hit)}, webClient, Verdict{Allowed: true, Policy: "ns/p", Reason: ReasonAllowed}},
		"dry-run deny hit": {[]*auth{dry(deny(hit))}, webClient,
			Verdict{Allowed: true, Reason: ReasonNotDenied, DryRun: []string{"deny ns/p"}}},
		"dry-run deny miss": {[]*auth{dry(deny(miss))}, webClient, Verdict{Allowed: true, Reason: ReasonNotDenied}},
		"dry-run allow hit": {[]*auth{dry(allow(hit))}, webClient,
			Verdict{Allowed: true, Reason: ReasonNotDenied, DryRun: []string{"allow ns/p"}}},
		"dry-run allow miss would deny": {[]*auth{dry(allow(miss))}, webClient,
			Verdict{Allowed: true, Reason: ReasonNotDenied, DryRun: []string{DryRunDefaultDeny}}},
		"dry-run allow does not open an enforced one": {[]*auth{named("a", allow(miss)), named("b", dry(allow(hit)))}, webClient,
			Verdict{Reason: ReasonDefaultDeny, DryRun: []string{"allow ns/b"}}},
		"dry-run allow is not enforced beside a deny miss": {[]*auth{named("d", deny(miss)), named("b", dry(allow(miss)))}, webClient,
			Verdict{Allowed: true, Reason: ReasonNotDenied, DryRun: []string{DryRunDefaultDeny}}},
		"dry-run deny beside an allow": {[]*auth{named("a", allow(hit)), named("d", dry(deny(hit)))}, webClient,
			Verdict{Allowed: true, Policy: "ns/a", Reason: ReasonAllowed, DryRun: []string{"deny ns/d"}}},
		"policies of all scopes are asked": {[]*auth{global(named("g", allow(miss))), named("n", allow(miss)), selector(named("s", allow(hit)))}, webClient,
			Verdict{Allowed: true, Policy: "ns/s", Reason: ReasonAllowed}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, Evaluate(setOf(t, tc.policies...), tc.conn)); diff != "" {
				t.Errorf("verdict (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnusableDeniesAll(t *testing.T) {
	s := setOf(t, allow(&amatch{DestinationPorts: []uint32{8080}}))
	s.Workload = []*Policy{Unusable("ns/broken")}
	want := Verdict{Policy: "ns/broken", Reason: ReasonUnusable}
	for _, c := range []Conn{webClient, plaintext} {
		if diff := cmp.Diff(want, Evaluate(s, c)); diff != "" {
			t.Errorf("verdict (-want +got):\n%s", diff)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	big := allow()
	for range MaxElements + 1 {
		big.Rules = append(big.Rules, &security.Rule{})
	}
	for name, tc := range map[string]struct {
		in   *auth
		want string
	}{
		"nil":                {nil, "name is empty"},
		"no name":            {&auth{Namespace: "ns"}, "name is empty"},
		"slash in name":      {&auth{Name: "a/b", Namespace: "ns"}, "holds a slash"},
		"slash in namespace": {&auth{Name: "a", Namespace: "n/s"}, "holds a slash"},
		"unknown scope":      {&auth{Name: "a", Namespace: "ns", Scope: 7}, "unknown scope 7"},
		"unknown action":     {&auth{Name: "a", Namespace: "ns", Action: 7}, "unknown action 7"},
		"too large":          {big, "more than 50000"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Compile(tc.in); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestEvaluateAllocatesNothing(t *testing.T) {
	s := benchSet(t)
	if n := testing.AllocsPerRun(200, func() { Evaluate(s, webClient) }); n != 0 {
		t.Errorf("Evaluate allocates %v times, want 0", n)
	}
}

func benchSet(t testing.TB) Set {
	return setOf(t,
		named("strict", deny(&amatch{NotPrincipals: strs(present())})),
		named("ports", deny(&amatch{NotDestinationPorts: []uint32{8080, 9090}})),
		named("other", allow(&amatch{Principals: strs(exactly("td/ns/bank/sa/api"), startsWith("td/ns/bank/"))})),
		named("web", allow(&amatch{
			Principals: strs(exactly("td/ns/shop/sa/api"), exactly("td/ns/shop/sa/web")),
			SourceIps:  []*security.Address{ipRange("10.0.0.0/8")},
		})),
	)
}

func BenchmarkEvaluate(b *testing.B) {
	s := benchSet(b)
	b.ReportAllocs()
	for b.Loop() {
		if !Evaluate(s, webClient).Allowed {
			b.Fatal("denied")
		}
	}
}
