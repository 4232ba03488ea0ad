package resolve

import (
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Proxy computes what all replicas of a proxy have in common, out of what its parts need, and which clusters that
// itself refers to.
func Proxy(r *index.Reader, t Target, parts []*Output) (*model.Proxy, Output) {
	b := newBuilder(r, t)
	m := r.Settings()
	out := &model.Proxy{
		Key: t.Key, Waypoint: t.Waypoint, ServiceAccount: t.ServiceAccount, TrustDomain: r.TrustDomain, Domain: r.Domain,
		RootNamespace: r.RootNamespace, Network: r.Network, TrustDomains: m.TrustDomainAliases,
	}
	jwt, authz, limits := map[string]model.JWTRequirement{}, map[string]model.ExtAuthzCluster{}, map[string]model.RateLimitCluster{}
	collect := func(p *Output) {
		out.Scopes = append(out.Scopes, p.Scopes...)
		out.Ports = append(out.Ports, p.Ports...)
		for _, x := range p.JWT {
			x.Scopes = slices.Clone(jwt[x.Name].Scopes)
			for _, scope := range p.Scopes {
				if scope.Kind != model.ScopeTCP {
					x.Scopes = append(x.Scopes, scope.Name)
				}
			}
			jwt[x.Name] = x
		}
		for _, x := range p.ExtAuthz {
			authz[x.Name] = x
		}
		for _, x := range p.Limits {
			limits[x.Cluster+" "+x.Domain] = x
		}
	}
	for _, p := range parts {
		collect(p)
	}
	if t.Waypoint && t.Gateway != nil && (t.Gateway.For == model.TrafficWorkload || t.Gateway.For == model.TrafficAll) {
		out.Direct = true
		out.Workloads = b.workloads()
		out.DirectPolicy = b.policyAt(nil, "")
	}
	b.telemetry(&out.HTTP)
	own := b.finish(Output{})
	collect(&own)
	slices.SortFunc(out.Scopes, func(x, y model.Scope) int { return strings.Compare(x.Name, y.Name) })
	for _, k := range sortedKeys(jwt) {
		slices.Sort(jwt[k].Scopes)
		out.HTTP.JWT = append(out.HTTP.JWT, jwt[k])
	}
	for _, k := range sortedKeys(authz) {
		out.HTTP.ExtAuthz = append(out.HTTP.ExtAuthz, authz[k])
	}
	for _, k := range sortedKeys(limits) {
		out.HTTP.RateLimit = append(out.HTTP.RateLimit, limits[k])
	}
	return out, own
}

// workloads are those that use the waypoint by their own address.
func (b *builder) workloads() []model.DirectWorkload {
	var out []model.DirectWorkload
	for _, p := range b.r.PodsUsing(b.t.Key) {
		if !p.Tunnel && !p.NativeTunnel {
			continue
		}
		for _, ip := range p.IPs {
			out = append(out, model.DirectWorkload{Address: ip, Identity: Identity(b.r.TrustDomain, p.Namespace, p.ServiceAccount)})
		}
	}
	slices.SortFunc(out, func(x, y model.DirectWorkload) int { return x.Address.Compare(y.Address) })
	return out
}

// Core is a proxy without what its parts add: if two cores are equal, a part written for one is right for the other.
func Core(p *model.Proxy) *model.Proxy {
	out := *p
	out.Scopes, out.Ports, out.Workloads = nil, nil, nil
	return &out
}

// TargetOf makes the proxy of a Gateway.
func TargetOf(r *index.Reader, g *model.Gateway) Target {
	name := ServiceName(g)
	t := Target{
		Key: g.Key, Waypoint: g.Waypoint, Gateway: g, ServiceAccount: name,
		Services: []model.Key{{Namespace: g.Namespace, Name: name}},
		Labels:   map[string]string{LabelGateway: g.Name},
	}
	if v := g.ObjectAnnotations[annotationServiceAccount]; v != "" {
		t.ServiceAccount = v
	}
	for k, v := range g.Labels {
		t.Labels[k] = v
	}
	pods := r.PodsIn(g.Namespace, map[string]string{LabelGateway: g.Name})
	t.From = From(r, pods)
	if len(pods) > 0 {
		t.Labels = Stable(pods[0].Labels)
		t.ServiceAccount = pods[0].ServiceAccount
	}
	return t
}

// Stable leaves out the labels that differ between revisions of one deployment.
func Stable(labels map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range labels {
		if k != "pod-template-hash" && k != "controller-revision-hash" {
			out[k] = v
		}
	}
	return out
}

// Names of what is deployed for a Gateway (GEP-1762, and Istio's annotations).
const (
	// LabelGateway names a pod's Gateway.
	LabelGateway             = "gateway.networking.k8s.io/gateway-name"
	annotationName           = "gateway.istio.io/name-override"
	annotationServiceAccount = "gateway.istio.io/service-account"
)

// ServiceName is the name of the Service in front of a Gateway's pods: the one that its address names, else the one
// that is made for it.
func ServiceName(g *model.Gateway) string {
	for _, a := range g.Addresses {
		if a.Type == addressHostname {
			name, _, _ := strings.Cut(a.Value, ".")
			return name
		}
	}
	switch {
	case g.ObjectAnnotations[annotationName] != "":
		return g.ObjectAnnotations[annotationName]
	case g.Waypoint:
		return g.Name
	}
	return g.Name + "-" + g.Class
}
