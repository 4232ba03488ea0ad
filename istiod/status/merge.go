package status

import (
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Limits of the Gateway API's schemas; an object over them would be refused whole.
const (
	maxConditions = 8
	maxParents    = 32
	maxAncestors  = 16
	maxAddresses  = 16
	maxListeners  = 64
	maxFeatures   = 64
	// maxMessage is the longest message of a condition, in bytes.
	maxMessage = 32768
)

// object is decoded JSON.
type object = map[string]any

// merge returns the status fields of live that differ from what s wants, nil if none does; a nil value removes a
// field. What others wrote stays. stale says that live is newer than what s is about, so that another status will come.
func merge(live *unstructured.Unstructured, s *model.Status, shape shape, now time.Time) (changed object, stale bool) {
	if g := live.GetGeneration(); s.Generation != 0 && g > s.Generation || s.UID != "" && string(live.GetUID()) != s.UID {
		return nil, true
	}
	status, _, _ := unstructured.NestedMap(live.Object, "status") // a copy; anything else than a map counts as none
	m := merger{generation: s.Generation, namespace: live.GetNamespace(), now: now.UTC().Format(time.RFC3339)}
	want := object{}
	switch shape {
	case shapeClass:
		want["conditions"] = m.conditions(status["conditions"], s.Conditions)
		want["supportedFeatures"] = features(s.Features)
	case shapeGateway:
		want["conditions"] = m.conditions(status["conditions"], s.Conditions)
		want["addresses"] = addresses(s.Addresses)
		want["listeners"] = m.listeners(status["listeners"], s.Listeners)
	case shapeRoute:
		refs, _, _ := unstructured.NestedSlice(live.Object, "spec", "parentRefs")
		parents, ok := m.parents(status["parents"], s.Parents, refs)
		if !ok {
			return nil, true
		}
		want["parents"] = parents
	case shapePolicy:
		want["ancestors"] = m.ancestors(status["ancestors"], s.Parents)
	default:
		want["conditions"] = m.conditions(status["conditions"], s.Conditions)
	}
	return differing(status, want), false
}

// differing keeps the fields of want that are not so in have. A missing list is as an empty one.
func differing(have, want object) object {
	var out object
	for k, v := range want {
		list := v.([]any)
		old, _ := have[k].([]any)
		if len(list) == 0 && len(old) == 0 || reflect.DeepEqual(old, list) {
			continue
		}
		if out == nil {
			out = object{}
		}
		out[k] = list
	}
	return out
}

// merger merges lists of one object's status.
type merger struct {
	generation     int64
	namespace, now string
}

// conditions puts wanted ones in the place of those of the same type, and removes ours that are not wanted.
func (m merger) conditions(have any, want []model.Condition) []any {
	old, _ := have.([]any)
	out := []any{}
	done := map[string]bool{}
	for _, o := range old {
		c, _ := o.(object)
		t, _ := c["type"].(string)
		if w := find(want, t); w != nil && !done[t] {
			out = append(out, m.condition(c, *w))
			done[t] = true
		} else if w == nil && !ours(t) {
			out = append(out, o)
		}
	}
	for _, w := range want {
		if !done[w.Type] && w.Type != "" && len(out) < maxConditions {
			out = append(out, m.condition(nil, w))
			done[w.Type] = true
		}
	}
	return out
}

// find returns the last condition of a type: a later verdict replaces an earlier one.
func find(in []model.Condition, t string) *model.Condition {
	for i := len(in) - 1; i >= 0; i-- {
		if in[i].Type == t && t != "" {
			return &in[i]
		}
	}
	return nil
}

// condition is w, in the place of old. The time of transition changes with the status only
// (metav1.Condition.lastTransitionTime). Fields of old that we do not know stay.
func (m merger) condition(old object, w model.Condition) object {
	status := "False"
	if w.OK {
		status = "True"
	}
	out := object{}
	for k, v := range old {
		out[k] = v
	}
	if t, _ := out["lastTransitionTime"].(string); t == "" || out["status"] != status {
		out["lastTransitionTime"] = m.now
	}
	out["type"], out["status"] = w.Type, status
	out["reason"], out["message"] = w.Reason, cut(w.Message)
	if w.Reason == "" {
		out["reason"] = w.Type // the schema wants one
	}
	// Istio writes the generation as text where we write a number: the same value is left alone.
	if m.generation != 0 && fmt.Sprint(out["observedGeneration"]) != fmt.Sprint(m.generation) {
		out["observedGeneration"] = m.generation
	}
	return out
}

// cut shortens a message to what the schema takes, at the end of a character.
func cut(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	s = s[:maxMessage]
	for !utf8.ValidString(s) && len(s) > 0 {
		s = s[:len(s)-1]
	}
	return s
}

func features(in []string) []any {
	out := []any{}
	for _, f := range in[:min(len(in), maxFeatures)] {
		out = append(out, object{"name": f})
	}
	return out
}

func addresses(in []model.GatewayAddress) []any {
	out := []any{}
	for _, a := range in[:min(len(in), maxAddresses)] {
		kind := a.Type
		if kind == "" {
			kind = string(gatewayv1.IPAddressType)
		}
		out = append(out, object{"type": kind, "value": a.Value})
	}
	return out
}

func (m merger) listeners(have any, want []model.ListenerStatus) []any {
	old, _ := have.([]any)
	byName := map[string]object{}
	for _, o := range old {
		l, _ := o.(object)
		if name, _ := l["name"].(string); name != "" {
			byName[name] = l
		}
	}
	out := []any{}
	for _, w := range want[:min(len(want), maxListeners)] {
		kinds := []any{}
		for _, k := range w.Kinds {
			kinds = append(kinds, object{"group": groupGateway, "kind": string(k)})
		}
		out = append(out, object{
			"name": w.Name, "attachedRoutes": int64(w.Attached), "supportedKinds": kinds,
			"conditions": m.conditions(byName[w.Name]["conditions"], w.Conditions),
		})
	}
	return out
}

// parents puts our verdicts beside those of other controllers. refs are the route's own references, which a status
// repeats exactly; false if they are not those that want is about.
func (m merger) parents(have any, want []model.ParentStatus, refs []any) ([]any, bool) {
	var entries []entry
	for _, w := range want {
		if w.Index < 0 || w.Index >= len(refs) {
			return nil, false
		}
		ref, _ := refs[w.Index].(object)
		entries = append(entries, entry{ref: ref, conditions: w.Conditions})
	}
	return m.entries(have, entries, "parentRef", maxParents), true
}

// ancestors does the same for a policy, whose references are made here.
func (m merger) ancestors(have any, want []model.ParentStatus) []any {
	var entries []entry
	for _, w := range want {
		entries = append(entries, entry{ref: ancestorRef(w.Parent), conditions: w.Conditions})
	}
	return m.entries(have, entries, "ancestorRef", maxAncestors)
}

func ancestorRef(p model.Parent) object {
	group, kind := groupGateway, "Gateway"
	switch p.Kind {
	case model.ParentService, model.ParentMesh:
		group, kind = "", "Service"
	case model.ParentServiceEntry:
		group, kind = groupNetwork, "ServiceEntry"
	case model.ParentIstioGateway:
		group = groupNetwork
	}
	out := object{"group": group, "kind": kind, "namespace": p.Namespace, "name": p.Name}
	if p.Section != "" {
		out["sectionName"] = p.Section
	}
	if p.Port != 0 {
		out["port"] = int64(p.Port)
	}
	return out
}

// entry is a verdict on one reference.
type entry struct {
	ref        object
	conditions []model.Condition
}

// entries merges verdicts into the list have, in place where the reference and the controller are the same.
func (m merger) entries(have any, want []entry, field string, limit int) []any {
	old, _ := have.([]any)
	pending := map[string]entry{}
	for _, e := range want { // of two verdicts on references that mean the same, the first counts
		if _, twice := pending[m.refKey(e.ref)]; !twice {
			pending[m.refKey(e.ref)] = e
		}
	}
	write := func(e entry, conditions any) object {
		delete(pending, m.refKey(e.ref))
		return object{
			field: runtime.DeepCopyJSON(e.ref), "controllerName": ControllerName, "conditions": m.conditions(conditions, e.conditions),
		}
	}
	out := []any{}
	for _, o := range old {
		p, _ := o.(object)
		if p["controllerName"] != ControllerName {
			out = append(out, o)
			continue
		}
		ref, _ := p[field].(object)
		if e, ok := pending[m.refKey(ref)]; ok {
			out = append(out, write(e, p["conditions"]))
		}
	}
	for _, e := range want {
		if _, ok := pending[m.refKey(e.ref)]; ok {
			out = append(out, write(e, nil))
		}
	}
	return out[:min(len(out), limit)]
}

// refKey is the same for references that mean the same: the API's defaults are filled in.
func (m merger) refKey(ref object) string {
	get := func(k, def string) string {
		if v, ok := ref[k]; ok {
			return fmt.Sprint(v)
		}
		return def
	}
	return strings.Join([]string{
		get("group", groupGateway), get("kind", "Gateway"), get("namespace", m.namespace), get("name", ""), get("sectionName", ""), get("port", ""),
	}, "|")
}
