package resolve

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// hosted is a route on a listener with one of the names that both have in common.
type hosted struct {
	domain string
	route  *model.Route
	server server
}

// Table computes one route table of a gateway; nil if no listener has it.
func Table(r *index.Reader, t Target, name string) Output {
	b := newBuilder(r, t)
	var mine, others []server
	for port, all := range servers(r, t) {
		for _, s := range all {
			if s.state.Protocol == model.ListenHTTPS && strings.HasPrefix(name, tlsPrefix(port)) {
				others = append(others, s)
			}
			plain := s.state.Protocol == model.ListenHTTP && name == PlainTable(port)
			tls := s.state.Protocol == model.ListenHTTPS && name == TLSTable(port, s.gateway, s.state.Name)
			if plain || tls {
				mine = append(mine, s)
			}
		}
	}
	if len(mine) == 0 {
		return Output{}
	}
	table := &model.RouteTable{Name: name}
	b.hosts(table, mine)
	b.misdirected(table, mine, others)
	return b.finish(Output{Tables: []*model.RouteTable{table}})
}

// hosts makes a virtual host for each name: of the listeners, so that what the most specific listener does not route
// is not routed by another one (Gateway API, listener isolation), and of the routes.
func (b *builder) hosts(table *model.RouteTable, servers []server) {
	owner := map[string]server{} // domain → the most specific listener for it
	var all []hosted
	for _, s := range servers {
		for _, d := range listenerDomains(s) {
			if _, taken := owner[d]; !taken {
				owner[d] = s
			}
		}
	}
	for _, s := range servers {
		for _, a := range b.attached(s) {
			for _, d := range b.domains(s, a.Route) {
				all = append(all, hosted{d, a.Route, s})
			}
		}
	}
	own := map[string]server{}
	for d, s := range owner {
		own[d] = s
	}
	for _, h := range all {
		if best, ok := closest(owner, h.domain); !ok || best == h.server {
			if _, ok := own[h.domain]; !ok {
				own[h.domain] = h.server
			}
		}
	}
	for _, d := range sortedKeys(own) {
		table.Hosts = append(table.Hosts, b.virtualHost(table.Name, d, own[d], all))
	}
}

// misdirected answers 421 to requests for names of other listeners of the port: their TLS is not the one that the
// client spoke (Gateway API, listeners[].hostname; RFC 9110 section 15.5.20).
func (b *builder) misdirected(table *model.RouteTable, mine, others []server) {
	own := map[string]bool{}
	for _, h := range table.Hosts {
		own[h.Domains[0]] = true
	}
	names := map[string]bool{}
	for _, s := range others {
		if slices.Contains(mine, s) {
			continue
		}
		for _, d := range listenerDomains(s) {
			if !own[d] {
				names[d] = true
			}
		}
	}
	for _, d := range sortedKeys(names) {
		table.Hosts = append(table.Hosts, model.VirtualHost{
			Name: d, Domains: []string{d}, Rules: []model.RouteRule{{Name: "misdirected", Status: http.StatusMisdirectedRequest, Service: d}},
		})
	}
}

// listenerDomains are the names that a listener is for.
func listenerDomains(s server) []string {
	if names := sni(s); names != nil {
		return names
	}
	return []string{"*"}
}

// domains are the names that a route has on a listener.
func (b *builder) domains(s server, route *model.Route) []string {
	if s.gateway.Kind == model.KindIstioGateway {
		return serverHosts(s.gateway, s.state.Listener, route)
	}
	return intersect(s.state.Hostname, route.Hostnames)
}

// closest finds the most specific listener that covers a name.
func closest(owner map[string]server, domain string) (server, bool) {
	best, found := "", false
	for d := range owner {
		if covers(d, domain) && (!found || moreSpecific(d, best)) {
			best, found = d, true
		}
	}
	return owner[best], found
}

// moreSpecific: an exact name before wildcards, then the longer.
func moreSpecific(a, b string) bool {
	return cmp.Or(wildcardRank(a)-wildcardRank(b), len(b)-len(a)) < 0
}

// virtualHost collects the rules for a name: those of routes with exactly this name, then of wider ones on the same
// listener, since a request that a narrow name's rules leave is offered to the wider (Gateway API, HTTPRouteSpec.hostnames).
func (b *builder) virtualHost(table, domain string, s server, all []hosted) model.VirtualHost {
	out := model.VirtualHost{Name: domain, Domains: []string{domain}, Policy: b.policyAt(nil, s.state.Name)}
	if tls := s.state.TLS; tls != nil && tls.Redirect && s.state.Protocol == model.ListenHTTP {
		out.RedirectTLS = true
	}
	byDomain := map[string][]*model.Route{}
	for _, h := range all {
		if h.server == s && covers(h.domain, domain) && !slices.Contains(byDomain[h.domain], h.route) {
			byDomain[h.domain] = append(byDomain[h.domain], h.route)
		}
	}
	order := sortedKeys(byDomain)
	slices.SortFunc(order, func(x, y string) int {
		if moreSpecific(x, y) {
			return -1
		}
		return 1
	})
	c := call{port: s.state.Port, service: domain, gateway: s.gateway.Key.String()}
	seen := map[*model.Route]bool{}
	for _, d := range order {
		var api []*model.Route
		for _, route := range byDomain[d] {
			if seen[route] {
				continue
			}
			seen[route] = true
			if route.Ordered {
				out.Rules = append(out.Rules, b.virtualHTTP(route, c)...)
			} else {
				api = append(api, route)
			}
		}
		out.Rules = append(out.Rules, b.candidates(api, c)...)
	}
	return out
}

// serverHosts are the names that a VirtualService and a server of an Istio Gateway have in common. A server's host may
// limit the namespaces of VirtualServices, as in "shop/*.example.com" ("." is the Gateway's own).
func serverHosts(g *model.Gateway, l *model.Listener, v *model.Route) []string {
	if !index.Exported(v.ExportTo, v.Namespace, g.Namespace) {
		return nil
	}
	if len(v.Hostnames) == 0 {
		return nil
	}
	var out []string
	for _, h := range l.Hosts {
		ns, host, ok := strings.Cut(h, "/")
		if !ok {
			ns, host = "*", h
		}
		if ns != "*" && ns != v.Namespace && (ns != "." || g.Namespace != v.Namespace) {
			continue
		}
		for _, got := range intersect(host, v.Hostnames) {
			if !slices.Contains(out, got) {
				out = append(out, got)
			}
		}
	}
	return out
}
