package resolve

import (
	"fmt"
	"slices"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate/gatewayapi"
)

// Types and reasons of conditions that several kinds share.
const (
	typeAccepted     = string(gwv1.GatewayConditionAccepted)
	typeProgrammed   = string(gwv1.GatewayConditionProgrammed)
	typeResolvedRefs = string(gwv1.ListenerConditionResolvedRefs)
	typeConflicted   = string(gwv1.ListenerConditionConflicted)

	reasonInvalidDelegate = "InvalidDelegate"
)

// ListenerState is what became of a listener.
type ListenerState struct {
	*model.Listener
	// Certificates and ClientCA are what TLS is terminated with.
	Certificates []model.Certificate
	ClientCA     string
	// Conflict, Refused and Unresolved say why it does not work; Unresolved alone leaves routes attached.
	Conflict, Refused, Unresolved *model.Condition
	// Kinds of routes that may attach.
	Kinds []model.Kind
}

// Usable tells whether the listener is programmed at all.
func (l *ListenerState) Usable() bool { return l.Conflict == nil && l.Refused == nil }

// Serves tells whether connections to it get further than being refused.
func (l *ListenerState) Serves() bool {
	return l.Usable() && (l.TLS == nil || l.TLS.Passthrough || l.TLS.IstioMutual || l.TLS.CertFile != "" || len(l.Certificates) > 0) &&
		(l.TLS == nil || len(l.TLS.ClientCA) == 0 || l.ClientCA != "" || l.TLS.Insecure)
}

// Listeners computes the state of a gateway's listeners, for a proxy in the namespace: Istio's Gateways name Secrets
// beside the pods that they choose.
func Listeners(r *index.Reader, g *model.Gateway, namespace string) []ListenerState {
	out := make([]ListenerState, len(g.Listeners))
	for i := range g.Listeners {
		l := &g.Listeners[i]
		out[i].Listener = l
		out[i].Kinds = kindsOf(l)
		for j := range l.Invalid {
			c := &l.Invalid[j]
			if c.Type == typeResolvedRefs {
				out[i].Unresolved = c
			} else if out[i].Refused == nil {
				out[i].Refused = c
			}
		}
		if l.TLS != nil && !l.TLS.Passthrough {
			out[i].secrets(r, namespace)
		}
	}
	if g.Kind == model.KindGateway {
		conflicts(out)
	}
	return out
}

func kindsOf(l *model.Listener) []model.Kind {
	switch {
	case l.NoKinds:
		return nil
	case len(l.AllowedKinds) > 0:
		return l.AllowedKinds
	}
	return gatewayapi.SupportedKinds(l)
}

// secrets reads what a listener terminates TLS with.
func (l *ListenerState) secrets(r *index.Reader, namespace string) {
	unresolved := func(reason gwv1.ListenerConditionReason, message string) {
		if l.Unresolved == nil {
			c := condition(typeResolvedRefs, string(reason), message, false)
			l.Unresolved = &c
		}
	}
	for i := range l.TLS.Certificates {
		ref := &l.TLS.Certificates[i]
		switch {
		case ref.Invalid != nil:
			unresolved(gwv1.ListenerConditionReason(ref.Invalid.Reason), ref.Invalid.Message)
		case !r.Granted(ref.Grant):
			unresolved(gwv1.ListenerReasonRefNotPermitted,
				fmt.Sprintf("no ReferenceGrant in namespace %q lets this Gateway refer to %s %q", ref.Namespace, ref.Kind, ref.Name))
		default:
			cert, err := certificateIn(r, beside(ref.ObjectRef, namespace), r.Now)
			if err != nil {
				unresolved(gwv1.ListenerReasonInvalidCertificateRef, err.Error())
				continue
			}
			l.Certificates = append(l.Certificates, *cert)
		}
	}
	var roots []string
	for i := range l.TLS.ClientCA {
		ref := &l.TLS.ClientCA[i]
		switch {
		case ref.Invalid != nil:
			unresolved(gwv1.ListenerConditionReason(ref.Invalid.Reason), ref.Invalid.Message)
		case !r.Granted(ref.Grant):
			unresolved(gwv1.ListenerReasonRefNotPermitted,
				fmt.Sprintf("no ReferenceGrant in namespace %q lets this Gateway refer to %s %q", ref.Namespace, ref.Kind, ref.Name))
		default:
			pem, err := clientRoots(r, beside(ref.ObjectRef, namespace))
			if err != nil {
				unresolved(gwv1.ListenerReasonInvalidCACertificateRef, err.Error())
				continue
			}
			roots = append(roots, strings.TrimSpace(pem))
		}
	}
	if len(roots) > 0 {
		l.ClientCA = strings.Join(roots, "\n") + "\n"
	}
	if len(l.TLS.ClientCA) > 0 && len(roots) == 0 && !l.TLS.Insecure && l.Refused == nil {
		c := condition(typeAccepted, string(gwv1.ListenerReasonNoValidCACertificate), "none of the roots for client certificates can be used", false)
		l.Refused = &c
	}
}

