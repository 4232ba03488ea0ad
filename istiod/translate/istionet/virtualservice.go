package istionet

import (
	"fmt"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// kindVirtualService and the like are the kinds' names in errors.
const (
	kindVirtualService  = "VirtualService"
	kindDestinationRule = "DestinationRule"
	kindServiceEntry    = "ServiceEntry"
	kindGateway         = "Gateway"
)

// VirtualService reads a VirtualService. It is attached to the mesh, once for each of its hosts, and to its gateways.
func VirtualService(cfg translate.Config, v *networkingv1.VirtualService) (*model.Route, error) {
	o := newObject(cfg, model.KindVirtualService, v)
	spec := &v.Spec
	out := &model.Route{
		Meta:         o.meta,
		Ordered:      true,
		DelegateOnly: len(spec.GetHosts()) == 0,
		ExportTo:     o.exportTo(spec.GetExportTo(), false),
	}
	if out.DelegateOnly {
		o.unsetInDelegate("spec.gateways", len(spec.GetGateways()))
		o.unsetInDelegate("spec.tls", len(spec.GetTls()))
		o.unsetInDelegate("spec.tcp", len(spec.GetTcp()))
	}
	outside := false
	for _, g := range spec.GetGateways() {
		outside = outside || g != model.MeshGateway
	}
	out.Hostnames = o.hosts(spec.GetHosts(), outside)
	out.Parents = o.parents(spec.GetGateways(), out.Hostnames)
	if len(spec.GetHttp())+len(spec.GetTls())+len(spec.GetTcp()) == 0 {
		o.fail("spec", "http, tls or tcp is required")
	}
	for i, r := range spec.GetHttp() {
		out.HTTP = append(out.HTTP, o.httpRule(fmt.Sprintf("spec.http[%d]", i), r, out.DelegateOnly))
	}
	for i, r := range spec.GetTls() {
		out.TLS = append(out.TLS, o.tlsRule(fmt.Sprintf("spec.tls[%d]", i), r, out.Hostnames))
	}
	for i, r := range spec.GetTcp() {
		out.TCP = append(out.TCP, o.tcpRule(fmt.Sprintf("spec.tcp[%d]", i), r))
	}
	if err := o.err(kindVirtualService); err != nil {
		return nil, err
	}
	return out, nil
}

func (o *object) unsetInDelegate(field string, n int) {
	if n > 0 {
		o.fail(field, "a VirtualService without hosts is a delegate and has none")
	}
}

// hosts reads the hosts of a VirtualService. All of them ("*") is for gateways only.
func (o *object) hosts(in []string, outside bool) []string {
	var out []string
	for i, h := range in {
		field := fmt.Sprintf("spec.hosts[%d]", i)
		if h == "*" && !outside {
			o.fail(field, "* is for gateways only")
			continue
		}
		if !isIP(h) && !o.domain(field, h) {
			continue
		}
		full := o.fqdn(h)
		for _, other := range out {
			if overlap(full, other) {
				o.fail(field, "%q overlaps with %q", h, other)
			}
		}
		out = append(out, full)
	}
	return out
}

func (o *object) parents(gateways, hosts []string) []model.Parent {
	if len(hosts) == 0 {
		return nil
	}
	if len(gateways) == 0 {
		gateways = []string{model.MeshGateway}
	}
	var out []model.Parent
	for i, g := range gateways {
		if g == model.MeshGateway {
			for _, h := range hosts {
				out = append(out, model.Parent{Kind: model.ParentMesh, Host: h, Index: i})
			}
			continue
		}
		name := o.gateway(fmt.Sprintf("spec.gateways[%d]", i), g)
		ns, name, _ := strings.Cut(name, "/")
		out = append(out, model.Parent{Kind: model.ParentIstioGateway, Key: model.Key{Namespace: ns, Name: name}, Index: i})
	}
	return out
}

// gateway reads the name of an Istio Gateway: "namespace/name", "./name", a name in the object's own namespace, or
// the form of old Istio, a DNS name that begins with name and namespace. The result is "namespace/name".
func (o *object) gateway(field, s string) string {
	ns, name, ok := strings.Cut(s, "/")
	switch {
	case ok && ns == ".":
		ns = o.meta.Namespace
	case ok:
	case strings.Contains(s, "."):
		parts := strings.SplitN(s, ".", 3)
		ns, name = parts[1], parts[0]
	default:
		ns, name = o.meta.Namespace, s
	}
	if !isLabel(ns) || !isLabel(name) {
		o.fail(field, "%q is not the name of a gateway", s)
	}
	return ns + "/" + name
}

// gateways reads the gateways of a match.
func (o *object) gateways(field string, in []string) []string {
	var out []string
	for i, g := range in {
		if g != model.MeshGateway {
			g = o.gateway(fmt.Sprintf("%s[%d]", field, i), g)
		}
		out = append(out, g)
	}
	return out
}
