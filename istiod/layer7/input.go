package layer7

import (
	"fmt"
	"reflect"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/ratelimit/v1alpha1"
	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate/gatewayapi"
	"github.com/ambit-mesh/ambit/istiod/translate/istionet"
	"github.com/ambit-mesh/ambit/istiod/translate/istiopolicy"
	"github.com/ambit-mesh/ambit/istiod/watch"
)

// meshConfigName and meshConfigKey are where Istio keeps the mesh's configuration, in the root namespace.
const (
	meshConfigName = "istio"
	meshConfigKey  = "mesh"
)

// translation is what became of an object: nil with an error is an object of which nothing can be used.
type translation struct {
	object any
	err    error
	// ours is false for kinds that are not layer 7's.
	ours bool
}

// as reads an object with one of the translators.
func as[O any, M any](o any, read func(*O) (*M, error)) translation {
	in, ok := o.(*O)
	if !ok {
		return translation{ours: true, err: fmt.Errorf("handle object: got a %T", o)}
	}
	m, err := read(in)
	if m == nil {
		return translation{ours: true, err: err}
	}
	return translation{ours: true, err: err, object: m}
}

// sure makes a translator that cannot fail into one that could.
func sure[O any, M any](read func(*O) *M) func(*O) (*M, error) {
	return func(o *O) (*M, error) { return read(o), nil }
}

// translate reads an object of layer 7.
func (e *Engine) translate(kind model.Kind, o any) translation {
	c := e.cfg.Config
	switch kind {
	case model.KindGatewayClass:
		return as(o, sure(gatewayapi.GatewayClass))
	case model.KindGateway:
		return as(o, func(g *gwv1.Gateway) (*model.Gateway, error) { return gatewayapi.Gateway(g, e.isWaypoint), nil })
	case model.KindHTTPRoute:
		return as(o, func(r *gwv1.HTTPRoute) (*model.Route, error) { return gatewayapi.HTTPRoute(c, r), nil })
	case model.KindGRPCRoute:
		return as(o, func(r *gwv1.GRPCRoute) (*model.Route, error) { return gatewayapi.GRPCRoute(c, r), nil })
	case model.KindTCPRoute:
		return as(o, func(r *gwv1.TCPRoute) (*model.Route, error) { return gatewayapi.TCPRoute(c, r), nil })
	case model.KindTLSRoute:
		return as(o, func(r *gwv1.TLSRoute) (*model.Route, error) { return gatewayapi.TLSRoute(c, r), nil })
	case model.KindReferenceGrant:
		return as(o, sure(gatewayapi.ReferenceGrant))
	case model.KindBackendTLSPolicy:
		return as(o, sure(gatewayapi.BackendTLSPolicy))
	case model.KindSecret:
		return as(o, sure(func(s *corev1.Secret) *index.Data { return &index.Data{Data: s.Data} }))
	case model.KindConfigMap:
		return as(o, sure(configMap))
	}
	return e.translateIstio(kind, o)
}

func (e *Engine) translateIstio(kind model.Kind, o any) translation {
	c := e.cfg.Config
	switch kind {
	case model.KindVirtualService:
		return as(o, func(v *networkingv1.VirtualService) (*model.Route, error) { return istionet.VirtualService(c, v) })
	case model.KindDestinationRule:
		return as(o, func(d *networkingv1.DestinationRule) (*model.DestinationRule, error) {
			return istionet.DestinationRule(c, d)
		})
	case model.KindServiceEntry:
		return as(o, func(s *networkingv1.ServiceEntry) (*model.ServiceEntry, error) { return istionet.ServiceEntry(c, s) })
	case model.KindIstioGateway:
		return as(o, func(g *networkingv1.Gateway) (*model.Gateway, error) { return istionet.Gateway(c, g) })
	case model.KindAuthorizationPolicy:
		return as(o, func(p *securityv1.AuthorizationPolicy) (*model.Authorization, error) {
			return istiopolicy.Authorization(c, p)
		})
	case model.KindRequestAuthentication:
		return as(o, func(p *securityv1.RequestAuthentication) (*model.JWTPolicy, error) {
			return istiopolicy.RequestAuthentication(c, p)
		})
	case model.KindTelemetry:
		return as(o, func(t *telemetryv1.Telemetry) (*model.Telemetry, error) { return istiopolicy.Telemetry(c, t) })
	case model.KindRateLimit:
		return as(o, func(l *v1alpha1.RateLimit) (*model.RateLimit, error) { return istiopolicy.RateLimit(c, l) })
	}
	return translation{}
}

func configMap(m *corev1.ConfigMap) *index.Data {
	out := &index.Data{Data: map[string][]byte{}}
	for k, v := range m.Data {
		out.Data[k] = []byte(v)
	}
	return out
}

// isWaypoint tells whether a class is one of waypoints.
func (e *Engine) isWaypoint(class string) bool {
	c, ok := e.store.Peek(index.NewID(model.KindGatewayClass, model.Key{Name: class})).(*model.GatewayClass)
	return ok && c.Waypoint
}

