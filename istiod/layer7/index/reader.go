package index

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/istiod/graph"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// Mesh is what layer 7 asks of the graph.
type Mesh interface {
	Service(model.Key) *model.Service
	Services() []*model.Service
	Endpoints(model.Key) []graph.Endpoint
	Binding(model.Key) graph.Binding
	BindingOf(ref model.WaypointRef, namespace string) graph.Binding
	Namespace(name string) *model.Namespace
	NamespaceList() []*model.Namespace
	PodsByLabels(namespace string, selector map[string]string) []*model.Pod
	PodsUsing(waypoint model.Key) []*model.Pod
	Locality(node string) model.Locality
	SetWaypoint(model.Key, *model.Waypoint)
	SetServed(waypoint model.Key, names []string, served bool)
	SetCallers(proxy model.Key, account string, hosts []string)
	SetEntry(model.Key, *model.ServiceEntry)
}

// World is everything that can be asked, beside the objects of the store.
type World struct {
	translate.Config
	Store *Store
	Mesh  Mesh
	// MeshConfig is never nil.
	MeshConfig *model.MeshConfig
	// Attachments lists the routes that are attached to a gateway, in order, computed by layer7.
	Attachments func(gateway ID) []Attachment
	// Now is when the computation runs: certificates expire.
	Now time.Time
	// KeySet returns a key set by its address: empty until it has been fetched.
	KeySet func(issuer, uri string) string
}

// Attachment is a route attached to some listeners of a gateway.
type Attachment struct {
	Route *model.Route
	// Listeners are the names of the gateway's listeners; Parent the reference by which it is attached.
	Listeners []string
	Parent    model.Parent
}

// Reader answers questions and notes them.
type Reader struct {
	World
	asked map[Dep]struct{}
}

// NewReader starts a computation.
func NewReader(w World) *Reader { return &Reader{World: w, asked: map[Dep]struct{}{}} }

// Asked returns what was asked.
func (r *Reader) Asked() map[Dep]struct{} { return r.asked }

// Note records a question that was asked of something else.
func (r *Reader) Note(d Dep) { r.asked[d] = struct{}{} }

func (r *Reader) note(kind DepKind, name string) { r.asked[Dep{kind, name}] = struct{}{} }

// NewID names an object.
func NewID(kind model.Kind, key model.Key) ID { return ID{Kind: kind, Key: key} }

// get returns an object of a type; its zero value, nil, if there is none.
func get[T any](r *Reader, id ID) T {
	r.note(Object, id.String())
	o, _ := r.Store.objects[id].(T)
	return o
}

// list returns the objects of a type that are filed under a question, in order.
func list[T any](r *Reader, kind DepKind, name string) []T {
	d := Dep{kind, name}
	r.asked[d] = struct{}{}
	var out []T
	for id := range r.Store.filed[d] {
		if o, ok := r.Store.objects[id].(T); ok {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b T) int { return Older(MetaOf(a), MetaOf(b)) })
	return out
}

// Gateway returns a Gateway of the Gateway API, or nil.
func (r *Reader) Gateway(k model.Key) *model.Gateway {
	return get[*model.Gateway](r, NewID(model.KindGateway, k))
}

// IstioGateway returns a Gateway of Istio's API, or nil.
func (r *Reader) IstioGateway(k model.Key) *model.Gateway {
	return get[*model.Gateway](r, NewID(model.KindIstioGateway, k))
}

// IstioGatewayList lists all of Istio's Gateways, oldest first.
func (r *Reader) IstioGatewayList() []*model.Gateway {
	return list[*model.Gateway](r, IstioGateways, "")
}

// Class returns a GatewayClass, or nil.
func (r *Reader) Class(name string) *model.GatewayClass {
	return get[*model.GatewayClass](r, NewID(model.KindGatewayClass, model.Key{Name: name}))
}

// Entry returns a ServiceEntry, or nil.
func (r *Reader) Entry(k model.Key) *model.ServiceEntry {
	return get[*model.ServiceEntry](r, NewID(model.KindServiceEntry, k))
}

// Route returns a route, or nil.
func (r *Reader) Route(kind model.Kind, k model.Key) *model.Route {
	return get[*model.Route](r, NewID(kind, k))
}

// RoutesOf lists the routes that name a parent.
func (r *Reader) RoutesOf(kind model.ParentKind, key model.Key, host string) []*model.Route {
	return list[*model.Route](r, Parent, ParentName(kind, key, host))
}

