package istiopolicy

import (
	"net/netip"
	"strings"

	securityapi "istio.io/api/security/v1beta1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Attributes of a rule's conditions (istio.io/docs/reference/config/security/conditions).
const (
	whenSourceIP         = "source.ip"
	whenRemoteIP         = "remote.ip"
	whenSourceNamespace  = "source.namespace"
	whenSourcePrincipal  = "source.principal"
	whenSourceAccount    = "source.serviceAccount"
	whenSourceDomain     = "source.trustDomain"
	whenRequestPrincipal = "request.auth.principal"
	whenRequestAudiences = "request.auth.audiences"
	whenRequestPresenter = "request.auth.presenter"
	whenDestinationIP    = "destination.ip"
	whenDestinationPort  = "destination.port"
	whenSNI              = "connection.sni"

	// These are followed by a name in brackets.
	whenHeader = "request.headers"
	whenClaim  = "request.auth.claims"
	whenFilter = "experimental.envoy.filters."
)

// condition reads one key of when. It reports false if nothing of it can be kept.
func (t *authzRule) condition(field string, c *securityapi.Condition) (model.AuthzCondition, bool) {
	out := model.AuthzCondition{Key: c.GetKey()}
	if !t.known(field+".key", out.Key) {
		return out, false
	}
	if len(c.GetValues())+len(c.GetNotValues()) == 0 {
		t.fail(field, "has neither values nor notValues")
		return out, false
	}
	read := t.strings
	switch out.Key {
	case whenSourceIP, whenRemoteIP, whenDestinationIP:
		read = func(field string, in []string) []string { return text(t.blocks(field, in)) }
	case whenDestinationPort:
		read = t.ports
	case whenSourceNamespace:
		read = t.namespaceList
	case whenSourcePrincipal:
		read = t.principalList
	case whenSourceDomain:
		out.Key, read = whenSourcePrincipal, t.trustDomains
	case whenSourceAccount:
		// An account is the end of a principal, in any trust domain.
		out.Key, read = whenSourcePrincipal, func(field string, in []string) []string { return accountPrincipals(t.accounts(field, in)) }
	}
	out.In, out.Not = read(field+".values", c.GetValues()), read(field+".notValues", c.GetNotValues())
	return out, len(out.In)+len(out.Not) > 0
}

// known tells whether key is an attribute, and fails with the reason if not.
func (p *problems) known(field, key string) bool {
	switch key {
	case whenSourceIP, whenRemoteIP, whenSourceNamespace, whenSourcePrincipal, whenSourceAccount, whenSourceDomain,
		whenRequestPrincipal, whenRequestAudiences, whenRequestPresenter, whenDestinationIP, whenDestinationPort, whenSNI:
		return true
	}
	var names []string
	ok := false
	switch {
	case strings.HasPrefix(key, whenHeader+"["):
		names, ok = brackets(key[len(whenHeader):])
		ok = ok && len(names) == 1 && headerName(names[0])
	case strings.HasPrefix(key, whenClaim+"["):
		_, ok = brackets(key[len(whenClaim):])
	case strings.HasPrefix(key, whenFilter):
		filter, rest, found := strings.Cut(key[len(whenFilter):], "[")
		names, ok = brackets("[" + rest)
		ok = ok && found && filter != "" && len(names) == 1
	case key == whenHeader, key == whenClaim:
	default:
		p.failValue(field, key, "unknown attribute")
		return false
	}
	if !ok {
		p.failValue(field, key, "wants a name in brackets, as in a[b]")
	}
	return ok
}

// brackets splits "[a][b]" into its names.
func brackets(s string) ([]string, bool) {
	var out []string
	for s != "" {
		end := strings.IndexByte(s, ']')
		if s[0] != '[' || end < 2 || strings.Contains(s[1:end], "[") {
			return nil, false
		}
		out = append(out, s[1:end])
		s = s[end+1:]
	}
	return out, len(out) > 0
}

// headerName tells whether s is a field name of RFC 9110 section 5.1, or a pseudo header.
func headerName(s string) bool {
	s = strings.TrimPrefix(s, ":")
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}

// accountPrincipals gives the principals that "namespace/name" stands for, in any trust domain.
func accountPrincipals(in []string) []string {
	var out []string
	for _, s := range in {
		ns, name, _ := strings.Cut(s, "/")
		out = append(out, "*/ns/"+ns+"/sa/"+name)
	}
	return out
}

func text(in []netip.Prefix) []string {
	var out []string
	for _, b := range in {
		out = append(out, b.String())
	}
	return out
}

// Templates of paths: one segment, and any number of them at the end.
const (
	templateOne  = "{*}"
	templateMany = "{**}"
)

// paths reads patterns, or templates as Istio defines them (pkg/config/security.CheckValidPathTemplate): whole segments,
// {**} last, and otherwise only characters of a path segment.
func (p *problems) paths(field string, in []string) []string {
	var out []string
	for _, s := range in {
		if !strings.ContainsAny(s, "{}") {
			out = append(out, p.strings(field, []string{s})...)
			continue
		}
		if cause := badTemplate(s); cause != "" {
			p.failValue(field, s, cause)
			continue
		}
		out = append(out, s)
	}
	return out
}

func badTemplate(s string) string {
	if !strings.HasPrefix(s, "/") {
		return "a path template starts with a slash"
	}
	many := false
	for _, segment := range strings.Split(strings.Trim(s, "/"), "/") {
		switch {
		case many:
			return "nothing may follow {**}"
		case segment == templateMany:
			many = true
		case segment == templateOne:
		case strings.ContainsAny(segment, "{}"):
			return "{*} and {**} stand for whole segments, and nothing else may be in braces"
		case segment == "" || strings.Contains(segment, "*") || !pathSegment(segment):
			return "holds a segment that no path has"
		}
	}
	return ""
}

// pathSegment tells whether s holds only characters of a segment (RFC 3986 section 3.3).
func pathSegment(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && !strings.ContainsRune("-._~%!$&'()+,;:@=", rune(c)) {
			return false
		}
	}
	return true
}
