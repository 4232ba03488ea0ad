package match

import (
	"strings"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	// jwtMetadata is where Envoy's JWT filter leaves what it has verified, whatever the filter is called.
	jwtMetadata = "envoy.filters.http.jwt_authn"
	// JWTPayload is the key of the payload in there; the filter is told so.
	JWTPayload = "payload"
)

// Claim compares a claim of a verified token, which is a string or a list of strings.
func Claim(path []string, value *matcherv3.ValueMatcher) *matcherv3.MetadataMatcher {
	return ClaimValue(path, OrValues(
		&matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{
			ListMatch: &matcherv3.ListMatcher{MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: value}},
		}},
		value,
	))
}

// ClaimValue compares a claim as it stands.
func ClaimValue(path []string, value *matcherv3.ValueMatcher) *matcherv3.MetadataMatcher {
	return Metadata(jwtMetadata, append([]string{JWTPayload}, path...), value)
}

// Metadata compares a value that a filter has left.
func Metadata(filter string, path []string, value *matcherv3.ValueMatcher) *matcherv3.MetadataMatcher {
	out := &matcherv3.MetadataMatcher{Filter: filter, Value: value}
	for _, key := range path {
		out.Path = append(out.Path, &matcherv3.MetadataMatcher_PathSegment{
			Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: key},
		})
	}
	return out
}

// claimPath reads the path of a claim: joined by dots, or each element in brackets if one of them has a dot.
func claimPath(name string) []string {
	if strings.HasPrefix(name, "[") && strings.HasSuffix(name, "]") {
		return strings.Split(name[1:len(name)-1], "][")
	}
	return strings.Split(name, ".")
}

// RoutingClaim compares a claim for choosing a route.
func RoutingClaim(m model.NamedMatch) (*matcherv3.MetadataMatcher, error) {
	s, err := String(m.StringMatch)
	if err != nil {
		return nil, err
	}
	out := Claim(claimPath(m.Name), Value(s))
	if m.Kind == model.MatchPresent {
		out = ClaimValue(claimPath(m.Name), Present())
	}
	out.Invert = m.Not
	return out, nil
}

// Value compares a value that is a string.
func Value(s *matcherv3.StringMatcher) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: s}}
}

// Present matches any value.
func Present() *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
}

// OrValues matches if one does.
func OrValues(values ...*matcherv3.ValueMatcher) *matcherv3.ValueMatcher {
	if len(values) == 1 {
		return values[0]
	}
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{OrMatch: &matcherv3.OrMatcher{ValueMatchers: values}}}
}

// Patterns matches a string by one of several patterns.
func Patterns(patterns []string) *matcherv3.ValueMatcher {
	values := make([]*matcherv3.ValueMatcher, 0, len(patterns))
	for _, p := range patterns {
		values = append(values, Value(Pattern(p, false)))
	}
	return OrValues(values...)
}
