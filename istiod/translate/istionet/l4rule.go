package istionet

import (
	"fmt"
	"slices"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

func (o *object) tlsRule(field string, r *networking.TLSRoute, hosts []string) model.L4Rule {
	var out model.L4Rule
	if r == nil {
		o.fail(field, "is null")
		return out
	}
	if len(r.GetMatch()) == 0 {
		o.fail(field+".match", "is required")
	}
	for i, m := range r.GetMatch() {
		at := fmt.Sprintf("%s.match[%d]", field, i)
		if m == nil {
			o.fail(at, "is null")
			continue
		}
		match := o.l4Match(at, m.GetPort(), m.GetSourceLabels(), m.GetSourceNamespace(), m.GetGateways())
		match.Destinations = o.prefixes(at+".destinationSubnets", m.GetDestinationSubnets())
		if len(m.GetSniHosts()) == 0 {
			o.fail(at+".sniHosts", "is required")
		}
		for j, h := range m.GetSniHosts() {
			match.SNI = append(match.SNI, o.sniHost(fmt.Sprintf("%s.sniHosts[%d]", at, j), h, hosts))
		}
		out.Matches = append(out.Matches, match)
	}
	out.Backends = o.l4Backends(field+".route", r.GetRoute())
	return out
}

// sniHost: names must be some of those that the VirtualService is for.
func (o *object) sniHost(field, host string, hosts []string) string {
	if !isIP(host) && !o.domain(field, host) {
		return host
	}
	full := o.fqdn(host)
	if !slices.ContainsFunc(hosts, func(h string) bool { return within(full, h) }) {
		o.fail(field, "%q is none of the VirtualService's hosts", host)
	}
	return full
}

func (o *object) tcpRule(field string, r *networking.TCPRoute) model.L4Rule {
	var out model.L4Rule
	if r == nil {
		o.fail(field, "is null")
		return out
	}
	for i, m := range r.GetMatch() {
		at := fmt.Sprintf("%s.match[%d]", field, i)
		if m == nil {
			o.fail(at, "is null")
			continue
		}
		match := o.l4Match(at, m.GetPort(), m.GetSourceLabels(), m.GetSourceNamespace(), m.GetGateways())
		match.Destinations = o.prefixes(at+".destinationSubnets", m.GetDestinationSubnets())
		// Istio does not implement it; a rule for some sources must not become one for all.
		o.unset(at+".sourceSubnet", m.GetSourceSubnet() != "")
		out.Matches = append(out.Matches, match)
	}
	out.Backends = o.l4Backends(field+".route", r.GetRoute())
	return out
}

func (o *object) l4Match(field string, port uint32, labels map[string]string, ns string, gateways []string) model.L4Match {
	out := model.L4Match{
		SourceLabels:    o.labels(field+".sourceLabels", labels),
		SourceNamespace: o.namespace(field+".sourceNamespace", ns),
		Gateways:        o.gateways(field+".gateways", gateways),
	}
	if port != 0 {
		out.Port = o.port(field+".port", port)
	}
	return out
}

func (o *object) l4Backends(field string, in []*networking.RouteDestination) []model.Backend {
	var out []model.Backend
	if len(in) == 0 {
		o.fail(field, "is required")
	}
	for i, d := range in {
		if b, ok := o.backend(fmt.Sprintf("%s[%d]", field, i), d == nil, d.GetDestination(), d.GetWeight()); ok {
			out = append(out, b)
		}
	}
	return o.weights(field, out)
}