// WildcardRoutes lists the VirtualServices with a wildcard among their hosts.
func (r *Reader) WildcardRoutes() []*model.Route { return list[*model.Route](r, AnyHost, "") }

// Rules lists the DestinationRules that may be for a host: those of the host itself, then those with wildcards.
func (r *Reader) Rules(host string) []*model.DestinationRule {
	out := list[*model.DestinationRule](r, Rule, host)
	for _, d := range list[*model.DestinationRule](r, AnyRule, "") {
		if HostMatches(d.Host, host) {
			out = append(out, d)
		}
	}
	return out
}

// Granted tells whether a ReferenceGrant allows a reference; nil needs none.
func (r *Reader) Granted(ref *model.Reference) bool {
	if ref == nil {
		return true
	}
	for _, g := range list[*model.Grant](r, Grants, ref.ToNamespace) {
		from := slices.ContainsFunc(g.From, func(f model.GrantFrom) bool {
			return f.Group == ref.FromGroup && f.Kind == ref.FromKind && f.Namespace == ref.FromNamespace
		})
		if from && slices.ContainsFunc(g.To, func(t model.GrantTo) bool {
			return t.Group == ref.ToGroup && t.Kind == ref.ToKind && (t.Name == "" || t.Name == ref.ToName)
		}) {
			return true
		}
	}
	return false
}

// Targeting lists the policies of a type that name a target.
func Targeting[T any](r *Reader, kind string, key model.Key) []T {
	return list[T](r, Target, TargetName(kind, key))
}

// WideIn lists the policies of a type that are for a whole namespace.
func WideIn[T any](r *Reader, namespace string) []T { return list[T](r, Wide, namespace) }

// SelectedIn lists the policies of a type that choose workloads of a namespace by labels.
func SelectedIn[T any](r *Reader, namespace string) []T { return list[T](r, Selected, namespace) }

// Data returns the data of a Secret or ConfigMap; false if there is none.
func (r *Reader) Data(ref model.ObjectRef) (map[string][]byte, bool) {
	o := get[*Data](r, NewID(ref.Kind, ref.Key))
	if o == nil {
		return nil, false
	}
	return o.Data, true
}

// Data is what of a Secret or ConfigMap is kept.
type Data struct{ Data map[string][]byte }

// Service is a host that traffic can be sent to.
type Service struct {
	// Key is the Service's or ServiceEntry's.
	model.Key
	Host  string
	VIPs  []netip.Addr
	Ports []model.ServicePort
	// One of them is set.
	Kube  *model.Service
	Entry *model.ServiceEntry
}

// Port returns a port of the service; 0 means its only one.
func (s *Service) Port(n uint16) (model.ServicePort, bool) {
	if n == 0 && len(s.Ports) == 1 {
		return s.Ports[0], true
	}
	for _, p := range s.Ports {
		if p.Port == n {
			return p, true
		}
	}
	return model.ServicePort{}, false
}

// Kind is the API's name of what it is.
func (s *Service) Kind() string {
	if s.Kube != nil {
		return "Service"
	}
	return "ServiceEntry"
}

// KubeService returns a Kubernetes Service, or nil.
func (r *Reader) KubeService(k model.Key) *Service {
	host := translate.ServiceHostname(r.Config, k)
	r.note(Host, host)
	if s := r.Mesh.Service(k); s != nil {
		return &Service{Key: k, Host: s.Hostname, VIPs: s.VIPs, Ports: s.Ports, Kube: s}
	}
	return nil
}

// EntryService is a host of a ServiceEntry.
func EntryService(e *model.ServiceEntry, host string) *Service {
	s := &Service{Key: e.Key, Host: host, Ports: e.Ports, Entry: e}
	for _, p := range e.Addresses {
		if p.IsSingleIP() {
			s.VIPs = append(s.VIPs, p.Addr())
		}
	}
	return s
}

// ServiceFor finds who owns a host, as a client in the namespace sees it: the Kubernetes Service; else a ServiceEntry
// of the namespace itself, else the oldest that is exported to it, exact names before wildcards.
func (r *Reader) ServiceFor(host, namespace string) *Service {
	if k, ok := r.kubeHost(host); ok {
		if s := r.KubeService(k); s != nil {
			return s
		}
	}
	if e := visible(list[*model.ServiceEntry](r, Host, host), namespace); e != nil {
		return EntryService(e, host)
	}
	var best *Service
	for _, e := range list[*model.ServiceEntry](r, WildHost, "") {
		for _, h := range e.Hosts {
			if HostMatches(h, host) && Exported(e.ExportTo, e.Namespace, namespace) && (best == nil || len(h) > len(best.Host)) {
				best = EntryService(e, h)
			}
		}
	}
	return best
}

