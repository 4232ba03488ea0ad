package match

import (
	"regexp"
	"strings"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// Istio's patterns, as AuthorizationPolicy and RateLimit use them: exact, "prefix*", "*suffix", and "*" for a value
// that is there and not empty. An asterisk elsewhere is itself.

// SPIFFEScheme starts identities. Istio's principals are written without it.
const SPIFFEScheme = "spiffe://"

// Pattern matches a value by a pattern.
func Pattern(p string, ignoreCase bool) *matcherv3.StringMatcher {
	switch {
	case p == "*":
		return Regex(".+")
	case strings.HasPrefix(p, "*"):
		return Suffix(p[1:], ignoreCase)
	case strings.HasSuffix(p, "*"):
		return Prefix(p[:len(p)-1], ignoreCase)
	}
	return Exact(p, ignoreCase)
}

// Principal matches a SPIFFE id by a pattern of principals.
func Principal(p string) *matcherv3.StringMatcher {
	p = strings.TrimPrefix(p, SPIFFEScheme)
	switch {
	case p == "*":
		return Regex(".+")
	case strings.HasPrefix(p, "*"):
		return Regex(PrincipalExpression(p))
	case strings.HasSuffix(p, "*"):
		return Prefix(SPIFFEScheme+p[:len(p)-1], false)
	}
	return Exact(SPIFFEScheme+p, false)
}

// PrincipalExpression is Principal as a regular expression.
func PrincipalExpression(p string) string {
	p = strings.TrimPrefix(p, SPIFFEScheme)
	switch {
	case p == "*":
		return ".+"
	case strings.HasPrefix(p, "*"):
		return SPIFFEScheme + ".*" + regexp.QuoteMeta(p[1:])
	case strings.HasSuffix(p, "*"):
		return SPIFFEScheme + regexp.QuoteMeta(p[:len(p)-1]) + ".*"
	}
	return SPIFFEScheme + regexp.QuoteMeta(p)
}

// Namespace matches the SPIFFE ids of a namespace's workloads. The namespace is a pattern, which never reaches
// beyond its element of the path.
func Namespace(p string) *matcherv3.StringMatcher {
	parts := strings.Split(p, "*")
	for i, s := range parts {
		parts[i] = regexp.QuoteMeta(s)
	}
	return Regex(SPIFFEScheme + "[^/]+/ns/" + strings.Join(parts, "[^/]*") + "/.*")
}

// Account matches the SPIFFE ids of a service account in any trust domain.
func Account(namespace, name string) *matcherv3.StringMatcher {
	return Regex(SPIFFEScheme + "[^/]+/ns/" + regexp.QuoteMeta(namespace) + "/sa/" + regexp.QuoteMeta(name))
}

// TrustDomain matches the SPIFFE ids of a trust domain, given as a pattern.
func TrustDomain(p string) *matcherv3.StringMatcher {
	if !strings.Contains(p, "*") {
		return Prefix(SPIFFEScheme+p+"/", false)
	}
	parts := strings.Split(p, "*")
	for i, s := range parts {
		parts[i] = regexp.QuoteMeta(s)
	}
	return Regex(SPIFFEScheme + strings.Join(parts, "[^/]*") + "/.*")
}
