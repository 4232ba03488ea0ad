// Package match writes the model's comparisons as Envoy's matchers: strings,
// headers, query parameters, paths, filter state and claims of a token. Its
// siblings route, rbac and ratelimit call it, so that one pattern means the same
// in all of them. It is pure. What Envoy would refuse (an empty prefix, an
// expression that does not compile) is an error here or written in another way,
// never handed on: one bad rule must not make Envoy refuse a whole table.
package match

import (
	"fmt"
	"regexp"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// maxRegex bounds the length of an expression: longer ones cost Envoy memory for every table that holds them.
// Lists of addresses are the longest that we write ourselves, 40 bytes for each.
const maxRegex = 1 << 20

// CheckRegex tells what is wrong with an expression. Envoy uses RE2, whose syntax Go's package accepts.
func CheckRegex(re string) error {
	if len(re) > maxRegex {
		return fmt.Errorf("compile expression of %d bytes: longer than %d", len(re), maxRegex)
	}
	if _, err := regexp.Compile(re); err != nil {
		return fmt.Errorf("compile expression: %w", err)
	}
	return nil
}

// Regex matches a whole string by an expression that is known to be good.
func Regex(re string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: re}}}
}

// Exact matches one string.
func Exact(s string, ignoreCase bool) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}, IgnoreCase: ignoreCase}
}

// Prefix matches the beginning of a string; an empty one every string.
func Prefix(s string, ignoreCase bool) *matcherv3.StringMatcher {
	if s == "" {
		return Regex(".*")
	}
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: s}, IgnoreCase: ignoreCase}
}

// Suffix matches the end of a string; an empty one every string.
func Suffix(s string, ignoreCase bool) *matcherv3.StringMatcher {
	if s == "" {
		return Regex(".*")
	}
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: s}, IgnoreCase: ignoreCase}
}

// String writes a comparison. Present, which has no value to compare, matches every string.
func String(m model.StringMatch) (*matcherv3.StringMatcher, error) {
	switch m.Kind {
	case model.MatchExact:
		return Exact(m.Value, m.IgnoreCase), nil
	case model.MatchPrefix:
		return Prefix(m.Value, m.IgnoreCase), nil
	case model.MatchSuffix:
		return Suffix(m.Value, m.IgnoreCase), nil
	case model.MatchPresent:
		return Regex(".*"), nil
	case model.MatchSegments, model.MatchRegex:
		re := expression(m)
		if err := CheckRegex(re); err != nil {
			return nil, err
		}
		return Regex(re), nil
	}
	return nil, fmt.Errorf("write comparison %d: unknown kind", m.Kind)
}

// expression is the comparison as a regular expression for the whole string.
func expression(m model.StringMatch) string {
	var re string
	switch m.Kind {
	case model.MatchExact:
		re = regexp.QuoteMeta(m.Value)
	case model.MatchPrefix:
		re = regexp.QuoteMeta(m.Value) + ".*"
	case model.MatchSuffix:
		re = ".*" + regexp.QuoteMeta(m.Value)
	case model.MatchSegments:
		re = regexp.QuoteMeta(strings.TrimRight(m.Value, "/")) + "(/.*)?"
	case model.MatchPresent:
		re = ".*"
	case model.MatchRegex:
		re = m.Value
	}
	if m.IgnoreCase {
		re = "(?i)" + re
	}
	return re
}

// PathAndQuery is a comparison of paths for the header :path, which holds the query too.
func PathAndQuery(m model.StringMatch) (*matcherv3.StringMatcher, error) {
	if m.Kind == model.MatchPrefix || m.Kind == model.MatchPresent {
		return String(m)
	}
	re := expression(m)
	if m.Kind == model.MatchRegex {
		re = "(?:" + re + ")"
	}
	re += `(\?.*)?`
	if err := CheckRegex(re); err != nil {
		return nil, err
	}
	return Regex(re), nil
}

// Header compares a header. An absent header matches only if the verdict is inverted.
func Header(m model.NamedMatch) (*routev3.HeaderMatcher, error) {
	if m.Name == "" {
		return nil, fmt.Errorf("compare header: it has no name")
	}
	out := &routev3.HeaderMatcher{Name: m.Name, InvertMatch: m.Not}
	if m.Kind == model.MatchPresent {
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		return out, nil
	}
	s, err := String(m.StringMatch)
	if err != nil {
		return nil, fmt.Errorf("compare header %q: %w", m.Name, err)
	}
	return HeaderString(m.Name, s, m.Not), nil
}

// HeaderString compares a header by a matcher. Envoy would never match an absent header, inverted or not, unless it
// may take it for an empty one.
func HeaderString(name string, m *matcherv3.StringMatcher, not bool) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name: name, InvertMatch: not, TreatMissingHeaderAsEmpty: not,
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m},
	}
}

// Query compares a query parameter. Envoy cannot invert that.
func Query(m model.NamedMatch) (*routev3.QueryParameterMatcher, error) {
	out := &routev3.QueryParameterMatcher{Name: m.Name}
	switch {
	case m.Name == "":
		return nil, fmt.Errorf("compare query parameter: it has no name")
	case m.Not:
		return nil, fmt.Errorf("compare query parameter %q: a parameter that must not match cannot be expressed", m.Name)
	case m.Kind == model.MatchPresent:
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
		return out, nil
	}
	s, err := String(m.StringMatch)
	if err != nil {
		return nil, fmt.Errorf("compare query parameter %q: %w", m.Name, err)
	}
	out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: s}
	return out, nil
}

// FilterState compares a value that the connection carries. What is not there matches nothing.
func FilterState(key string, m *matcherv3.StringMatcher) *matcherv3.FilterStateMatcher {
	return &matcherv3.FilterStateMatcher{Key: key, Matcher: &matcherv3.FilterStateMatcher_StringMatch{StringMatch: m}}
}
