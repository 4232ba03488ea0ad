package rbac

import (
	"net/netip"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	templatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route/match"
)

// Templates of paths in Istio's spelling and, without the braces, in Envoy's.
const (
	templateOne  = "{*}"
	templateMany = "{**}"
)

// identity checks the source's SPIFFE id: on a waypoint, who opened the tunnel; on a gateway, who the connection's
// certificate names.
func (w *writer) identity(m *matcherv3.StringMatcher) *rbacv3.Principal {
	if w.Waypoint {
		return state(match.FilterState(names.StatePeer, m))
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{PrincipalName: m}}}
}

func (w *writer) principal(p string) *rbacv3.Principal   { return w.identity(match.Principal(p)) }
func (w *writer) namespace(p string) *rbacv3.Principal   { return w.identity(match.Namespace(p)) }
func (w *writer) trustDomain(p string) *rbacv3.Principal { return w.identity(match.TrustDomain(p)) }

func (w *writer) account(p string) *rbacv3.Principal {
	ns, name, ok := strings.Cut(p, "/")
	if !ok {
		return nil
	}
	return w.identity(match.Account(ns, name))
}

// sourceIP checks who opened the connection. On a waypoint the connection's own address is of no use: it is internal,
// and what HTTP makes of it follows x-forwarded-for, which the client wrote.
func (w *writer) sourceIP(p netip.Prefix) *rbacv3.Principal {
	if w.Waypoint {
		return state(address(names.OriginalRemote, p))
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: cidr(p)}}
}

// remoteIP checks the original client, as x-forwarded-for or the PROXY protocol tells it.
func remoteIP(p netip.Prefix) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_RemoteIp{RemoteIp: cidr(p)}}
}

// authorityIP checks the address that was asked for of a waypoint.
func authorityIP(p netip.Prefix) *rbacv3.Principal { return state(address(names.OriginalLocal, p)) }

// authorityPort checks the port that was asked for of a waypoint.
func (w *writer) authorityPort(port string) *rbacv3.Principal {
	return state(match.FilterState(names.StateAuthority, match.Suffix(":"+port, false)))
}

func state(m *matcherv3.FilterStateMatcher) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_FilterState{FilterState: m}}
}

func address(key string, p netip.Prefix) *matcherv3.FilterStateMatcher {
	return &matcherv3.FilterStateMatcher{Key: key, Matcher: &matcherv3.FilterStateMatcher_AddressMatch{AddressMatch: addressMatcher(p)}}
}

func cidr(p netip.Prefix) *corev3.CidrRange {
	return &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}
}

// port checks the port of a gateway, which it may bind under another number.
func (w *writer) port(v string) *rbacv3.Permission {
	n, _ := strconv.ParseUint(v, 10, 16)
	bound := w.Ports[uint16(n)]
	if len(bound) == 0 {
		bound = []uint16{uint16(n)}
	}
	var or []*rbacv3.Permission
	for _, b := range bound {
		or = append(or, &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPort{DestinationPort: uint32(b)}})
	}
	return orPermissions(or)
}

func destinationIP(v string) *rbacv3.Permission {
	p, err := parseBlock(v)
	if err != nil {
		return nil
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: cidr(p)}}
}

func serverName(v string) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_RequestedServerName{RequestedServerName: match.Pattern(v, false)}}
}

// host compares without regard to case, as names of hosts are.
func host(v string) *rbacv3.Permission { return headerPermission(header(":authority", v, true)) }

func method(v string) *rbacv3.Permission { return headerPermission(header(":method", v, false)) }

func headerPermission(h *routev3.HeaderMatcher) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: h}}
}

func path(v string) *rbacv3.Permission {
	if strings.Contains(v, templateOne) || strings.Contains(v, templateMany) {
		if t, err := template(v); err == nil {
			return &rbacv3.Permission{Rule: &rbacv3.Permission_UriTemplate{UriTemplate: t}}
		}
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{
		Rule: &matcherv3.PathMatcher_Path{Path: match.Pattern(v, false)},
	}}}
}

func template(v string) (*corev3.TypedExtensionConfig, error) {
	v = strings.NewReplacer(templateOne, "*", templateMany, "**").Replace(v)
	any, err := anypb.New(&templatev3.UriTemplateMatchConfig{PathTemplate: v})
	if err != nil {
		return nil, err
	}
	return &corev3.TypedExtensionConfig{Name: "envoy.path.match.uri_template.uri_template_matcher", TypedConfig: any}, nil
}

// filterMetadata checks what another filter left; "[v]" wants a list that holds v.
func filterMetadata(filter, key, v string) *rbacv3.Permission {
	value := match.Value(match.Pattern(v, false))
	if strings.HasPrefix(v, "[") && strings.HasSuffix(v, "]") {
		value = &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{
			MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: match.Value(match.Pattern(strings.Trim(v, "[]"), false))},
		}}}
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_SourcedMetadata{SourcedMetadata: sourced(match.Metadata(filter, []string{key}, value))}}
}

// header compares a header by a pattern; an asterisk alone wants it present.
func header(name, v string, ignoreCase bool) *routev3.HeaderMatcher {
	if v == "*" {
		return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	}
	return match.HeaderString(name, match.Pattern(v, ignoreCase), false)
}

func headers(name string, values []string) *rbacv3.Principal {
	var or []*rbacv3.Principal
	for _, v := range values {
		or = append(or, &rbacv3.Principal{Identifier: &rbacv3.Principal_Header{Header: header(name, v, false)}})
	}
	return orPrincipals(or)
}

// claim checks a claim of the request's token.
func claim(path []string) func([]string) *rbacv3.Principal {
	return func(values []string) *rbacv3.Principal {
		return metadata(match.Claim(path, match.Patterns(values)))
	}
}

func metadata(m *matcherv3.MetadataMatcher) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_SourcedMetadata{SourcedMetadata: sourced(m)}}
}

func sourced(m *matcherv3.MetadataMatcher) *rbacv3.SourcedMetadata {
	return &rbacv3.SourcedMetadata{MetadataMatcher: m, MetadataSource: rbacv3.MetadataSource_DYNAMIC}
}

// requestPrincipals checks "<issuer>/<subject>" of the request's token. The issuer may be a URL, so that the last
// slash divides them; an asterisk at an end belongs to the part that it is in.
func requestPrincipals(values []string) *rbacv3.Principal {
	var or []*rbacv3.Principal
	for _, v := range values {
		issuer, subject := splitRequestPrincipal(v)
		or = append(or, andPrincipals([]*rbacv3.Principal{
			metadata(match.ClaimValue([]string{"iss"}, match.Value(issuer))),
			metadata(match.ClaimValue([]string{"sub"}, match.Value(subject))),
		}))
	}
	return orPrincipals(or)
}

func splitRequestPrincipal(v string) (issuer, subject *matcherv3.StringMatcher) {
	some := match.Regex(".+")
	if v == "*" {
		return some, some
	}
	slash := strings.LastIndex(v, "/")
	if slash >= 0 {
		iss, sub := v[:slash], v[slash+1:]
		switch {
		case strings.HasPrefix(v, "*"):
			return match.Pattern(iss, false), match.Exact(sub, false)
		case strings.HasSuffix(v, "*"):
			return match.Exact(iss, false), match.Pattern(sub, false)
		}
		return match.Exact(iss, false), match.Exact(sub, false)
	}
	switch {
	case strings.HasPrefix(v, "*"):
		return some, match.Pattern(v, false)
	case strings.HasSuffix(v, "*"):
		return match.Pattern(v, false), some
	}
	return match.Exact(v, false), match.Exact("", false)
}
