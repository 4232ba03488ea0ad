package resolve

import (
	"net/http"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate/gatewayapi"
)

// defaultAttempts and defaultRetryOn are Istio's for a mesh that configures nothing. Nothing in the list can have
// reached an app, so that no request which changes something is sent twice; Istio took 503 off it for that reason.
const defaultAttempts = 2

func defaultRetry() *model.Retry {
	return &model.Retry{Attempts: defaultAttempts, On: []string{"connect-failure", "refused-stream", "unavailable", "cancelled"}}
}

// call is how a rule is reached: what the client called.
type call struct {
	port    uint16
	service string
	// gateway is the name by which matches limit themselves to a gateway, or "mesh".
	gateway string
	// source is the namespace of the only callers that the rule is for; empty is everybody.
	source string
}

// rule makes one alternative of one rule into the proxy's form; false if it can never match here.
func (b *builder) rule(route *model.Route, rule *model.HTTPRule, match model.HTTPMatch, c call) (model.RouteRule, bool) {
	if match.Port != 0 && match.Port != c.port {
		return model.RouteRule{}, false
	}
	if len(match.Gateways) > 0 && !slices.Contains(match.Gateways, c.gateway) {
		return model.RouteRule{}, false
	}
	if c.source != "" {
		if match.SourceNamespace != "" && match.SourceNamespace != c.source {
			return model.RouteRule{}, false
		}
		match.SourceNamespace = c.source
	}
	match.Port, match.Gateways = 0, nil
	out := model.RouteRule{Name: ruleName(route, rule), Match: match, Service: c.service}
	if len(match.SourceLabels) > 0 {
		out.SourceAddresses = b.sources(match.SourceNamespace, match.SourceLabels)
	}
	b.act(&out, route, rule, c)
	return out, true
}

// ruleName is what shows in logs.
func ruleName(route *model.Route, rule *model.HTTPRule) string {
	if rule.Name == "" {
		return route.Key.String()
	}
	return route.Key.String() + "/" + rule.Name
}

// sources are the addresses of the pods that labels choose. It is never nil: nil would match everybody.
func (b *builder) sources(namespace string, labels map[string]string) []netip.Addr {
	out := []netip.Addr{}
	for _, p := range b.r.PodsIn(namespace, labels) {
		out = append(out, p.IPs...)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// act fills in what happens to requests that match.
func (b *builder) act(out *model.RouteRule, route *model.Route, rule *model.HTTPRule, c call) {
	if rule.Invalid != nil {
		out.Status = http.StatusInternalServerError
		return
	}
	out.Action = *rule
	out.Action.Matches, out.Action.Backends, out.Action.Mirrors, out.Action.Delegate, out.Action.Retry = nil, nil, nil, nil, nil
	out.Policy = b.routePolicy(route, rule)
	if rule.ExternalAuth != nil {
		name, ok := b.authServer(route, rule.ExternalAuth, c)
		if !ok {
			*out = refused(out)
			return
		}
		out.ExtAuthz = name
	}
	if rule.Redirect != nil || rule.Direct != nil {
		return
	}
	clusters, first := b.httpClusters(route, rule.Backends, c)
	if clusters == nil {
		*out = refused(out)
		return
	}
	out.Clusters = clusters
	for i := range rule.Mirrors {
		m := &rule.Mirrors[i]
		// A mirror that leads nowhere costs the copies, not the requests; the route's condition names it.
		if name, _, bad := Backend(b.r, route, &m.Backend, c); bad == nil {
			b.clusters[name] = true
			out.MirrorClusters = append(out.MirrorClusters, model.MirrorCluster{Cluster: name, Share: m.Share})
		}
	}
	out.Retry = b.retry(rule)
	if first != nil {
		out.Hash = b.hashOf(clusters)
	}
}

// refused is a rule that answers 500, with nothing left of what it would have done.
func refused(r *model.RouteRule) model.RouteRule {
	return model.RouteRule{
		Name: r.Name, Match: r.Match, SourceAddresses: r.SourceAddresses, Service: r.Service, Policy: r.Policy,
		Status: http.StatusInternalServerError,
	}
}

func (b *builder) retry(rule *model.HTTPRule) *model.Retry {
	switch {
	case rule.Retry != nil && rule.Retry.Attempts == 0:
		return nil
	case rule.Retry != nil:
		return rule.Retry
	}
	m := b.r.Settings().Retry
	switch {
	case m == nil:
		return defaultRetry()
	case m.Attempts == 0:
		return nil
	}
	return m
}

// hashOf collects what the load balancers of the clusters hash.
func (b *builder) hashOf(clusters []model.RouteCluster) []model.HashPolicy {
	var out []model.HashPolicy
	for _, c := range clusters {
		p, ok := b.policyOf(c.Cluster)
		if ok && p.LB != nil && p.LB.Kind == model.LBConsistentHash && p.LB.Hash != nil {
			out = append(out, *p.LB.Hash)
		}
	}
	return out
}

// authServer resolves the server that a rule asks.
func (b *builder) authServer(route *model.Route, a *model.ExtAuthz, c call) (string, bool) {
	c.port = 0
	name, _, bad := Backend(b.r, route, &model.Backend{Destination: a.Backend, Grant: a.Grant}, c)
	if bad != nil {
		return "", false
	}
	b.clusters[name] = true
	key := a.Name
	if key == "" {
		key = name
	}
	server := *a
	server.Name = key
	b.extAuthz[key] = model.ExtAuthzCluster{ExtAuthz: server, Cluster: name}
	return name, true
}

// candidates sorts the rules of Gateway API routes by its precedence and makes them the proxy's.
func (b *builder) candidates(routes []*model.Route, c call) []model.RouteRule {
	var all []gatewayapi.Candidate
	byMeta := map[*model.Meta]*model.Route{}
	for _, route := range routes {
		byMeta[&route.Meta] = route
		for i := range route.HTTP {
			if len(route.HTTP[i].Matches) == 0 {
				all = append(all, gatewayapi.Candidate{Route: &route.Meta, Rule: i})
			}
			for j := range route.HTTP[i].Matches {
				all = append(all, gatewayapi.Candidate{Route: &route.Meta, Rule: i, Alternative: j, Match: &route.HTTP[i].Matches[j]})
			}
		}
	}
	slices.SortFunc(all, gatewayapi.Precedence)
	out := make([]model.RouteRule, 0, len(all))
	for _, a := range all {
		var match model.HTTPMatch
		if a.Match != nil {
			match = *a.Match
		}
		route := byMeta[a.Route]
		if r, ok := b.rule(route, &route.HTTP[a.Rule], match, c); ok {
			out = append(out, r)
		}
	}
	return out
}

// nothing answers 404 to whom no rule was for.
func nothing(name string, c call) model.RouteRule {
	return model.RouteRule{Name: name, Match: model.HTTPMatch{SourceNamespace: c.source}, Status: http.StatusNotFound, Service: c.service}
}

// catchAll tells that a rule leaves nothing to those behind it.
func catchAll(r *model.RouteRule, source string) bool {
	m := &r.Match
	return m.Path == nil && m.Method == nil && m.Scheme == nil && m.Authority == nil && len(m.Headers)+len(m.Query)+len(m.Claims) == 0 &&
		!m.GRPC && len(m.SourceLabels) == 0 && m.SourceNamespace == source
}

// clusterOf is the cluster of a service's own port.
func clusterOf(s *index.Service, port uint16) string { return ClusterName(port, "", s.Host) }
