package gatewayapi

import (
	"fmt"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// ReferenceGrant reads a ReferenceGrant.
func ReferenceGrant(g *gwv1.ReferenceGrant) *model.Grant {
	out := &model.Grant{Meta: meta(model.KindReferenceGrant, g)}
	for _, f := range g.Spec.From {
		out.From = append(out.From, model.GrantFrom{Group: string(f.Group), Kind: string(f.Kind), Namespace: string(f.Namespace)})
	}
	for _, t := range g.Spec.To {
		out.To = append(out.To, model.GrantTo{Group: string(t.Group), Kind: string(t.Kind), Name: string(or(t.Name, ""))})
	}
	return out
}

// BackendTLSPolicy reads a BackendTLSPolicy. If it is invalid, connections to its targets must fail: package layer7
// sees to that, and to Accepted with reason NoValidCACertificate if no reference to roots is left.
func BackendTLSPolicy(p *gwv1.BackendTLSPolicy) *model.BackendTLS {
	out := &model.BackendTLS{Meta: meta(model.KindBackendTLSPolicy, p)}
	for i, r := range p.Spec.TargetRefs {
		service := r.Group == groupCore && r.Kind == kindService
		entry := r.Group == groupIstio && r.Kind == kindServiceEntry
		if !service && !entry {
			refusePolicy(out, notAccepted(gwv1.PolicyReasonInvalid,
				fmt.Sprintf("spec.targetRefs[%d]: %s is neither a Service nor a ServiceEntry", i, groupKind(r.Group, r.Kind))))
			continue
		}
		out.Targets = append(out.Targets, model.PolicyTarget{
			Kind:    string(r.Kind),
			Key:     model.Key{Namespace: p.Namespace, Name: string(r.Name)},
			Section: string(or(r.SectionName, "")),
		})
	}
	v := &p.Spec.Validation
	out.TLS = model.ClientTLS{Mode: model.TLSSimple, SNI: strings.ToLower(string(v.Hostname))}
	if v.Hostname == "" {
		refusePolicy(out, notAccepted(gwv1.PolicyReasonInvalid, "spec.validation.hostname: is required"))
	}
	for i, san := range v.SubjectAltNames {
		switch {
		case san.Type == gwv1.HostnameSubjectAltNameType && san.Hostname != "":
			out.TLS.SANs = append(out.TLS.SANs, model.StringMatch{Value: strings.ToLower(string(san.Hostname))})
		case san.Type == gwv1.URISubjectAltNameType && san.URI != "":
			out.TLS.SANs = append(out.TLS.SANs, model.StringMatch{Value: string(san.URI)})
		default:
			refusePolicy(out, notAccepted(gwv1.PolicyReasonInvalid,
				fmt.Sprintf("spec.validation.subjectAltNames[%d]: %q is unknown, or its value is missing", i, san.Type)))
		}
	}
	roots(out, v)
	return out
}

// refusePolicy keeps the first thing that is wrong.
func refusePolicy(out *model.BackendTLS, c *model.Condition) {
	if out.Invalid == nil {
		out.Invalid = c
	}
}

// roots: either references or a well-known set (Gateway API, BackendTLSPolicyValidation).
func roots(out *model.BackendTLS, v *gwv1.BackendTLSPolicyValidation) {
	wellKnown := or(v.WellKnownCACertificates, "")
	switch {
	case len(v.CACertificateRefs) > 0 && wellKnown != "":
		refusePolicy(out, notAccepted(gwv1.PolicyReasonInvalid, "spec.validation: caCertificateRefs and wellKnownCACertificates exclude each other"))
	case wellKnown == gwv1.WellKnownCACertificatesSystem:
		out.TLS.SystemCA = true
	case wellKnown != "":
		refusePolicy(out, notAccepted(gwv1.PolicyReasonInvalid,
			fmt.Sprintf("spec.validation.wellKnownCACertificates: %q is not supported", wellKnown)))
	case len(v.CACertificateRefs) == 0:
		refusePolicy(out, notAccepted(gwv1.PolicyReasonInvalid, "spec.validation: caCertificateRefs or wellKnownCACertificates is required"))
	}
	for i, r := range v.CACertificateRefs {
		if r.Group != groupCore || (r.Kind != kindConfigMap && r.Kind != kindSecret) {
			refusePolicy(out, notResolved(gwv1.BackendTLSPolicyReasonInvalidKind,
				fmt.Sprintf("spec.validation.caCertificateRefs[%d]: %s is neither a ConfigMap nor a Secret", i, groupKind(r.Group, r.Kind))))
			continue
		}
		out.CARefs = append(out.CARefs, model.ObjectRef{Kind: model.Kind(r.Kind), Key: model.Key{Namespace: out.Namespace, Name: string(r.Name)}})
	}
}
