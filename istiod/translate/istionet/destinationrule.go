package istionet

import (
	"fmt"
	"math"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

const (
	// Envoy's defaults of a retry budget, which Istio's API repeats: a share of active requests, and a number that is
	// always allowed.
	defaultRetryBudget    = 20
	defaultRetryBudgetMin = 3
)

// DestinationRule reads a DestinationRule.
func DestinationRule(cfg translate.Config, d *networkingv1.DestinationRule) (*model.DestinationRule, error) {
	o := newObject(cfg, model.KindDestinationRule, d)
	spec := &d.Spec
	out := &model.DestinationRule{Meta: o.meta, Host: o.fqdn(spec.GetHost()), ExportTo: o.exportTo(spec.GetExportTo(), false)}
	o.domain("spec.host", spec.GetHost())
	if s := spec.GetWorkloadSelector(); s != nil {
		out.Selector = o.labels("spec.workloadSelector.matchLabels", s.GetMatchLabels())
		for i, e := range spec.GetExportTo() {
			if e != "." && e != o.meta.Namespace {
				o.fail(fmt.Sprintf("spec.exportTo[%d]", i), "with a workloadSelector only the own namespace is allowed")
			}
		}
	}
	if p := o.traffic("spec.trafficPolicy", spec.GetTrafficPolicy()); p != nil {
		out.Traffic = *p
	}
	seen := map[string]bool{}
	for i, s := range spec.GetSubsets() {
		field := fmt.Sprintf("spec.subsets[%d]", i)
		if s == nil {
			o.fail(field, "is null")
			continue
		}
		o.subsetName(field+".name", s.GetName())
		if seen[s.GetName()] {
			o.fail(field+".name", "%q is there twice", s.GetName())
		}
		seen[s.GetName()] = true
		out.Subsets = append(out.Subsets, model.Subset{
			Name:    s.GetName(),
			Labels:  o.labels(field+".labels", s.GetLabels()),
			Traffic: o.traffic(field+".trafficPolicy", s.GetTrafficPolicy()),
		})
	}
	if err := o.err(kindDestinationRule); err != nil {
		return nil, err
	}
	return out, nil
}

func (o *object) traffic(field string, in *networking.TrafficPolicy) *model.TrafficPolicy {
	if in == nil {
		return nil
	}
	if in.GetLoadBalancer() == nil && in.GetConnectionPool() == nil && in.GetOutlierDetection() == nil && in.GetTls() == nil &&
		in.GetPortLevelSettings() == nil && in.GetTunnel() == nil && in.GetProxyProtocol() == nil && in.GetRetryBudget() == nil {
		o.fail(field, "is empty")
	}
	o.unset(field+".tunnel", in.GetTunnel() != nil)
	out := &model.TrafficPolicy{
		LB:      o.loadBalancer(field+".loadBalancer", in.GetLoadBalancer()),
		Pool:    o.pool(field+".connectionPool", in.GetConnectionPool()),
		Outlier: o.outlier(field+".outlierDetection", in.GetOutlierDetection()),
		TLS:     o.clientTLS(field+".tls", in.GetTls()),
	}
	for i, p := range in.GetPortLevelSettings() {
		at := fmt.Sprintf("%s.portLevelSettings[%d]", field, i)
		if p.GetPort() == nil {
			o.fail(at+".port", "is required")
			continue
		}
		if p.GetLoadBalancer() == nil && p.GetConnectionPool() == nil && p.GetOutlierDetection() == nil && p.GetTls() == nil {
			o.fail(at, "sets nothing")
		}
		if out.Ports == nil {
			out.Ports = map[uint16]*model.TrafficPolicy{}
		}
		out.Ports[o.port(at+".port.number", p.GetPort().GetNumber())] = &model.TrafficPolicy{
			LB:      o.loadBalancer(at+".loadBalancer", p.GetLoadBalancer()),
			Pool:    o.pool(at+".connectionPool", p.GetConnectionPool()),
			Outlier: o.outlier(at+".outlierDetection", p.GetOutlierDetection()),
			TLS:     o.clientTLS(at+".tls", p.GetTls()),
		}
	}
	if p := in.GetProxyProtocol(); p != nil {
		switch p.GetVersion() {
		case networking.TrafficPolicy_ProxyProtocol_V1:
			out.ProxyProtocol = "V1"
		case networking.TrafficPolicy_ProxyProtocol_V2:
			out.ProxyProtocol = "V2"
		default:
			o.fail(field+".proxyProtocol.version", "%d is neither V1 nor V2", p.GetVersion())
		}
	}
	out.RetryBudget = o.retryBudget(field+".retryBudget", in.GetRetryBudget())
	return out
}

func (o *object) retryBudget(field string, in *networking.TrafficPolicy_RetryBudget) *model.RetryBudget {
	if in == nil {
		return nil
	}
	o.unset(field+".budgetInterval", in.GetBudgetInterval() != nil)
	out := &model.RetryBudget{Percent: defaultRetryBudget, Min: defaultRetryBudgetMin}
	if p := in.GetPercent(); p != nil {
		if out.Percent = p.GetValue(); math.IsNaN(out.Percent) || out.Percent < 0 || out.Percent > 100 {
			o.fail(field+".percent", "%v is not within 0 and 100", out.Percent)
		}
	}
	if in.GetMinRetryConcurrency() > 0 {
		out.Min = in.GetMinRetryConcurrency()
	}
	return out
}

func (o *object) clientTLS(field string, in *networking.ClientTLSSettings) *model.ClientTLS {
	if in == nil {
		return nil
	}
	out := &model.ClientTLS{
		SNI:                in.GetSni(),
		CertFile:           in.GetClientCertificate(),
		KeyFile:            in.GetPrivateKey(),
		CAFile:             in.GetCaCertificates(),
		InsecureSkipVerify: in.GetInsecureSkipVerify().GetValue(),
	}
	for _, s := range in.GetSubjectAltNames() {
		out.SANs = append(out.SANs, model.StringMatch{Value: s})
	}
	// A revocation list that is left out would accept what it revokes.
	o.unset(field+".caCrl", in.GetCaCrl() != "")
	o.headerText(field+".sni", in.GetSni())
	switch in.GetMode() {
	case networking.ClientTLSSettings_DISABLE:
		out.Mode = model.TLSDisable
	case networking.ClientTLSSettings_SIMPLE:
		out.Mode = model.TLSSimple
	case networking.ClientTLSSettings_MUTUAL:
		out.Mode = model.TLSMutual
	case networking.ClientTLSSettings_ISTIO_MUTUAL:
		out.Mode = model.TLSIstioMutual
	default:
		o.fail(field+".mode", "%d is unknown", in.GetMode())
	}
	if out.Mode != model.TLSSimple && out.Mode != model.TLSMutual {
		return out
	}
	if out.InsecureSkipVerify && (out.CAFile != "" || len(out.SANs) > 0 || out.Mode == model.TLSSimple && in.GetCredentialName() != "") {
		o.fail(field+".insecureSkipVerify", "excludes caCertificates, subjectAltNames and, in mode SIMPLE, credentialName")
	}
	switch {
	case in.GetCredentialName() != "":
		out.Credential = o.credential(field+".credentialName", in.GetCredentialName())
		if out.CertFile != "" || out.KeyFile != "" || out.CAFile != "" {
			o.fail(field+".credentialName", "excludes clientCertificate, privateKey and caCertificates")
		}
	case out.Mode == model.TLSMutual && out.CertFile == "":
		o.fail(field+".clientCertificate", "or credentialName is required in mode MUTUAL")
	case out.Mode == model.TLSMutual && out.KeyFile == "":
		o.fail(field+".privateKey", "is required in mode MUTUAL")
	}
	return out
}

// credential reads the name of a Secret: name, kubernetes://name or kubernetes://namespace/name, and kubernetes-gateway
// likewise. Without a namespace it is beside the proxy; a namespace can only be the object's own, or whoever may write
// objects in one namespace could use the keys of another.
func (o *object) credential(field, s string) model.Key {
	scheme, name, ok := strings.Cut(s, "://")
	if !ok {
		scheme, name = "kubernetes", s
	}
	key := model.Key{Name: name}
	if own, rest, ok := strings.Cut(name, "/"); ok {
		key = model.Key{Namespace: own, Name: rest}
	}
	switch {
	case scheme != "kubernetes" && scheme != "kubernetes-gateway":
		o.fail(field, "%q: only Secrets are supported, not %s://", s, scheme)
	case key.Name == "" || strings.Contains(key.Name, "/"):
		o.fail(field, "%q is not the name of a Secret", s)
	case key.Namespace != "" && key.Namespace != o.meta.Namespace:
		o.fail(field, "%q: Secrets of other namespaces cannot be named", s)
	}
	return key
}
