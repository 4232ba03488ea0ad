package translate

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Names of the policies that PeerAuthentication becomes. The underscore cannot
// occur in a Kubernetes name, so no user's policy can collide with them.
const (
	StaticStrictName = "istio_converted_static_strict"
	convertedPrefix  = "converted_peer_authentication_"
)

// PeerAuthentication reads which connections must be mutual TLS.
func PeerAuthentication(pa *securityv1.PeerAuthentication) (*model.PeerAuthentication, error) {
	out := &model.PeerAuthentication{
		Key:      model.Key{Namespace: pa.Namespace, Name: pa.Name},
		Created:  pa.CreationTimestamp.Time,
		Selector: pa.Spec.GetSelector().GetMatchLabels(),
		Mode:     mtlsMode(pa.Spec.GetMtls()),
	}
	var errs []error
	for port, m := range pa.Spec.GetPortLevelMtls() {
		n, err := parsePort("spec.portLevelMtls", int64(port))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if out.Ports == nil {
			out.Ports = map[uint16]model.MTLSMode{}
		}
		out.Ports[n] = mtlsMode(m)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return out, nil
}

func mtlsMode(m *securityapi.PeerAuthentication_MutualTLS) model.MTLSMode {
	switch m.GetMode() {
	case securityapi.PeerAuthentication_MutualTLS_STRICT:
		return model.MTLSStrict
	case securityapi.PeerAuthentication_MutualTLS_PERMISSIVE:
		return model.MTLSPermissive
	case securityapi.PeerAuthentication_MutualTLS_DISABLE:
		return model.MTLSDisable
	}
	return model.MTLSUnset
}

// MTLS is the PeerAuthentication in force at the three levels; nil where there is
// none. Of several at one level the oldest is in force.
type MTLS struct{ Mesh, Namespace, Workload *model.PeerAuthentication }

// Oldest picks the one in force among those of one level. Equal ages are told
// apart by name, so that every replica of istiod picks the same.
func Oldest(in []*model.PeerAuthentication) *model.PeerAuthentication {
	var out *model.PeerAuthentication
	for _, pa := range in {
		if out == nil || pa.Created.Before(out.Created) || pa.Created.Equal(out.Created) && pa.Key.Less(out.Key) {
			out = pa
		}
	}
	return out
}

// strict is the mode of ports that have none of their own: the innermost level that says something.
func (m MTLS) strict() bool {
	for _, pa := range []*model.PeerAuthentication{m.Workload, m.Namespace, m.Mesh} {
		if pa != nil && pa.Mode != model.MTLSUnset {
			return pa.Mode == model.MTLSStrict
		}
	}
	return false
}

// exceptions lists the ports whose own mode differs from the default, in order.
// Both PERMISSIVE and DISABLE let plaintext in.
func (m MTLS) exceptions() []uint16 {
	if m.Workload == nil {
		return nil
	}
	strict := m.strict()
	var out []uint16
	for _, port := range slices.Sorted(maps.Keys(m.Workload.Ports)) {
		if mode := m.Workload.Ports[port]; mode != model.MTLSUnset && (mode == model.MTLSStrict) != strict {
			out = append(out, port)
		}
	}
	return out
}

// PolicyNames are the policies that a workload under m refers to: none, the
// static strict one, or the converted form of its own PeerAuthentication, which
// then says everything, since a second DENY policy would take its exceptions back.
func (m MTLS) PolicyNames(cfg Config) []string {
	if len(m.exceptions()) > 0 {
		return []string{ConvertedName(m.Workload.Key)}
	}
	if m.strict() {
		return []string{cfg.RootNamespace + "/" + StaticStrictName}
	}
	return nil
}

// Converted is the policy for a PeerAuthentication with port modes under the
// namespace's and mesh's; nil when the port modes make no difference.
func (m MTLS) Converted() *security.Authorization {
	exceptions := m.exceptions()
	if len(exceptions) == 0 {
		return nil
	}
	out := &security.Authorization{
		Name:      convertedPrefix + m.Workload.Name,
		Namespace: m.Workload.Namespace,
		Scope:     security.Scope_WORKLOAD_SELECTOR,
		Action:    security.Action_DENY,
	}
	if !m.strict() {
		// Deny plaintext on any of the strict ports.
		for _, p := range exceptions {
			out.Rules = append(out.Rules, &security.Rule{Clauses: []*security.Clause{{Matches: []*security.Match{{
				NotPrincipals: anyPrincipal(), DestinationPorts: []uint32{uint32(p)},
			}}}}})
		}
		return out
	}
	// Deny plaintext on every port that is none of the exceptions.
	rule := &security.Rule{Clauses: []*security.Clause{{Matches: []*security.Match{{NotPrincipals: anyPrincipal()}}}}}
	for _, p := range exceptions {
		rule.Clauses = append(rule.Clauses, &security.Clause{Matches: []*security.Match{{NotDestinationPorts: []uint32{uint32(p)}}}})
	}
	out.Rules = []*security.Rule{rule}
	return out
}

// StaticStrict denies whoever has no identity. Every workload under STRICT without exceptions refers to it.
func StaticStrict(cfg Config) *security.Authorization {
	return &security.Authorization{
		Name:      StaticStrictName,
		Namespace: cfg.RootNamespace,
		Scope:     security.Scope_WORKLOAD_SELECTOR,
		Action:    security.Action_DENY,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{
			Matches: []*security.Match{{NotPrincipals: anyPrincipal()}},
		}}}},
	}
}

func anyPrincipal() []*security.StringMatch {
	return []*security.StringMatch{{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}}
}

// ConvertedName is the name on the wire of a PeerAuthentication's converted policy.
func ConvertedName(k model.Key) string { return k.Namespace + "/" + convertedPrefix + k.Name }

// PolicyName is a policy's name on the wire.
func PolicyName(k model.Key) string { return fmt.Sprintf("%s/%s", k.Namespace, k.Name) }
