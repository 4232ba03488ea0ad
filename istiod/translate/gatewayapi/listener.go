package gatewayapi

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	protocolHBONE gwv1.ProtocolType = "HBONE"

	// selectNothing chooses no namespace: the label, which every namespace has, and its absence.
	selectNothing = "kubernetes.io/metadata.name,!kubernetes.io/metadata.name"

	// optionTerminateMode and optionCiphers are Istio's keys of listeners[].tls.options.
	optionTerminateMode gwv1.AnnotationKey = "gateway.istio.io/tls-terminate-mode"
	optionCiphers       gwv1.AnnotationKey = "gateway.istio.io/tls-cipher-suites"
)

// SupportedKinds are the kinds of routes that a listener can carry, before its owner's choice (Gateway API,
// ListenerStatus.supportedKinds).
func SupportedKinds(l *model.Listener) []model.Kind {
	switch l.Protocol {
	case model.ListenHTTP, model.ListenHTTPS:
		return []model.Kind{model.KindHTTPRoute, model.KindGRPCRoute}
	case model.ListenTLS:
		if l.TLS != nil && l.TLS.Passthrough {
			return []model.Kind{model.KindTLSRoute}
		}
		return []model.Kind{model.KindTLSRoute, model.KindTCPRoute}
	case model.ListenTCP:
		return []model.Kind{model.KindTCPRoute}
	case model.ListenHBONE:
		return []model.Kind{model.KindHTTPRoute, model.KindGRPCRoute, model.KindTLSRoute, model.KindTCPRoute}
	}
	return nil
}

// listenerTranslation collects what is wrong with one listener.
type listenerTranslation struct {
	gateway *gwv1.Gateway
	in      *gwv1.Listener
	field   string
	out     model.Listener
}

func listener(g *gwv1.Gateway, i int, waypoint bool) model.Listener {
	in := &g.Spec.Listeners[i]
	t := &listenerTranslation{gateway: g, in: in, field: fmt.Sprintf("spec.listeners[%d]", i)}
	t.out.Name = string(in.Name)
	t.out.Hostname = strings.ToLower(string(or(in.Hostname, "")))
	if t.out.Hostname != "" {
		if c := hostname(t.field+".hostname", t.out.Hostname); c != nil {
			t.refuse(c)
		}
	}
	if in.Port >= 1 && in.Port <= maxPort {
		t.out.Port = uint16(in.Port)
	} else {
		t.refuse(notAccepted(gwv1.ListenerReasonPortUnavailable, fmt.Sprintf("%s.port: %d is not a port", t.field, in.Port)))
	}
	t.protocol(waypoint)
	t.tls()
	t.allowed()
	return t.out
}

func (t *listenerTranslation) refuse(c *model.Condition) { t.out.Invalid = append(t.out.Invalid, *c) }

func (t *listenerTranslation) protocol(waypoint bool) {
	switch t.in.Protocol {
	case gwv1.HTTPProtocolType:
		t.out.Protocol = model.ListenHTTP
	case gwv1.HTTPSProtocolType:
		t.out.Protocol = model.ListenHTTPS
	case gwv1.TLSProtocolType:
		t.out.Protocol = model.ListenTLS
	case gwv1.TCPProtocolType:
		t.out.Protocol = model.ListenTCP
	case protocolHBONE:
		t.out.Protocol = model.ListenHBONE
	default:
		t.out.Protocol = model.ListenUnknown
		t.unsupported(fmt.Sprintf("%q is none of HTTP, HTTPS, TLS, TCP and HBONE", t.in.Protocol))
		return
	}
	switch tunnel := t.out.Protocol == model.ListenHBONE; {
	case waypoint && (!tunnel || t.in.Port != ports.HBONE):
		t.unsupported(fmt.Sprintf("a waypoint listens on port %d with protocol HBONE only", ports.HBONE))
	case tunnel && !waypoint:
		t.unsupported("HBONE is for waypoints only")
	}
}

