package translate

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Bypass reads who may pass by waypoints: a value of the annotation or of the mesh's setting.
func Bypass(value string) (model.Bypass, error) {
	switch strings.ToLower(value) {
	case "refuse":
		return model.BypassRefuse, nil
	case "strict":
		return model.BypassStrict, nil
	case "allow":
		return model.BypassAllow, nil
	}
	return model.BypassUnset, fmt.Errorf("read bypass of waypoints %q: none of refuse, strict and allow", value)
}

// bypass of an object: a value that says nothing leaves what else is in force, which refuses more.
func bypass(annotations map[string]string) model.Bypass {
	b, err := Bypass(annotations[ports.AnnotationWaypointBypass])
	if err != nil {
		return model.BypassUnset
	}
	return b
}

// WaypointRequired is a port of pods that may be reached through waypoints only.
type WaypointRequired struct {
	Namespace string
	// Services whose waypoints stand before the port, in order.
	Services []string
	Port     uint16
	// Callers are the principals that may connect: waypoints, and gateways that send to the pods themselves.
	Callers []string
	// Plaintext says that callers without identity are refused too.
	Plaintext bool
}

// Name names the policy, without its namespace. A dot cannot occur in a service's name.
func (r *WaypointRequired) Name() string {
	return fmt.Sprintf("%s%s_%d", ports.WaypointRequiredPrefix, strings.Join(r.Services, "."), r.Port)
}

// Wire makes the policy. It is a DENY, so no ALLOW of the user's can open the port.
func (r *WaypointRequired) Wire() *security.Authorization {
	m := &security.Match{DestinationPorts: []uint32{uint32(r.Port)}}
	for _, c := range r.Callers {
		m.NotPrincipals = append(m.NotPrincipals, &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: c}})
	}
	if !r.Plaintext {
		m.Principals = []*security.StringMatch{{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}}
	}
	return &security.Authorization{
		Name:      r.Name(),
		Namespace: r.Namespace,
		Scope:     security.Scope_WORKLOAD_SELECTOR,
		Action:    security.Action_DENY,
		Rules:     []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{m}}}}},
	}
}

// Principal is who runs as a service account, as policies write it.
func Principal(cfg Config, namespace, account string) string {
	return cfg.TrustDomain + "/ns/" + namespace + "/sa/" + account
}
