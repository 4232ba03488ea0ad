package resolve

import (
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Cluster computes a destination of a proxy and, if istiod knows them, its endpoints; nil if nobody owns the host.
func Cluster(r *index.Reader, t Target, name string) (*model.Cluster, *model.Endpoints) {
	number, subset, host, ok := ParseClusterName(name)
	if !ok {
		return nil, nil
	}
	s := r.ServiceFor(host, t.Namespace)
	if s == nil {
		return nil, nil
	}
	port, ok := s.Port(number)
	if !ok {
		return nil, nil
	}
	b := newBuilder(r, t)
	rules := rulesFor(r, t.Namespace, s)
	out := &model.Cluster{
		Name: name, Kind: clusterKind(s), Protocol: port.Protocol, Policy: merged(rules, subset, port.Port),
		Service: s.Name, Namespace: s.Namespace, Host: s.Host,
		HTTP: port.Protocol != model.ProtocolTCP && port.Protocol != model.ProtocolTLS,
	}
	if s.Entry != nil {
		out.Service, out.Host = s.Host, host
	}
	b.defaults(&out.Policy)
	b.originate(out, s, port, rules)
	var labels map[string]string
	if sub := subsetOf(rules, subset); sub != nil {
		labels = sub.Labels
	}
	switch out.Kind {
	case model.ClusterDNS:
		out.DNS, out.RoundRobinDNS = dnsEndpoints(s, host, port, labels), s.Entry.Resolution == model.ResolveDNSRoundRobin
		return out, nil
	case model.ClusterEDS:
		return out, b.endpoints(out, s, port, labels)
	}
	return out, nil
}

func clusterKind(s *index.Service) model.ClusterKind {
	if s.Entry == nil {
		return model.ClusterEDS
	}
	switch s.Entry.Resolution {
	case model.ResolveDNS, model.ResolveDNSRoundRobin:
		return model.ClusterDNS
	case model.ResolveNone:
		return model.ClusterOriginalDst
	case model.ResolveDynamic:
		return model.ClusterDynamic
	}
	return model.ClusterEDS
}

// rulesFor finds the DestinationRules of a service for a client in the namespace, as Istio does: those of the client's
// namespace, else of the service's, else of the root namespace; within one the most specific host, oldest first.
func rulesFor(r *index.Reader, client string, s *index.Service) []*model.DestinationRule {
	all := r.Rules(s.Host)
	for _, ns := range []string{client, s.Namespace, r.RootNamespace} {
		var found []*model.DestinationRule
		for _, d := range all {
			if d.Namespace == ns && index.Exported(d.ExportTo, d.Namespace, client) && len(d.Selector) == 0 {
				found = append(found, d)
			}
		}
		if len(found) == 0 {
			continue
		}
		slices.SortStableFunc(found, func(a, b *model.DestinationRule) int {
			if w := wildcardRank(a.Host) - wildcardRank(b.Host); w != 0 {
				return w
			}
			return len(b.Host) - len(a.Host)
		})
		return slices.DeleteFunc(found, func(d *model.DestinationRule) bool { return d.Host != found[0].Host })
	}
	return nil
}

// subsetOf finds a subset; nil if there is none or none is asked for.
func subsetOf(rules []*model.DestinationRule, name string) *model.Subset {
	if name == "" {
		return nil
	}
	for _, d := range rules {
		for i := range d.Subsets {
			if d.Subsets[i].Name == name {
				return &d.Subsets[i]
			}
		}
	}
	return nil
}

// merged is the policy of a destination: of several rules for one host the oldest one's, as their subsets are merged;
// a port's settings instead of the host's, a subset's over both.
func merged(rules []*model.DestinationRule, subset string, port uint16) model.TrafficPolicy {
	var out model.TrafficPolicy
	if len(rules) > 0 {
		out = atPort(rules[0].Traffic, port)
	}
	if sub := subsetOf(rules, subset); sub != nil && sub.Traffic != nil {
		out = over(atPort(*sub.Traffic, port), out)
	}
	out.Ports = nil
	return out
}

// atPort: settings of a port replace the others as a whole (Istio, TrafficPolicy.PortTrafficPolicy).
func atPort(t model.TrafficPolicy, port uint16) model.TrafficPolicy {
	if p := t.Ports[port]; p != nil {
		out := *p
		if out.ProxyProtocol == "" {
			out.ProxyProtocol = t.ProxyProtocol
		}
		return out
	}
	return t
}

// over takes what a has, and else what b has.
func over(a, b model.TrafficPolicy) model.TrafficPolicy {
	if a.LB == nil {
		a.LB = b.LB
	}
	if a.Pool == nil {
		a.Pool = b.Pool
	}
	if a.Outlier == nil {
		a.Outlier = b.Outlier
	}
	if a.TLS == nil {
		a.TLS = b.TLS
	}
	if a.ProxyProtocol == "" {
		a.ProxyProtocol = b.ProxyProtocol
	}
	if a.RetryBudget == nil {
		a.RetryBudget = b.RetryBudget
	}
	return a
}

// defaults fills in what the mesh's configuration says for every destination.
func (b *builder) defaults(p *model.TrafficPolicy) {
	m := b.r.Settings()
	if m.ConnectTimeout > 0 && (p.Pool == nil || p.Pool.ConnectTimeout == 0) {
		var pool model.ConnectionPool
		if p.Pool != nil {
			pool = *p.Pool
		}
		pool.ConnectTimeout = m.ConnectTimeout
		p.Pool = &pool
	}
}

// policyOf is the policy of a cluster by its name.
func (b *builder) policyOf(cluster string) (model.TrafficPolicy, bool) {
	port, subset, host, ok := ParseClusterName(cluster)
	if !ok {
		return model.TrafficPolicy{}, false
	}
	s := b.r.ServiceFor(host, b.t.Namespace)
	if s == nil {
		return model.TrafficPolicy{}, false
	}
	return merged(rulesFor(b.r, b.t.Namespace, s), subset, port), true
}

// originate decides which TLS the proxy itself speaks to a destination: a BackendTLSPolicy's, else a DestinationRule's.
func (b *builder) originate(out *model.Cluster, s *index.Service, port model.ServicePort, rules []*model.DestinationRule) {
	if policy := backendPolicy(b.r, s, port.Name); policy != nil {
		out.TLS = b.backendTLS(policy)
		return
	}
	t := out.Policy.TLS
	if t == nil || t.Mode != model.TLSSimple && t.Mode != model.TLSMutual {
		return
	}
	tls := &model.ClusterTLS{ClientTLS: *t, Roots: t.CA}
	if t.Credential != (model.Key{}) {
		ref := model.ObjectRef{Kind: model.KindSecret, Key: t.Credential}
		// A name without namespace is a Secret beside the proxy (Istio, ClientTLSSettings.credentialName).
		if ref.Namespace == "" && len(rules) > 0 {
			ref.Namespace = b.t.Namespace
		}
		b.credential(tls, ref)
	}
	out.TLS = tls
}

// credential takes the client's certificate and the roots out of a Secret. What is not there leaves the roots empty,
// and then waypoint/config lets no connection succeed.
func (b *builder) credential(tls *model.ClusterTLS, ref model.ObjectRef) {
	if roots, err := rootsIn(b.r, ref); err == nil {
		tls.Roots = roots
	} else if roots, err := rootsIn(b.r, model.ObjectRef{Kind: ref.Kind, Key: model.Key{Namespace: ref.Namespace, Name: ref.Name + "-cacert"}}); err == nil {
		tls.Roots = roots
	}
	if tls.Mode != model.TLSMutual {
		return
	}
	if cert, err := certificateIn(b.r, ref, b.r.Now); err == nil {
		tls.Certificate = cert
	}
}

// backendPolicy finds the BackendTLSPolicy of a service port: one for the port before one for the service, then the
// oldest (Gateway API, BackendTLSPolicySpec.targetRefs).
func backendPolicy(r *index.Reader, s *index.Service, section string) *model.BackendTLS {
	var whole *model.BackendTLS
	for _, p := range index.Targeting[*model.BackendTLS](r, s.Kind(), s.Key) {
		for _, t := range p.Targets {
			switch {
			case t.Kind != s.Kind() || t.Key != s.Key:
			case t.Section != "" && t.Section == section:
				return p
			case t.Section == "" && whole == nil:
				whole = p
			}
		}
	}
	return whole
}

// backendTLS resolves a policy. One that cannot be resolved keeps TLS without roots, so that nothing is sent in the
// clear and no certificate is accepted.
func (b *builder) backendTLS(p *model.BackendTLS) *model.ClusterTLS {
	out := &model.ClusterTLS{ClientTLS: p.TLS}
	if p.Invalid != nil {
		out.SystemCA = false
		return out
	}
	var roots []string
	for _, ref := range p.CARefs {
		if pem, err := rootsIn(b.r, ref); err == nil {
			roots = append(roots, strings.TrimSpace(pem))
		}
	}
	if len(roots) > 0 {
		out.Roots = strings.Join(roots, "\n") + "\n"
	}
	if g := b.t.Gateway; g != nil && g.BackendClientCert != nil && g.BackendClientCert.Invalid == nil && b.r.Granted(g.BackendClientCert.Grant) {
		if cert, err := certificateIn(b.r, g.BackendClientCert.ObjectRef, b.r.Now); err == nil {
			out.Mode, out.Certificate = model.TLSMutual, cert
		}
	}
	return out
}