func (t *listenerTranslation) unsupported(message string) {
	t.refuse(notAccepted(gwv1.ListenerReasonUnsupportedProtocol, t.field+".protocol: "+message))
}

func (t *listenerTranslation) tls() {
	p := t.out.Protocol
	if p != model.ListenHTTPS && p != model.ListenTLS {
		if t.in.TLS != nil && p != model.ListenHBONE && p != model.ListenUnknown {
			t.refuse(notAccepted(gwv1.ListenerReasonUnsupportedValue,
				fmt.Sprintf("%s.tls: the protocol %s has no TLS", t.field, t.in.Protocol)))
		}
		return
	}
	out := &model.ListenerTLS{}
	t.out.TLS = out
	in := t.in.TLS
	if in == nil {
		in = &gwv1.ListenerTLSConfig{}
	}
	switch mode := or(in.Mode, gwv1.TLSModeTerminate); mode {
	case gwv1.TLSModeTerminate:
		t.terminate(in, out)
	case gwv1.TLSModePassthrough:
		out.Passthrough = true
		if p == model.ListenHTTPS {
			t.refuse(notAccepted(gwv1.ListenerReasonUnsupportedValue, t.field+".tls.mode: HTTPS has to be terminated"))
		}
	default:
		t.refuse(notAccepted(gwv1.ListenerReasonUnsupportedValue, fmt.Sprintf("%s.tls.mode: %q is unknown", t.field, mode)))
	}
}

func (t *listenerTranslation) terminate(in *gwv1.ListenerTLSConfig, out *model.ListenerTLS) {
	for i, r := range in.CertificateRefs {
		out.Certificates = append(out.Certificates, secretRef(r, t.gateway.Namespace,
			fmt.Sprintf("%s.tls.certificateRefs[%d]", t.field, i), string(gwv1.ListenerReasonInvalidCertificateRef)))
	}
	if v := in.Options[optionCiphers]; v != "" {
		for _, c := range strings.Split(string(v), ",") {
			if c = strings.TrimSpace(c); c != "" {
				out.Ciphers = append(out.Ciphers, c)
			}
		}
	}
	t.terminateMode(string(in.Options[optionTerminateMode]), out)
	if len(out.Certificates) == 0 && !out.IstioMutual {
		t.refuse(notResolved(gwv1.ListenerReasonInvalidCertificateRef,
			t.field+".tls.certificateRefs: at least one is required to terminate TLS"))
	}
	if t.out.Protocol == model.ListenHTTPS {
		t.frontend(out)
	}
}

// terminateMode reads Istio's option, which gives a listener the modes of an Istio Gateway.
func (t *listenerTranslation) terminateMode(mode string, out *model.ListenerTLS) {
	switch mode {
	case "", "SIMPLE":
	case "MUTUAL", "OPTIONAL_MUTUAL":
		// The roots are in the certificate's own Secret, or beside it, as for an Istio Gateway's credentialName.
		out.ClientCA = append(out.ClientCA, out.Certificates...)
		out.Optional = mode == "OPTIONAL_MUTUAL"
	case "ISTIO_MUTUAL":
		out.IstioMutual = true
	case "ISTIO_SIMPLE":
		// The mesh's own certificate, and clients from outside, who have none.
		out.IstioMutual, out.Optional = true, true
	default:
		t.refuse(notAccepted(gwv1.ListenerReasonUnsupportedValue,
			fmt.Sprintf("%s.tls.options[%s]: %q is unknown", t.field, optionTerminateMode, mode)))
	}
}

