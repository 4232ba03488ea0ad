package config

import (
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// serverTLS ends TLS of a gateway's chain; owner names its client roots. The certificates become resources of their own:
// a rotated one replaces the old one without touching the listener, so that no connection is dropped.
func (b *builder) serverTLS(owner string, t *model.ServerTLS, alpn []string) *corev3.TransportSocket {
	common := &tlsv3.CommonTlsContext{AlpnProtocols: alpn, TlsParams: serverParams(t)}
	ctx := &tlsv3.DownstreamTlsContext{CommonTlsContext: common}
	switch {
	case t.Mesh:
		common.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{agentSecret(names.SecretIdentity)}
	case t.CertFile != "":
		common.TlsCertificates = []*tlsv3.TlsCertificate{fileCertificate(t.CertFile, t.KeyFile)}
	default:
		for _, c := range t.Certificates {
			common.TlsCertificateSdsSecretConfigs = append(common.TlsCertificateSdsSecretConfigs, b.certificate(c))
		}
	}
	b.clientValidation(owner, t, ctx)
	return b.socket(tlsSocket, ctx)
}

// clientValidation says which client certificates are wanted and trusted.
func (b *builder) clientValidation(owner string, t *model.ServerTLS, ctx *tlsv3.DownstreamTlsContext) {
	own := &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: clientSANs(t.SANs)}
	if t.Insecure {
		own.TrustChainVerification = tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
	}
	common := ctx.CommonTlsContext
	var roots *tlsv3.SdsSecretConfig
	switch {
	case t.Mesh:
		roots = agentSecret(names.SecretRoots)
		if len(t.SANs) == 0 {
			own.MatchTypedSubjectAltNames = b.trustDomains()
		}
	case t.ClientCA != "":
		roots = b.roots(owner, t.ClientCA)
	case t.CAFile != "":
		own.TrustedCa = file(t.CAFile)
	case t.Insecure:
		// Every certificate is taken, so none has to be trusted.
	default:
		return
	}
	if roots != nil {
		common.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: own, ValidationContextSdsSecretConfig: roots,
			},
		}
	} else {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: own}
	}
	ctx.RequireClientCertificate = wrapperspb.Bool(!t.Optional && !t.Insecure)
}

// clientSANs accepts any of the names, whatever kind of name the certificate gives.
func clientSANs(sans []string) []*tlsv3.SubjectAltNameMatcher {
	var out []*tlsv3.SubjectAltNameMatcher
	for _, s := range sans {
		out = append(out, sanMatchers(exactly(s), s)...)
	}
	return out
}

// sanMatchers compares a name with the kinds of subject alternative names that can hold it.
func sanMatchers(m *matcherv3.StringMatcher, value string) []*tlsv3.SubjectAltNameMatcher {
	if strings.Contains(value, "://") {
		return []*tlsv3.SubjectAltNameMatcher{uriSAN(m)}
	}
	return []*tlsv3.SubjectAltNameMatcher{
		{SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: m},
		uriSAN(m),
		{SanType: tlsv3.SubjectAltNameMatcher_IP_ADDRESS, Matcher: m},
	}
}

// certificate adds the resource of a user's certificate, and refers to it.
func (b *builder) certificate(c model.Certificate) *tlsv3.SdsSecretConfig {
	name := names.UserSecret(c.Name)
	b.add(names.TypeSecret, name, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(c.Chain), PrivateKey: inline(c.Key),
	}}})
	return userSecret(name)
}

// roots adds the resource of PEM roots, named after the one who trusts them, and refers to it.
func (b *builder) roots(owner, pem string) *tlsv3.SdsSecretConfig {
	name := names.RootsSecret(owner)
	b.add(names.TypeSecret, name, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{
		ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline([]byte(pem))},
	}})
	return userSecret(name)
}

func fileCertificate(cert, key string) *tlsv3.TlsCertificate {
	return &tlsv3.TlsCertificate{CertificateChain: file(cert), PrivateKey: file(key)}
}

func file(path string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

// serverParams are versions and ciphers. TLS 1.2 is the least unless the user says otherwise.
func serverParams(t *model.ServerTLS) *tlsv3.TlsParameters {
	params := &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsVersion(t.MinVersion, tlsv3.TlsParameters_TLSv1_2),
		TlsMaximumProtocolVersion: tlsVersion(t.MaxVersion, tlsv3.TlsParameters_TLSv1_3),
	}
	for _, c := range t.Ciphers {
		if slices.Contains(knownCiphers(), c) {
			params.CipherSuites = append(params.CipherSuites, c)
		}
	}
	return params
}

// tlsVersion reads "TLSV1_2", "TLSv1.2" or "1.2".
func tlsVersion(s string, def tlsv3.TlsParameters_TlsProtocol) tlsv3.TlsParameters_TlsProtocol {
	digits := strings.NewReplacer("_", "", ".", "", "TLSV", "").Replace(strings.ToUpper(s))
	switch digits {
	case "10":
		return tlsv3.TlsParameters_TLSv1_0
	case "11":
		return tlsv3.TlsParameters_TLSv1_1
	case "12":
		return tlsv3.TlsParameters_TLSv1_2
	case "13":
		return tlsv3.TlsParameters_TLSv1_3
	}
	return def
}

// knownCiphers are those of TLS 1.2 and before that Envoy's library has: one that it does not know would make it refuse
// the whole listener, so others are left out.
func knownCiphers() []string {
	return []string{
		"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
		"ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA",
		"ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA", "AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA",
	}
}

// hasCertificate tells whether TLS can end here: without one, Envoy would refuse the whole listener.
func hasCertificate(t *model.ServerTLS) bool {
	return t.Mesh || t.CertFile != "" || len(t.Certificates) > 0
}
