package config

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

const tlsSocket = "envoy.transport_sockets.tls"

// agentSecret is a secret that the agent serves: keys are made there and never leave the pod. Envoy waits for it
// without limit, because a mesh listener without certificate is of no use.
func agentSecret(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{
		ResourceApiVersion:  corev3.ApiVersion_V3,
		InitialFetchTimeout: duration(0),
		ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: names.XDS},
			}}},
		}},
	}}
}

// userSecret is a secret that istiod serves over ADS.
func userSecret(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: ads()}
}

// meshTLS is mutual TLS between proxies of the mesh: TLS 1.3, HTTP/2, own identity, and a peer of a trust domain that is
// known. Which peer exactly, the connection itself says (names.UpstreamSANs) or policy.
func (b *builder) meshTLS() *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		AlpnProtocols: []string{"h2"},
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{agentSecret(names.SecretIdentity)},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: b.trustDomains()},
				ValidationContextSdsSecretConfig: agentSecret(names.SecretRoots),
			},
		},
	}
}

func (b *builder) trustDomains() []*tlsv3.SubjectAltNameMatcher {
	var out []*tlsv3.SubjectAltNameMatcher
	for _, td := range append([]string{b.proxy.TrustDomain}, b.proxy.TrustDomains...) {
		out = append(out, uriSAN(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "spiffe://" + td + "/"}}))
	}
	return out
}

func uriSAN(m *matcherv3.StringMatcher) *tlsv3.SubjectAltNameMatcher {
	return &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: m}
}

func exactly(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

// meshServerTLS is the tunnel's server side. Sessions are not resumed: a resumed one is not verified again.
func (b *builder) meshServerTLS() *corev3.TransportSocket {
	return b.socket(tlsSocket, &tlsv3.DownstreamTlsContext{
		CommonTlsContext:                 b.meshTLS(),
		RequireClientCertificate:         wrapperspb.Bool(true),
		DisableStatefulSessionResumption: true,
		SessionTicketKeysType:            &tlsv3.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true},
	})
}

// meshClientTLS is the tunnel's client side.
func (b *builder) meshClientTLS() *corev3.TransportSocket {
	return b.socket(tlsSocket, &tlsv3.UpstreamTlsContext{CommonTlsContext: b.meshTLS(), MaxSessionKeys: u32(0)})
}
