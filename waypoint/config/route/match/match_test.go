package match

import (
	"regexp"
	"strings"
	"testing"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// matches evaluates a matcher as Envoy does.
func matches(m *matcherv3.StringMatcher, s string) bool {
	if m.IgnoreCase && m.GetSafeRegex() == nil {
		s = strings.ToLower(s)
	}
	low := func(v string) string {
		if m.IgnoreCase {
			return strings.ToLower(v)
		}
		return v
	}
	switch p := m.MatchPattern.(type) {
	case *matcherv3.StringMatcher_Exact:
		return s == low(p.Exact)
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(s, low(p.Prefix))
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(s, low(p.Suffix))
	case *matcherv3.StringMatcher_SafeRegex:
		return regexp.MustCompile("^(?:" + p.SafeRegex.Regex + ")$").MatchString(s)
	}
	return false
}

func TestStrings(t *testing.T) {
	for _, c := range []struct {
		kind        model.MatchKind
		value       string
		any         bool
		yes, no     []string
		pathAndMore []string
	}{
		{model.MatchExact, "/A.b", false, []string{"/A.b"}, []string{"/Axb", "/a.b", "/A.b/"}, []string{"/A.b", "/A.b?q", "/A.b?/x"}},
		{model.MatchExact, "/A.b", true, []string{"/a.B"}, []string{"/axb"}, []string{"/a.b?q"}},
		{model.MatchPrefix, "/a.", false, []string{"/a.", "/a.b"}, []string{"/ab", "/A."}, []string{"/a.b?q"}},
		{model.MatchPrefix, "", false, []string{"", "x"}, nil, []string{"/"}},
		{model.MatchSuffix, ".b", false, []string{"a.b"}, []string{"a.bc", "axb"}, []string{"/a.b?q=.c"}},
		{model.MatchSegments, "/a/", false, []string{"/a", "/a/", "/a/b"}, []string{"/ab", "/"}, []string{"/a?b", "/a/b?c"}},
		{model.MatchRegex, "a|b", false, []string{"a", "b"}, []string{"ab", "ac"}, []string{"b?q", "a?q"}},
		{model.MatchPresent, "", false, []string{"", "x"}, nil, []string{"/"}},
	} {
		in := model.StringMatch{Kind: c.kind, Value: c.value, IgnoreCase: c.any}
		m, err := String(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range c.yes {
			if !matches(m, s) {
				t.Errorf("%v does not match %q", in, s)
			}
		}
		for _, s := range c.no {
			if matches(m, s) {
				t.Errorf("%v matches %q", in, s)
			}
		}
		withQuery, err := PathAndQuery(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range c.pathAndMore {
			if !matches(withQuery, s) {
				t.Errorf("%v does not match the path of %q", in, s)
			}
		}
		for _, s := range c.no {
			if matches(withQuery, s+"?q") {
				t.Errorf("%v matches the path of %q", in, s+"?q")
			}
		}
	}
	for _, bad := range []model.StringMatch{{Kind: model.MatchRegex, Value: "("}, {Kind: 99}, {Kind: model.MatchRegex, Value: strings.Repeat("a", maxRegex+1)}} {
		if m, err := String(bad); err == nil {
			t.Errorf("%v became %v", bad, m)
		}
	}
}

func TestIdentities(t *testing.T) {
	const id = "spiffe://cluster.local/ns/shop/sa/front"
	for name, c := range map[string]struct {
		m    *matcherv3.StringMatcher
		want bool
	}{
		"exact": {Principal("cluster.local/ns/shop/sa/front"), true}, "with scheme": {Principal(id), true}, "shorter": {Principal("cluster.local/ns/shop/sa/fron"), false},
		"prefix": {Principal("cluster.local/ns/shop/*"), true}, "suffix": {Principal("*/sa/front"), true}, "other suffix": {Principal("*/sa/ront"), false}, "any": {Principal("*"), true},
		"namespace": {Namespace("shop"), true}, "beginning of a namespace": {Namespace("sho"), false}, "pattern of namespaces": {Namespace("sh*"), true},
		"pattern does not leave the namespace": {Namespace("*front"), false}, "dot is a dot": {Namespace("sh.p"), false},
		"account": {Account("shop", "front"), true}, "other account": {Account("shop", "fron"), false},
		"domain": {TrustDomain("cluster.local"), true}, "beginning of a domain": {TrustDomain("cluster"), false}, "pattern of domains": {TrustDomain("*.local"), true},
	} {
		if got := matches(c.m, id); got != c.want {
			t.Errorf("%s: %v matches %s: %v, want %v", name, c.m, id, got, c.want)
		}
		if matches(c.m, "") {
			t.Errorf("%s: %v matches nobody", name, c.m)
		}
	}
}

func TestClaimPath(t *testing.T) {
	for in, want := range map[string][]string{
		"a": {"a"}, "a.b": {"a", "b"}, "[a.b][c]": {"a.b", "c"}, "[a]": {"a"},
	} {
		if diff := cmp.Diff(want, claimPath(in)); diff != "" {
			t.Errorf("path of claim %q (-want +got):\n%s", in, diff)
		}
	}
}

// FuzzString: what is written compiles in Envoy's way, or is refused.
func FuzzString(f *testing.F) {
	f.Add(uint8(model.MatchRegex), "a|b", true)
	f.Add(uint8(model.MatchSegments), "/a/", false)
	f.Fuzz(func(t *testing.T, kind uint8, value string, ignoreCase bool) {
		in := model.StringMatch{Kind: model.MatchKind(kind), Value: value, IgnoreCase: ignoreCase}
		for _, write := range []func(model.StringMatch) (*matcherv3.StringMatcher, error){String, PathAndQuery} {
			m, err := write(in)
			if err != nil {
				continue
			}
			if re := m.GetSafeRegex(); re != nil {
				if _, err := regexp.Compile(re.Regex); err != nil {
					t.Errorf("%v became %q: %v", in, re.Regex, err)
				}
			}
		}
	})
}
