package istionet

import (
	"fmt"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// Gateway reads an Istio Gateway. Each of its servers is a listener; several may share a port and differ by hosts.
func Gateway(cfg translate.Config, g *networkingv1.Gateway) (*model.Gateway, error) {
	o := newObject(cfg, model.KindIstioGateway, g)
	out := &model.Gateway{
		Meta:              o.meta,
		Selector:          o.labels("spec.selector", g.Spec.GetSelector()),
		ObjectLabels:      g.Labels,
		ObjectAnnotations: g.Annotations,
	}
	if len(g.Spec.GetServers()) == 0 {
		o.fail("spec.servers", "is required")
	}
	names := map[string]bool{}
	for i, s := range g.Spec.GetServers() {
		field := fmt.Sprintf("spec.servers[%d]", i)
		if s == nil {
			o.fail(field, "is null")
			continue
		}
		if name := s.GetPort().GetName(); s.GetPort() != nil {
			if names[name] {
				o.fail(field+".port.name", "%q is there twice", name)
			}
			names[name] = true
		}
		out.Listeners = append(out.Listeners, o.server(field, s))
	}
	if err := o.err(kindGateway); err != nil {
		return nil, err
	}
	return out, nil
}

func (o *object) server(field string, s *networking.Server) model.Listener {
	// Who may bind to it is said by the namespaces of its hosts.
	out := model.Listener{Name: s.GetName(), Allowed: model.NamespaceSelector{All: true}}
	if out.Name == "" {
		out.Name = s.GetPort().GetName()
	}
	if len(s.GetHosts()) == 0 {
		o.fail(field+".hosts", "is required")
	}
	for i, h := range s.GetHosts() {
		out.Hosts = append(out.Hosts, o.serverHost(fmt.Sprintf("%s.hosts[%d]", field, i), h))
	}
	// To listen on all addresses instead of one would let more in.
	o.unset(field+".bind", s.GetBind() != "")
	p := s.GetPort()
	if p == nil {
		o.fail(field+".port", "is required")
		return out
	}
	out.Port = o.port(field+".port.number", p.GetNumber())
	if p.GetName() == "" {
		o.fail(field+".port.name", "is required")
	}
	var tls bool
	switch strings.ToUpper(p.GetProtocol()) {
	case "HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY":
		out.Protocol = model.ListenHTTP
	case "HTTPS":
		out.Protocol, tls = model.ListenHTTPS, true
	case "TLS":
		out.Protocol, tls = model.ListenTLS, true
	case "TCP", "MONGO", "REDIS", "MYSQL":
		out.Protocol = model.ListenTCP
	default:
		o.fail(field+".port.protocol", "%q is none of HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, TLS, TCP, MONGO, REDIS and MYSQL", p.GetProtocol())
	}
	switch in := s.GetTls(); {
	case tls && in == nil:
		o.fail(field+".tls", "is required for protocol %s", p.GetProtocol())
	case tls:
		out.TLS = o.serverTLS(field+".tls", in)
		if out.TLS.Passthrough {
			// Nothing but the SNI is read of it, whatever it carries.
			out.Protocol = model.ListenTLS
		}
	case in != nil:
		out.TLS = o.plainTLS(field+".tls", in, out.Protocol)
	}
	return out
}

// serverHost reads "namespace/host" or "host". The namespace "." is the Gateway's own.
func (o *object) serverHost(field, s string) string {
	ns, host, ok := strings.Cut(s, "/")
	if !ok {
		ns, host = "*", s
	}
	switch {
	case ns == ".":
		ns = o.meta.Namespace
	case ns != "*" && !isLabel(ns):
		o.fail(field, "%q is neither *, . nor a namespace", ns)
	}
	switch {
	case host == "*" || isIP(host):
	case !strings.Contains(host, "."):
		o.fail(field, "%q is a short name", host)
	case isWildcard(host) && !strings.HasPrefix(host, "*."):
		o.fail(field, "%q: a wildcard is a whole label", host)
	default:
		o.domain(field, host)
	}
	host = strings.ToLower(host)
	if !ok {
		return host
	}
	return ns + "/" + host
}

// plainTLS is what a server without TLS may say of it: that plain HTTP is redirected.
func (o *object) plainTLS(field string, in *networking.ServerTLSSettings, p model.ListenerProtocol) *model.ListenerTLS {
	mode := in.GetMode() != networking.ServerTLSSettings_PASSTHROUGH && in.GetMode() != networking.ServerTLSSettings_AUTO_PASSTHROUGH
	if p != model.ListenHTTP || mode || in.GetServerCertificate() != "" || in.GetPrivateKey() != "" || in.GetCaCertificates() != "" {
		o.fail(field, "a server with this protocol has no TLS; HTTP may have httpsRedirect")
		return nil
	}
	if !in.GetHttpsRedirect() {
		return nil
	}
	return &model.ListenerTLS{Redirect: true}
}

func (o *object) serverTLS(field string, in *networking.ServerTLSSettings) *model.ListenerTLS {
	out := &model.ListenerTLS{
		Redirect:   in.GetHttpsRedirect(),
		MinVersion: tlsVersion(in.GetMinProtocolVersion()),
		MaxVersion: tlsVersion(in.GetMaxProtocolVersion()),
		Ciphers:    in.GetCipherSuites(),
		SANs:       in.GetSubjectAltNames(),
		Insecure:   in.GetInsecureSkipVerify().GetValue(),
	}
	// Each of them narrows whom a gateway lets in.
	o.unset(field+".caCrl", in.GetCaCrl() != "")
	o.unset(field+".verifyCertificateSpki", len(in.GetVerifyCertificateSpki()) > 0)
	o.unset(field+".verifyCertificateHash", len(in.GetVerifyCertificateHash()) > 0)
	switch in.GetMode() {
	case networking.ServerTLSSettings_PASSTHROUGH:
		return &model.ListenerTLS{Passthrough: true}
	case networking.ServerTLSSettings_AUTO_PASSTHROUGH:
		return &model.ListenerTLS{Passthrough: true, AutoPassthrough: true}
	case networking.ServerTLSSettings_ISTIO_MUTUAL:
		out.IstioMutual = true
		if in.GetServerCertificate() != "" || in.GetPrivateKey() != "" || in.GetCaCertificates() != "" || len(in.GetTlsCertificates()) > 0 ||
			in.GetCredentialName() != "" || len(in.GetCredentialNames()) > 0 {
			o.fail(field+".mode", "ISTIO_MUTUAL uses the mesh's certificate and no other")
		}
		return out
	case networking.ServerTLSSettings_SIMPLE, networking.ServerTLSSettings_MUTUAL:
	case networking.ServerTLSSettings_OPTIONAL_MUTUAL:
		out.Optional = true
	default:
		o.fail(field+".mode", "%d is unknown", in.GetMode())
	}
	o.certificates(field, in, out)
	return out
}

func tlsVersion(v networking.ServerTLSSettings_TLSProtocol) string {
	if v == networking.ServerTLSSettings_TLS_AUTO {
		return ""
	}
	return v.String()
}

// certificates reads where the certificates of a server come from: from Secrets, or from files of the proxy's container.
func (o *object) certificates(field string, in *networking.ServerTLSSettings, out *model.ListenerTLS) {
	mutual := in.GetMode() != networking.ServerTLSSettings_SIMPLE
	credentials, name := in.GetCredentialNames(), field+".credentialNames"
	sources := 0
	for _, isSet := range []bool{in.GetServerCertificate() != "" && in.GetPrivateKey() != "", in.GetCredentialName() != "",
		len(credentials) > 0, len(in.GetTlsCertificates()) > 0} {
		if isSet {
			sources++
		}
	}
	if sources > 1 {
		o.fail(field, "credentialName, credentialNames, serverCertificate and tlsCertificates exclude each other")
	}
	if in.GetCredentialName() != "" {
		credentials, name = []string{in.GetCredentialName()}, field+".credentialName"
	}
	for _, c := range credentials {
		out.Certificates = append(out.Certificates, o.secret(name, c))
	}
	if len(credentials) > 0 {
		switch ca := in.GetCaCertCredentialName(); {
		case mutual && ca != "":
			out.ClientCA = []model.SecretRef{o.secret(field+".caCertCredentialName", ca)}
		case mutual:
			// The roots are in the same Secret, or beside it with the suffix -cacert.
			out.ClientCA = out.Certificates
		}
		return
	}
	out.CertFile, out.KeyFile, out.CAFile = in.GetServerCertificate(), in.GetPrivateKey(), in.GetCaCertificates()
	if many := in.GetTlsCertificates(); len(many) > 0 {
		if len(many) > 1 {
			o.fail(field+".tlsCertificates", "more than one is not supported; credentialNames is")
		}
		out.CertFile, out.KeyFile = many[0].GetServerCertificate(), many[0].GetPrivateKey()
	}
	if out.CertFile == "" || out.KeyFile == "" {
		o.fail(field, "credentialName, or serverCertificate and privateKey, is required")
	}
	if mutual && out.CAFile == "" {
		o.fail(field+".caCertificates", "is required for client certificates")
	}
	if !mutual {
		out.CAFile = ""
	}
}

func (o *object) secret(field, name string) model.SecretRef {
	return model.SecretRef{ObjectRef: model.ObjectRef{Kind: model.KindSecret, Key: o.credential(field, name)}}
}
