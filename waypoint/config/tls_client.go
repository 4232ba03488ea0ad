package config

import (
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// clusterSocket is what a cluster's connections are: the user's TLS or plain bytes, after a PROXY header if asked for.
// The tunnel around it is not this one's matter: the address of an endpoint leads into it or not.
func (b *builder) clusterSocket(c *model.Cluster) *corev3.TransportSocket {
	inner := b.plain()
	if c.TLS != nil && c.TLS.Mode != model.TLSDisable && c.TLS.Mode != model.TLSUnset {
		inner = b.clientTLS(c)
	}
	var version corev3.ProxyProtocolConfig_Version
	switch c.Policy.ProxyProtocol {
	case "V1":
		version = corev3.ProxyProtocolConfig_V1
	case "V2":
		version = corev3.ProxyProtocolConfig_V2
	default:
		return inner
	}
	return b.socket("envoy.transport_sockets.upstream_proxy_protocol", &proxyprotocolv3.ProxyProtocolUpstreamTransport{
		Config: &corev3.ProxyProtocolConfig{Version: version}, TransportSocket: inner,
	})
}

func (b *builder) plain() *corev3.TransportSocket {
	return b.socket("envoy.transport_sockets.raw_buffer", &rawv3.RawBuffer{})
}

// clientTLS is TLS that the proxy begins. ALPN is left to Envoy, which names the protocol that the cluster speaks.
func (b *builder) clientTLS(c *model.Cluster) *corev3.TransportSocket {
	t := c.TLS
	common := &tlsv3.CommonTlsContext{}
	ctx := &tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: t.SNI}
	switch {
	case t.Mode == model.TLSIstioMutual:
		common.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{agentSecret(names.SecretIdentity)}
	case t.Certificate != nil:
		common.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{b.certificate(*t.Certificate)}
	case t.CertFile != "":
		common.TlsCertificates = []*tlsv3.TlsCertificate{fileCertificate(t.CertFile, t.KeyFile)}
	}
	b.serverValidation(c, common)
	if t.SNI == "" && t.Mode != model.TLSIstioMutual {
		// Requests say by themselves whom they want (see autoSNI); connections only have the endpoint's name.
		ctx.AutoHostSni = !c.HTTP
		ctx.AutoSniSanValidation = !c.HTTP && verifiesName(t)
	}
	return b.socket(tlsSocket, ctx)
}

// verifiesName tells whether the certificate must be for the server name, because nothing else was asked for.
func verifiesName(t *model.ClusterTLS) bool { return len(t.SANs) == 0 && !t.InsecureSkipVerify }

// serverValidation says which certificate of the server is trusted.
func (b *builder) serverValidation(c *model.Cluster, common *tlsv3.CommonTlsContext) {
	t := c.TLS
	own := &tlsv3.CertificateValidationContext{}
	for _, s := range t.SANs {
		own.MatchTypedSubjectAltNames = append(own.MatchTypedSubjectAltNames, sanMatchers(stringMatcher(s), s.Value)...)
	}
	if verifiesName(t) && t.SNI != "" && t.Mode != model.TLSIstioMutual {
		own.MatchTypedSubjectAltNames = append(own.MatchTypedSubjectAltNames, hostSAN(t.SNI))
	}
	var roots *tlsv3.SdsSecretConfig
	switch {
	case t.InsecureSkipVerify:
		own = &tlsv3.CertificateValidationContext{TrustChainVerification: tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED}
	case t.Mode == model.TLSIstioMutual:
		roots = agentSecret(names.SecretRoots)
		if len(own.MatchTypedSubjectAltNames) == 0 {
			own.MatchTypedSubjectAltNames = b.trustDomains()
		}
	case t.Roots != "":
		roots = b.roots(c.Name, t.Roots)
	case t.CAFile != "":
		own.TrustedCa = file(t.CAFile)
	default:
		// Istio's VERIFY_CERTIFICATE_AT_CLIENT: nothing said means the roots of the system, not no check.
		own.TrustedCa = file(systemCAs)
	}
	if roots == nil {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: own}
		return
	}
	common.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: own, ValidationContextSdsSecretConfig: roots,
		},
	}
}

// hostSAN wants a certificate for exactly this host.
func hostSAN(host string) *tlsv3.SubjectAltNameMatcher {
	kind := tlsv3.SubjectAltNameMatcher_DNS
	if _, err := netip.ParseAddr(host); err == nil {
		kind = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	}
	return &tlsv3.SubjectAltNameMatcher{SanType: kind, Matcher: exactly(host)}
}

func stringMatcher(s model.StringMatch) *matcherv3.StringMatcher {
	m := &matcherv3.StringMatcher{IgnoreCase: s.IgnoreCase}
	switch s.Kind {
	case model.MatchPrefix, model.MatchSegments:
		m.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: s.Value}
	case model.MatchSuffix:
		m.MatchPattern = &matcherv3.StringMatcher_Suffix{Suffix: s.Value}
	case model.MatchRegex:
		m.IgnoreCase = false // Envoy's regular expressions have no such option
		m.MatchPattern = &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: s.Value}}
	case model.MatchPresent:
		m.IgnoreCase = false
		m.MatchPattern = &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: ".+"}}
	default:
		m.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: s.Value}
	}
	return m
}