// beside fills in the namespace of a reference that names none.
func beside(ref model.ObjectRef, namespace string) model.ObjectRef {
	if ref.Namespace == "" {
		ref.Namespace = namespace
	}
	return ref
}

// clientRoots looks beside a Secret too, as for an Istio Gateway's credentialName.
func clientRoots(r *index.Reader, ref model.ObjectRef) (string, error) {
	pem, err := rootsIn(r, ref)
	if err == nil || ref.Kind != model.KindSecret {
		return pem, err
	}
	other := ref
	other.Name += "-cacert"
	if pem, err := rootsIn(r, other); err == nil {
		return pem, nil
	}
	return "", err
}

// conflicts marks listeners that cannot be told apart (Gateway API, GatewaySpec.listeners): on one port, protocols
// that differ, except that HTTPS and TLS share it by SNI; and the same hostname twice.
func conflicts(listeners []ListenerState) {
	for i := range listeners {
		for j := range listeners {
			a, b := &listeners[i], &listeners[j]
			if i == j || a.Port != b.Port || a.Port == 0 || a.Protocol == model.ListenUnknown || b.Protocol == model.ListenUnknown {
				continue
			}
			switch {
			case family(a.Protocol) != family(b.Protocol):
				a.conflict(gwv1.ListenerReasonProtocolConflict, "listener %q uses port %d with another protocol", b.Name, b.Port)
			case a.Protocol == model.ListenTCP || a.Protocol == model.ListenHBONE || a.Hostname == b.Hostname:
				a.conflict(gwv1.ListenerReasonHostnameConflict, "listener %q has the same port %d and hostname", b.Name, b.Port)
			}
		}
	}
}

// family is what can share a port.
func family(p model.ListenerProtocol) model.ListenerProtocol {
	if p == model.ListenHTTPS {
		return model.ListenTLS
	}
	return p
}

func (l *ListenerState) conflict(reason gwv1.ListenerConditionReason, format string, args ...any) {
	if l.Conflict == nil {
		c := condition(typeConflicted, string(reason), fmt.Sprintf(format, args...), true)
		l.Conflict = &c
	}
}

// ListenerStatuses are the conditions of listeners; attached counts their routes.
func ListenerStatuses(states []ListenerState, attached map[string]int) []model.ListenerStatus {
	out := make([]model.ListenerStatus, 0, len(states))
	for i := range states {
		l := &states[i]
		st := model.ListenerStatus{Name: l.Name, Kinds: slices.Clone(l.Kinds), Attached: int32(attached[l.Name])}
		accepted := condition(typeAccepted, string(gwv1.ListenerReasonAccepted), "the listener is accepted", true)
		resolved := condition(typeResolvedRefs, string(gwv1.ListenerReasonResolvedRefs), "all references are resolved", true)
		conflicted := condition(typeConflicted, string(gwv1.ListenerReasonNoConflicts), "no other listener stands in the way", false)
		programmed := condition(typeProgrammed, string(gwv1.ListenerReasonProgrammed), "the proxies know the listener", true)
		if l.Unresolved != nil {
			resolved = *l.Unresolved
			programmed = condition(typeProgrammed, string(gwv1.ListenerReasonInvalid), l.Unresolved.Message, false)
		}
		if l.Conflict != nil {
			conflicted = *l.Conflict
			accepted = condition(typeAccepted, l.Conflict.Reason, l.Conflict.Message, false)
		}
		if l.Refused != nil {
			accepted = *l.Refused
		}
		if !accepted.OK {
			programmed = condition(typeProgrammed, string(gwv1.ListenerReasonInvalid), accepted.Message, false)
		}
		st.Conditions = []model.Condition{accepted, conflicted, programmed, resolved}
		out = append(out, st)
	}
	return out
}