// frontend applies the Gateway's validation of client certificates to an HTTPS listener; a port's own comes first.
func (t *listenerTranslation) frontend(out *model.ListenerTLS) {
	spec := t.gateway.Spec.TLS
	if spec == nil || spec.Frontend == nil {
		return
	}
	cfg, field := spec.Frontend.Default, "spec.tls.frontend.default"
	for i := range spec.Frontend.PerPort {
		if p := &spec.Frontend.PerPort[i]; p.Port == t.in.Port {
			cfg, field = p.TLS, fmt.Sprintf("spec.tls.frontend.perPort[%d].tls", i)
			break
		}
	}
	v := cfg.Validation
	if v == nil {
		return
	}
	for i, r := range v.CACertificateRefs {
		out.ClientCA = append(out.ClientCA, caRef(r, t.gateway.Namespace, fmt.Sprintf("%s.validation.caCertificateRefs[%d]", field, i)))
	}
	if len(v.CACertificateRefs) == 0 {
		t.refuse(notAccepted(gwv1.ListenerReasonNoValidCACertificate, field+".validation.caCertificateRefs: at least one is required"))
	}
	switch v.Mode {
	case "", gwv1.AllowValidOnly:
	case gwv1.AllowInsecureFallback:
		out.Optional, out.Insecure = true, true
	default:
		t.refuse(notAccepted(gwv1.ListenerReasonUnsupportedValue, fmt.Sprintf("%s.validation.mode: %q is unknown", field, v.Mode)))
	}
}

func (t *listenerTranslation) allowed() {
	in := t.in.AllowedRoutes
	if in == nil {
		in = &gwv1.AllowedRoutes{}
	}
	t.namespaces(in.Namespaces)
	if len(in.Kinds) == 0 {
		return
	}
	var unknown []string
	supported := SupportedKinds(&t.out)
	for _, k := range in.Kinds {
		kind := model.Kind(k.Kind)
		switch {
		case or(k.Group, groupGateway) != groupGateway || !slices.Contains(supported, kind):
			unknown = append(unknown, groupKind(or(k.Group, groupGateway), k.Kind))
		case !slices.Contains(t.out.AllowedKinds, kind):
			t.out.AllowedKinds = append(t.out.AllowedKinds, kind)
		}
	}
	t.out.NoKinds = len(t.out.AllowedKinds) == 0
	if len(unknown) > 0 {
		t.refuse(notResolved(gwv1.ListenerReasonInvalidRouteKinds,
			fmt.Sprintf("%s.allowedRoutes.kinds: a listener with protocol %s cannot have routes of %s", t.field, t.in.Protocol, strings.Join(unknown, ", "))))
	}
}

func (t *listenerTranslation) namespaces(in *gwv1.RouteNamespaces) {
	if in == nil {
		in = &gwv1.RouteNamespaces{}
	}
	var err error
	field := t.field + ".allowedRoutes.namespaces"
	switch from := or(in.From, gwv1.NamespacesFromSame); from {
	case gwv1.NamespacesFromAll:
		t.out.Allowed.All = true
	case gwv1.NamespacesFromSame:
		t.out.Allowed.Same = true
	case gwv1.NamespacesFromNone:
		t.out.Allowed.Labels = selectNothing
	case gwv1.NamespacesFromSelector:
		if t.out.Allowed, err = selectNamespaces(in.Selector); err != nil {
			t.refuse(notAccepted(gwv1.ListenerReasonUnsupportedValue, fmt.Sprintf("%s.selector: %v", field, err)))
		}
	default:
		t.out.Allowed.Labels = selectNothing
		t.refuse(notAccepted(gwv1.ListenerReasonUnsupportedValue, fmt.Sprintf("%s.from: %q is unknown", field, from)))
	}
}

// selectNamespaces writes a selector as text. As everywhere in Kubernetes, no selector chooses nothing and an empty one everything.
func selectNamespaces(in *metav1.LabelSelector) (model.NamespaceSelector, error) {
	none := model.NamespaceSelector{Labels: selectNothing}
	if in == nil {
		return none, nil
	}
	s, err := metav1.LabelSelectorAsSelector(in)
	if err != nil {
		return none, fmt.Errorf("read selector: %w", err)
	}
	if s.Empty() {
		return model.NamespaceSelector{All: true}, nil
	}
	return model.NamespaceSelector{Labels: s.String()}, nil
}
