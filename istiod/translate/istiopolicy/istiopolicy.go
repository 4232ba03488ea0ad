// Package istiopolicy turns the policies of layer 7 into istiod's model: Istio's
// AuthorizationPolicy, RequestAuthentication, Telemetry and mesh configuration,
// and Ambit's RateLimit. Package layer7 calls it for every object that it watches.
//
// What always holds: functions are pure; the same input gives the same output and
// is not changed; nothing panics. An error names each field that makes no sense,
// and comes with the closest safe translation: an ALLOW rule that holds an error
// is left out, a DENY, CUSTOM or AUDIT rule loses only the condition that cannot be
// read, a policy never reaches further than what it was attached to, keys that
// cannot be read accept no token. A caller that has an earlier good translation uses
// that instead. What is well formed but has no effect is a warning in the result.
//
// It does not look anything up: whether a target, a provider or a service exists is
// decided by layer7, and keys are fetched by package jwks.
package istiopolicy

import (
	"errors"
	"fmt"
	"slices"

	typeapi "istio.io/api/type/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// Kinds that a policy may be attached to, and their API groups.
const (
	targetGateway      = "Gateway"
	targetGatewayClass = "GatewayClass"
	targetService      = "Service"
	targetServiceEntry = "ServiceEntry"

	groupGateway = "gateway.networking.k8s.io"
	groupIstio   = "networking.istio.io"
	groupCore    = "core"
)

// problems collects what is wrong with one object.
type problems struct {
	errs     []error
	warnings []string
}

// fail says that a field makes no sense.
func (p *problems) fail(field, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("read "+field+": "+format, args...))
}

// failValue says so of a field's value, which is quoted.
func (p *problems) failValue(field, value, cause string) {
	p.errs = append(p.errs, fmt.Errorf("read %s %q: %s", field, value, cause))
}

// warn says that a field is well formed and has no effect, or not the one that was probably meant. Each text is kept once.
func (p *problems) warn(format string, args ...any) {
	if w := fmt.Sprintf(format, args...); !slices.Contains(p.warnings, w) {
		p.warnings = append(p.warnings, w)
	}
}

func (p *problems) err() error { return errors.Join(p.errs...) }

func meta(kind model.Kind, o metav1.ObjectMeta) model.Meta {
	return model.Meta{
		Kind:    kind,
		Key:     model.Key{Namespace: o.Namespace, Name: o.Name},
		Created: o.CreationTimestamp.Time, Generation: o.Generation,
	}
}

// target is a policy's reference to what it is attached to, of Istio's kinds and of ours.
type target struct{ field, group, kind, namespace, name string }

// targets reads the references. One that cannot be read stays as a target without kind, which matches nothing: without
// it the policy would be one of the whole namespace.
func (p *problems) targets(cfg translate.Config, namespace string, in []target) []model.PolicyTarget {
	var out []model.PolicyTarget
	for _, t := range in {
		out = append(out, p.target(cfg, namespace, t))
	}
	return out
}

func (p *problems) target(cfg translate.Config, namespace string, t target) model.PolicyTarget {
	if t.name == "" {
		p.fail(t.field+".name", "empty")
		return model.PolicyTarget{}
	}
	// Istio refuses other namespaces too (type/v1beta1/selector.proto): a policy of one team is no business of another's.
	if t.namespace != "" && t.namespace != namespace {
		p.failValue(t.field+".namespace", t.namespace, "a policy applies in its own namespace only")
		return model.PolicyTarget{}
	}
	out := model.PolicyTarget{Kind: t.kind, Key: model.Key{Namespace: namespace, Name: t.name}}
	group := ""
	switch t.kind {
	case targetGateway:
		group = groupGateway
	case targetGatewayClass:
		group = groupGateway
		out.Namespace = ""
		if namespace != cfg.RootNamespace {
			p.failValue(t.field+".kind", t.kind, fmt.Sprintf("only a policy in namespace %q applies to a class", cfg.RootNamespace))
			return model.PolicyTarget{}
		}
	case targetService:
		if t.group == groupCore {
			t.group = ""
		}
	case targetServiceEntry:
		group = groupIstio
	default:
		p.failValue(t.field+".kind", t.kind, "is none of Gateway, GatewayClass, Service, ServiceEntry")
		return model.PolicyTarget{}
	}
	if t.group != group {
		p.failValue(t.field+".group", t.group, fmt.Sprintf("kind %s is in group %q", t.kind, group))
		return model.PolicyTarget{}
	}
	return out
}

// attachment reads what Istio's three policies have in common: a selector, or references.
func (p *problems) attachment(cfg translate.Config, namespace string, selector *typeapi.WorkloadSelector,
	one *typeapi.PolicyTargetReference, many []*typeapi.PolicyTargetReference,
) ([]model.PolicyTarget, map[string]string) {
	var refs []target
	add := func(field string, r *typeapi.PolicyTargetReference) {
		refs = append(refs, target{field, r.GetGroup(), r.GetKind(), r.GetNamespace(), r.GetName()})
	}
	if one != nil {
		add("spec.targetRef", one)
		if len(many) > 0 {
			p.fail("spec.targetRef", "targetRefs is set too")
		}
	}
	for i, r := range many {
		add(fmt.Sprintf("spec.targetRefs[%d]", i), r)
	}
	labels := selector.GetMatchLabels()
	if len(refs) == 0 {
		return nil, labels
	}
	if selector != nil {
		p.fail("spec.selector", "targetRefs is set too; the selector is ignored")
	}
	return p.targets(cfg, namespace, refs), nil
}
