package policy

import (
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/api/security"
)

// account is a service account of a namespace, in any trust domain.
type account struct{ namespace, name string }

// principal is a SPIFFE id without its scheme, in the pieces it is put together
// from, so that comparing it needs no allocation.
type principal [5]string

type patternKind uint8

const (
	exact patternKind = iota
	prefix
	suffix
	presence
)

type pattern struct {
	kind patternKind
	text string
}

func (p pattern) matches(who *principal) bool {
	switch p.kind {
	case exact:
		return who.len() == len(p.text) && who.hasPrefix(p.text)
	case prefix:
		return who.hasPrefix(p.text)
	case suffix:
		return who.hasSuffix(p.text)
	case presence:
		return who.len() > 0
	}
	return false
}

func (p *principal) len() int {
	n := 0
	for _, s := range p {
		n += len(s)
	}
	return n
}

func (p *principal) hasPrefix(text string) bool {
	for _, s := range p {
		if len(text) <= len(s) {
			return strings.HasPrefix(s, text)
		}
		if !strings.HasPrefix(text, s) {
			return false
		}
		text = text[len(s):]
	}
	return text == ""
}

func (p *principal) hasSuffix(text string) bool {
	for i := len(p) - 1; i >= 0; i-- {
		s := p[i]
		if len(text) <= len(s) {
			return strings.HasSuffix(s, text)
		}
		if !strings.HasSuffix(text, s) {
			return false
		}
		text = text[:len(text)-len(s)]
	}
	return text == ""
}

// patterns, accounts, prefixes and ports read the values of a field; unread says
// that at least one of them made no sense.

func patterns(in []*security.StringMatch) (out []pattern, unread bool) {
	for _, m := range in {
		switch t := m.GetMatchType().(type) {
		case *security.StringMatch_Exact:
			out = append(out, pattern{exact, t.Exact})
		case *security.StringMatch_Prefix:
			out = append(out, pattern{prefix, t.Prefix})
		case *security.StringMatch_Suffix:
			out = append(out, pattern{suffix, t.Suffix})
		case *security.StringMatch_Presence:
			out = append(out, pattern{kind: presence})
		default:
			unread = true
		}
	}
	return out, unread
}

func accounts(in []*security.ServiceAccountMatch) (out []account, unread bool) {
	for _, a := range in {
		if hasUnknown(a) {
			unread = true
			continue
		}
		out = append(out, account{a.GetNamespace(), a.GetServiceAccount()})
	}
	return out, unread
}

func prefixes(in []*security.Address) (out []netip.Prefix, unread bool) {
	for _, a := range in {
		p, ok := cidr(a)
		if !ok {
			unread = true
			continue
		}
		out = append(out, p)
	}
	return out, unread
}

// cidr reads an address range. A range of v4-mapped v6 addresses means the v4 ones,
// because that is how connections' addresses are compared.
func cidr(a *security.Address) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(a.GetAddress())
	const mappedBits = 96 // of ::ffff:0:0/96, RFC 4291 §2.5.5.2
	bits := a.GetLength()
	if !ok || bits > uint32(addr.BitLen()) || hasUnknown(a) {
		return netip.Prefix{}, false
	}
	if addr.Is4In6() {
		if bits < mappedBits {
			return netip.Prefix{}, false
		}
		addr, bits = addr.Unmap(), bits-mappedBits
	}
	return netip.PrefixFrom(addr, int(bits)).Masked(), true
}

func ports(in []uint32) (out []uint16, unread bool) {
	for _, p := range in {
		if p > 65535 {
			unread = true
			continue
		}
		out = append(out, uint16(p))
	}
	return out, unread
}