// take stores one object and marks what depends on it.
func (e *Engine) take(ev watch.Event) {
	id := index.NewID(ev.Kind, ev.Key)
	if ev.Kind == model.KindConfigMap && ev.Key == (model.Key{Namespace: e.cfg.RootNamespace, Name: meshConfigName}) {
		e.takeMeshConfig(ev)
	}
	if g, ok := ev.Object.(*gwv1.Gateway); ok {
		e.gateways[ev.Key] = g
	}
	if ev.Object == nil {
		if ev.Kind == model.KindGateway {
			delete(e.gateways, ev.Key)
		}
		if e.store.Peek(id) != nil || e.failed[id].reason != "" {
			e.record(id, ev, translation{}, false)
			e.put(id, nil)
		}
		return
	}
	t := e.translate(ev.Kind, ev.Object)
	if !t.ours {
		return
	}
	old := e.store.Peek(id)
	e.record(id, ev, t, old != nil)
	// What cannot be read is used only where it is still safe, which its translator sees to, and nothing better exists.
	if t.object == nil || t.err != nil && old != nil {
		e.announce(id)
		return
	}
	if old != nil && reflect.DeepEqual(old, t.object) {
		e.announce(id)
		return // only its status changed, or a field that nobody reads
	}
	e.put(id, t.object)
	if ev.Kind == model.KindGatewayClass {
		e.reclass(ev.Key.Name)
	}
}

// reclass reads the Gateways of a class again: what a listener may be depends on whether they are waypoints.
func (e *Engine) reclass(class string) {
	for key, g := range e.gateways {
		if string(g.Spec.GatewayClassName) == class {
			e.take(watch.Event{Kind: model.KindGateway, Key: key, Object: g})
		}
	}
}

// put stores an object and the units that stand for it.
func (e *Engine) put(id index.ID, o any) {
	for _, d := range e.store.Put(id, o) {
		e.touch(d)
	}
	if id.Kind == model.KindServiceEntry {
		entry, _ := o.(*model.ServiceEntry)
		e.mesh.SetEntry(id.Key, entry)
	}
	e.keepKeys(id, o)
	for _, u := range unitsOf(id) {
		if o != nil {
			e.ensure(u)
			e.mark(u)
		} else {
			e.drop(u)
		}
	}
	if o == nil {
		e.setStatus(id, nil)
	}
}

// keepKeys has key sets forgotten that no policy asks for any more.
func (e *Engine) keepKeys(id index.ID, o any) {
	if id.Kind != model.KindRequestAuthentication || e.cfg.Keys == nil {
		return
	}
	now := map[keySource]struct{}{}
	if p, ok := o.(*model.JWTPolicy); ok {
		for _, r := range p.Rules {
			if r.JWKS == "" {
				now[keySource{r.JWKSURI, r.Issuer}] = struct{}{}
			}
		}
	}
	before := e.keys[id]
	e.keys[id] = now
	if len(now) == 0 {
		delete(e.keys, id)
	}
	for k := range before {
		used := false
		for _, other := range e.keys {
			_, has := other[k]
			used = used || has
		}
		if !used {
			e.cfg.Keys.Forget(k.uri, k.issuer)
		}
	}
}

// keySource is where a policy's keys come from.
type keySource struct{ uri, issuer string }

// takeMeshConfig reads the mesh's configuration; a bad one leaves the last in force.
func (e *Engine) takeMeshConfig(ev watch.Event) {
	id := index.ID{Kind: "MeshConfig", Key: ev.Key}
	m := &model.MeshConfig{}
	var err error
	if cm, ok := ev.Object.(*corev1.ConfigMap); ok {
		m, err = istiopolicy.MeshConfig([]byte(cm.Data[meshConfigKey]))
	}
	e.record(id, ev, translation{err: err}, true)
	if err != nil || reflect.DeepEqual(m, e.meshConfig) {
		return
	}
	e.meshConfig = m
	e.touch(index.MeshConfigChanged())
}

// record keeps the list of objects that cannot be translated.
func (e *Engine) record(id index.ID, ev watch.Event, t translation, lastGood bool) {
	if t.err == nil {
		if _, was := e.failed[id]; was {
			delete(e.failed, id)
			e.errors.DeleteLabelValues(string(id.Kind), id.Namespace, id.Name)
		}
		return
	}
	f := failure{origin: ev.Origin, reason: t.err.Error(), lastGood: lastGood, meta: model.Meta{Kind: id.Kind, Key: id.Key}}
	if m, ok := ev.Object.(metav1.Object); ok {
		f.meta.UID, f.meta.Generation, f.meta.Created = string(m.GetUID()), m.GetGeneration(), m.GetCreationTimestamp().Time
	}
	e.failed[id] = f
	e.errors.WithLabelValues(string(id.Kind), id.Namespace, id.Name).Set(1)
	e.cfg.Log.Error("object cannot be used", "kind", string(id.Kind), "namespace", id.Namespace, "name", id.Name,
		"origin", ev.Origin, "lastGoodInForce", lastGood, "error", t.err)
}
