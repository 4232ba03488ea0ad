package resolve

import (
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// ScopeName names a service port, and its route table.
func ScopeName(s *index.Service, port uint16) string {
	return s.Namespace + "/" + s.Host + ":" + strconv.Itoa(int(port))
}

// Service computes what a waypoint does for one service: a scope for each port, and a route table for those that may
// carry requests.
func Service(r *index.Reader, t Target, s *index.Service) Output {
	b := newBuilder(r, t)
	var out Output
	// Who calls a host by a wildcard names a host that nobody can list: nothing can be matched exactly.
	if strings.HasPrefix(s.Host, "*") {
		return out
	}
	for _, p := range s.Ports {
		routes := b.meshRoutes(s, p)
		scope := model.Scope{Name: ScopeName(s, p.Port), Kind: scopeKind(p, routes), Authorities: authorities(s, p.Port)}
		if scope.Kind != model.ScopeHTTP {
			scope.TCP = b.forward(s, p, routes)
		}
		if scope.Kind != model.ScopeTCP {
			out.Tables = append(out.Tables, b.serviceTable(scope.Name, s, p, routes))
		}
		out.Scopes = append(out.Scopes, scope)
	}
	return b.finish(out)
}

// authorities are what CONNECT may name the port by.
func authorities(s *index.Service, port uint16) []string {
	text := strconv.Itoa(int(port))
	out := []string{net.JoinHostPort(s.Host, text)}
	for _, ip := range s.VIPs {
		out = append(out, net.JoinHostPort(ip.String(), text))
	}
	slices.Sort(out)
	return out
}

// meshRoutes are the routes of one service port, by what they are.
type meshRoutes struct {
	// consumers maps a namespace to the routes that only its callers take.
	consumers map[string][]*model.Route
	producers []*model.Route
	l4        []*model.Route
	virtual   []virtual
}

// virtual is a VirtualService for the host; only callers of the namespace source take it, if that is not empty.
type virtual struct {
	route  *model.Route
	source string
}

func (m *meshRoutes) http() bool { return len(m.consumers)+len(m.producers) > 0 }

// meshRoutes finds the routes whose parent is the service port.
func (b *builder) meshRoutes(s *index.Service, p model.ServicePort) *meshRoutes {
	out := &meshRoutes{consumers: map[string][]*model.Route{}}
	kind := model.ParentService
	if s.Entry != nil {
		kind = model.ParentServiceEntry
	}
	for _, route := range b.r.RoutesOf(kind, s.Key, "") {
		attached := slices.ContainsFunc(route.Parents, func(x model.Parent) bool {
			return x.Kind == kind && x.Key == s.Key && x.Invalid == nil && selects(x, p)
		})
		switch {
		case !attached:
		case route.Kind != model.KindHTTPRoute && route.Kind != model.KindGRPCRoute:
			out.l4 = append(out.l4, route)
		case route.Namespace == s.Namespace:
			out.producers = append(out.producers, route)
		default:
			out.consumers[route.Namespace] = append(out.consumers[route.Namespace], route)
		}
	}
	out.virtual = b.virtualServices(s)
	return out
}

// selects tells whether a parent reference means this port.
func selects(x model.Parent, p model.ServicePort) bool {
	return (x.Port == 0 || x.Port == p.Port) && (x.Section == "" || x.Section == p.Name)
}

// scopeKind: what the port says, unless a route says what its author expects there (GEP-1426: the most specific kind
// of route counts).
func scopeKind(p model.ServicePort, routes *meshRoutes) model.ScopeKind {
	switch p.Protocol {
	case model.ProtocolHTTP1, model.ProtocolHTTP2, model.ProtocolGRPC:
		if !routes.http() && len(routes.l4) > 0 {
			return model.ScopeTCP
		}
		return model.ScopeHTTP
	case model.ProtocolTCP, model.ProtocolTLS:
		return model.ScopeTCP
	}
	switch {
	case routes.http():
		return model.ScopeHTTP
	case len(routes.l4) > 0:
		return model.ScopeTCP
	}
	return model.ScopeAuto
}

// serviceTable computes the rules of a service port. Gateway API routes come before VirtualServices, and among them
// those that the caller's own namespace has (consumer routes) before the service's.
func (b *builder) serviceTable(name string, s *index.Service, p model.ServicePort, routes *meshRoutes) *model.RouteTable {
	c := call{port: p.Port, service: s.Host, gateway: model.MeshGateway}
	vh := model.VirtualHost{Name: name, Domains: []string{"*"}, Policy: b.httpPolicy(s, p)}
	for _, ns := range sortedKeys(routes.consumers) {
		c := c
		c.source = ns
		vh.Rules = append(vh.Rules, closed(b.grouped(routes.consumers[ns], c), c)...)
	}
	if len(routes.producers) > 0 {
		vh.Rules = append(vh.Rules, closed(b.grouped(routes.producers, c), c)...)
	} else {
		vh.Rules = append(vh.Rules, b.virtualRules(s, p, routes.virtual)...)
	}
	return &model.RouteTable{Name: name, Hosts: []model.VirtualHost{vh}}
}

// grouped puts the rules of GRPCRoutes before those of HTTPRoutes: on one port the more specific kind of route comes
// first (GEP-1426).
func (b *builder) grouped(routes []*model.Route, c call) []model.RouteRule {
	var grpc, rest []*model.Route
	for _, r := range routes {
		if r.Kind == model.KindGRPCRoute {
			grpc = append(grpc, r)
		} else {
			rest = append(rest, r)
		}
	}
	return append(b.candidates(grpc, c), b.candidates(rest, c)...)
}

// closed answers 404 to what no rule took.
func closed(rules []model.RouteRule, c call) []model.RouteRule {
	if n := len(rules); n > 0 && catchAll(&rules[n-1], c.source) {
		return rules
	}
	return append(rules, nothing("none", c))
}

// direct is the rule of a service that has no routes.
func (b *builder) direct(s *index.Service, p model.ServicePort, c call) model.RouteRule {
	name := clusterOf(s, p.Port)
	b.clusters[name] = true
	clusters := []model.RouteCluster{{WeightedCluster: model.WeightedCluster{Cluster: name, Weight: 1}}}
	return model.RouteRule{Name: "default", Clusters: clusters, Retry: b.retry(&model.HTTPRule{}), Hash: b.hashOf(clusters), Service: c.service}
}

// forward is how connections to a service port go on: by the oldest TCPRoute, else TLSRoute, else VirtualService, else to it.
func (b *builder) forward(s *index.Service, p model.ServicePort, routes *meshRoutes) *model.TCPForward {
	out := &model.TCPForward{Name: ScopeName(s, p.Port), Authz: b.authorizations(s, p)}
	c := call{port: p.Port, service: s.Host, gateway: model.MeshGateway}
	if route, rule := firstL4(routes.l4); rule != nil {
		b.forwardTo(out, route, rule, c)
		return out
	}
	for _, v := range routes.virtual {
		if v.source != "" {
			continue // connections of one namespace cannot be told apart before they are forwarded
		}
		if rule := matchL4(v.route, p.Port, model.MeshGateway); rule != nil {
			b.forwardTo(out, v.route, rule, c)
			return out
		}
	}
	name := clusterOf(s, p.Port)
	b.clusters[name] = true
	out.Clusters = []model.WeightedCluster{{Cluster: name, Weight: 1}}
	out.HashSourceIP = b.hashesSource(name)
	return out
}

// firstL4 takes TCPRoutes before TLSRoutes; routes are in order of age. Several rules have no way to be told apart.
func firstL4(routes []*model.Route) (*model.Route, *model.L4Rule) {
	for _, r := range routes {
		if len(r.TCP) > 0 {
			return r, &r.TCP[0]
		}
	}
	for _, r := range routes {
		if len(r.TLS) > 0 {
			return r, &r.TLS[0]
		}
	}
	return nil, nil
}

// matchL4 finds the first rule of a VirtualService for connections to a port.
func matchL4(v *model.Route, port uint16, gateway string) *model.L4Rule {
	for _, rules := range [][]model.L4Rule{v.TCP, v.TLS} {
		for i := range rules {
			if len(rules[i].Matches) == 0 || slices.ContainsFunc(rules[i].Matches, func(m model.L4Match) bool {
				return (m.Port == 0 || m.Port == port) && (len(m.Gateways) == 0 || slices.Contains(m.Gateways, gateway)) &&
					len(m.SourceLabels) == 0 && m.SourceNamespace == ""
			}) {
				return &rules[i]
			}
		}
	}
	return nil
}

// forwardTo fills in where connections go; if nowhere, they are closed.
func (b *builder) forwardTo(out *model.TCPForward, route *model.Route, rule *model.L4Rule, c call) {
	if rule.Invalid != nil {
		out.Refuse = true
		return
	}
	good := false
	for _, share := range b.l4Clusters(route, rule.Backends, c) {
		// A share that leads nowhere cannot be answered with an error, as there is no protocol to do it in: an empty
		// name is a share that is closed.
		out.Clusters = append(out.Clusters, share)
		good = good || share.Cluster != ""
	}
	if !good {
		out.Clusters, out.Refuse = nil, true
		return
	}
	out.HashSourceIP = slices.ContainsFunc(out.Clusters, func(c model.WeightedCluster) bool { return b.hashesSource(c.Cluster) })
}

func (b *builder) hashesSource(cluster string) bool {
	p, ok := b.policyOf(cluster)
	return ok && p.LB != nil && p.LB.Kind == model.LBConsistentHash && p.LB.Hash != nil && p.LB.Hash.SourceIP
}