// HostKey names the Kubernetes Service that has a host name.
func (r *Reader) HostKey(host string) (model.Key, bool) { return r.kubeHost(host) }

// kubeHost takes a Kubernetes Service's host name apart.
func (r *Reader) kubeHost(host string) (model.Key, bool) {
	name, ok := strings.CutSuffix(host, ".svc."+r.Domain)
	if !ok {
		return model.Key{}, false
	}
	svc, ns, ok := strings.Cut(name, ".")
	return model.Key{Namespace: ns, Name: svc}, ok && !strings.Contains(ns, ".")
}

func visible(entries []*model.ServiceEntry, namespace string) *model.ServiceEntry {
	for _, e := range entries {
		if e.Namespace == namespace {
			return e
		}
	}
	for _, e := range entries {
		if Exported(e.ExportTo, e.Namespace, namespace) {
			return e
		}
	}
	return nil
}

// Exported tells whether an object of the namespace own with this exportTo is for the namespace other.
func Exported(exportTo []string, own, other string) bool {
	if len(exportTo) == 0 {
		return true
	}
	return slices.ContainsFunc(exportTo, func(e string) bool { return e == "*" || e == other || e == "." && own == other })
}

// HostMatches tells whether a host, itself perhaps with a wildcard, is covered by a pattern of Istio's.
func HostMatches(pattern, host string) bool {
	if suffix, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(strings.TrimPrefix(host, "*"), suffix)
	}
	return pattern == host
}

// EndpointsOf lists what stands behind a Kubernetes Service.
func (r *Reader) EndpointsOf(k model.Key) []graph.Endpoint {
	r.note(Endpoints, k.String())
	return r.Mesh.Endpoints(k)
}

// BindingOf returns which waypoint a service uses.
func (r *Reader) BindingOf(s *Service) graph.Binding {
	if s.Kube != nil {
		r.note(Binding, s.Key.String())
		return r.Mesh.Binding(s.Key)
	}
	r.note(Namespace, s.Namespace)
	r.note(Binding, AllEntries)
	return r.Mesh.BindingOf(s.Entry.Waypoint, s.Namespace)
}

// AllEntries is the name under which ServiceEntries ask for their waypoint: there are few waypoints and they seldom change.
const AllEntries = "entries"

// NamespaceOf returns a namespace, or nil.
func (r *Reader) NamespaceOf(name string) *model.Namespace {
	r.note(Namespace, name)
	return r.Mesh.Namespace(name)
}

// AllNamespaces lists all namespaces.
func (r *Reader) AllNamespaces() []*model.Namespace {
	r.note(Namespaces, "")
	return r.Mesh.NamespaceList()
}

// PodsIn lists the pods that labels choose; an empty namespace means all.
func (r *Reader) PodsIn(namespace string, labels map[string]string) []*model.Pod {
	r.note(Pods, namespace)
	return r.Mesh.PodsByLabels(namespace, labels)
}

// PodsUsing lists the pods that are reached through a waypoint by their own address.
func (r *Reader) PodsUsing(waypoint model.Key) []*model.Pod {
	r.note(Pods, "")
	return r.Mesh.PodsUsing(waypoint)
}

// AttachedTo lists the routes attached to a gateway.
func (r *Reader) AttachedTo(gateway ID) []Attachment {
	r.note(Attached, gateway.String())
	return r.Attachments(gateway)
}

// Settings returns the mesh's configuration.
func (r *Reader) Settings() *model.MeshConfig {
	r.note(Object, meshConfig.String())
	return r.MeshConfig
}

// meshConfig stands for the mesh's configuration wherever it comes from.
var meshConfig = ID{Kind: "MeshConfig"}

// MeshConfigChanged is the Dep of the mesh's configuration.
func MeshConfigChanged() Dep { return Dep{Object, meshConfig.String()} }

// KeysOf returns a fetched key set.
func (r *Reader) KeysOf(issuer, uri string) string {
	r.note(Keys, issuer+" "+uri)
	return r.KeySet(issuer, uri)
}
