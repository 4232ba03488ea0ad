package index

import (
	"cmp"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// DepKind is what kind of question was asked.
type DepKind uint8

// Questions. The name of a Dep says about what.
const (
	// Object is one object, by kind and key.
	Object DepKind = iota
	// Parent is the routes that name a parent; Target the policies that name a target (both "Kind/namespace/name").
	Parent
	Target
	// Wide is the policies of a whole namespace, Selected those that choose workloads of it by labels.
	Wide
	Selected
	// Grants is the ReferenceGrants of a namespace.
	Grants
	// Rule is the DestinationRules of a host, AnyRule all those with a wildcard. AnyHost is the same for VirtualServices.
	Rule
	AnyRule
	AnyHost
	// Host is who owns a host name: a Service or ServiceEntries; WildHost the entries with a wildcard.
	Host
	WildHost
	// Class is the Gateways of a class; IstioGateways all of that kind.
	Class
	IstioGateways
	// Endpoints, Binding, Namespace and Pods are the graph's: of a service, of a service, of a name, in a namespace.
	Endpoints
	Binding
	Namespace
	Namespaces
	Pods
	// Attached is the routes that are attached to a gateway; Keys a fetched key set. Layer7 computes both.
	Attached
	Keys
)

// Dep is a question that was asked of a Reader.
type Dep struct {
	Kind DepKind
	Name string
}

// ID names an object over all kinds.
type ID struct {
	Kind model.Kind
	model.Key
}

// String is "Kind/namespace/name", as Deps name objects.
func (id ID) String() string { return string(id.Kind) + "/" + id.Namespace + "/" + id.Name }

// Store holds the objects. The values are model's pointers.
type Store struct {
	objects map[ID]any
	filed   map[Dep]map[ID]struct{}
}

// NewStore makes an empty store.
func NewStore() *Store { return &Store{objects: map[ID]any{}, filed: map[Dep]map[ID]struct{}{}} }

// Put stores an object, nil to remove it, and returns which answers may now be others.
func (s *Store) Put(id ID, o any) []Dep {
	out := []Dep{{Object, id.String()}}
	if old, ok := s.objects[id]; ok {
		for _, d := range slots(old) {
			out = append(out, d)
			delete(s.filed[d], id)
			if len(s.filed[d]) == 0 {
				delete(s.filed, d)
			}
		}
		delete(s.objects, id)
	}
	if o == nil {
		return out
	}
	s.objects[id] = o
	for _, d := range slots(o) {
		if s.filed[d] == nil {
			s.filed[d] = map[ID]struct{}{}
		}
		s.filed[d][id] = struct{}{}
		if !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out
}

// Peek returns an object without taking note; nil if there is none.
func (s *Store) Peek(id ID) any { return s.objects[id] }

// Len counts the objects by kind.
func (s *Store) Len() map[model.Kind]int {
	out := map[model.Kind]int{}
	for id := range s.objects {
		out[id.Kind]++
	}
	return out
}

// slots are the questions that an object is an answer to.
func slots(o any) []Dep {
	switch o := o.(type) {
	case *model.Route:
		return routeSlots(o)
	case *model.Gateway:
		if o.Kind == model.KindIstioGateway {
			return []Dep{{IstioGateways, ""}}
		}
		return []Dep{{Class, o.Class}}
	case *model.DestinationRule:
		if strings.HasPrefix(o.Host, "*") {
			return []Dep{{AnyRule, ""}}
		}
		return []Dep{{Rule, o.Host}}
	case *model.ServiceEntry:
		return hostSlots(o.Hosts)
	case *model.Grant:
		return []Dep{{Grants, o.Namespace}}
	case *model.BackendTLS:
		return policySlots(o.Namespace, o.Targets, nil)
	case *model.Authorization:
		return policySlots(o.Namespace, o.Targets, o.Selector)
	case *model.JWTPolicy:
		return policySlots(o.Namespace, o.Targets, o.Selector)
	case *model.Telemetry:
		return policySlots(o.Namespace, o.Targets, o.Selector)
	case *model.RateLimit:
		return policySlots(o.Namespace, o.Targets, nil)
	}
	return nil
}

func routeSlots(o *model.Route) []Dep {
	var out []Dep
	for _, p := range o.Parents {
		d := Dep{Parent, ParentName(p.Kind, p.Key, p.Host)}
		if p.Kind == model.ParentMesh && strings.HasPrefix(p.Host, "*") {
			d = Dep{AnyHost, ""}
		}
		if !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out
}

func hostSlots(hosts []string) []Dep {
	var out []Dep
	for _, h := range hosts {
		d := Dep{Host, h}
		if strings.HasPrefix(h, "*") {
			d = Dep{WildHost, ""}
		}
		if !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out
}

func policySlots(namespace string, targets []model.PolicyTarget, selector map[string]string) []Dep {
	switch {
	case len(targets) > 0:
		var out []Dep
		for _, t := range targets {
			if d := (Dep{Target, TargetName(t.Kind, t.Key)}); !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
		return out
	case len(selector) > 0:
		return []Dep{{Selected, namespace}}
	}
	return []Dep{{Wide, namespace}}
}

// ParentName is the name of a parent in a Dep.
func ParentName(kind model.ParentKind, key model.Key, host string) string {
	switch kind {
	case model.ParentService:
		return TargetName("Service", key)
	case model.ParentServiceEntry:
		return TargetName("ServiceEntry", key)
	case model.ParentMesh:
		return "Host/" + host
	case model.ParentIstioGateway:
		return TargetName("IstioGateway", key)
	}
	return TargetName("Gateway", key)
}

// TargetName is the name of a policy's target in a Dep. GatewayClasses have no namespace.
func TargetName(kind string, key model.Key) string {
	if kind == "GatewayClass" {
		return kind + "//" + key.Name
	}
	return kind + "/" + key.Namespace + "/" + key.Name
}

// MetaOf returns what every object of layer 7 carries.
func MetaOf(o any) model.Meta {
	switch o := o.(type) {
	case *model.Route:
		return o.Meta
	case *model.Gateway:
		return o.Meta
	case *model.GatewayClass:
		return o.Meta
	case *model.DestinationRule:
		return o.Meta
	case *model.ServiceEntry:
		return o.Meta
	case *model.Grant:
		return o.Meta
	case *model.BackendTLS:
		return o.Meta
	case *model.Authorization:
		return o.Meta
	case *model.JWTPolicy:
		return o.Meta
	case *model.Telemetry:
		return o.Meta
	case *model.RateLimit:
		return o.Meta
	}
	return model.Meta{}
}

// Older orders objects by Gateway API's rule for conflicts: the oldest first, then by namespace and name.
func Older(a, b model.Meta) int {
	return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Namespace, b.Namespace),
		strings.Compare(a.Name, b.Name), strings.Compare(string(a.Kind), string(b.Kind)))
}
