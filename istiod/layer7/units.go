package layer7

import (
	"reflect"
	"slices"

	"github.com/ambit-mesh/ambit/istiod/graph"
	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/layer7/resolve"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// unitKind is what a unit computes. Kinds are computed in this order: what a later one reads of an earlier one is then
// up to date.
type unitKind uint8

const (
	unitClass unitKind = iota
	unitRoute
	unitGateway
	unitBinding
	unitTarget
	unitService
	unitPorts
	unitTable
	unitProxy
	unitCluster
	unitEntry
	unitPolicy
	unitKinds
)

// unit is one thing that is computed for itself. Which of the fields are set follows from its kind: id for an object,
// proxy for a part of a proxy, name for a host, a table or a cluster.
type unit struct {
	kind  unitKind
	proxy model.Key
	id    index.ID
	name  string
}

// state is what a unit came to when it was last computed, and what it asked.
type state struct {
	asked  map[index.Dep]struct{}
	output any
}

// unitsOf are the units that stand for an object.
func unitsOf(id index.ID) []unit {
	switch id.Kind {
	case model.KindGatewayClass:
		return []unit{{kind: unitClass, id: id}}
	case model.KindGateway:
		return []unit{{kind: unitGateway, id: id}}
	case model.KindHTTPRoute, model.KindGRPCRoute, model.KindTCPRoute, model.KindTLSRoute, model.KindVirtualService:
		return []unit{{kind: unitRoute, id: id}}
	case model.KindServiceEntry:
		return []unit{{kind: unitEntry, id: id}}
	case model.KindAuthorizationPolicy, model.KindRequestAuthentication, model.KindTelemetry, model.KindRateLimit,
		model.KindBackendTLSPolicy, model.KindDestinationRule, model.KindIstioGateway:
		return []unit{{kind: unitPolicy, id: id}}
	}
	return nil
}

// ensure makes a unit, which is dirty as long as it has never been computed.
func (e *Engine) ensure(u unit) {
	if e.units[u] == nil {
		e.units[u] = &state{}
		e.dirty[u.kind][u] = struct{}{}
	}
}

// mark makes a unit that exists dirty.
func (e *Engine) mark(u unit) {
	if e.units[u] != nil {
		e.dirty[u.kind][u] = struct{}{}
	}
}

// touch makes dirty whatever asked a question.
func (e *Engine) touch(d index.Dep) {
	for u := range e.subs[d] {
		e.dirty[u.kind][u] = struct{}{}
	}
}

// drop forgets a unit and takes back what it gave.
func (e *Engine) drop(u unit) {
	s := e.units[u]
	if s == nil {
		return
	}
	e.unsubscribe(u, s)
	delete(e.units, u)
	delete(e.dirty[u.kind], u)
	delete(e.parting, u)
	e.gone(u, s.output)
	if u.kind == unitService {
		e.unserve(u)
	}
}

func (e *Engine) unsubscribe(u unit, s *state) {
	for d := range s.asked {
		delete(e.subs[d], u)
		if len(e.subs[d]) == 0 {
			delete(e.subs, d)
		}
	}
	s.asked = nil
}

// world is what computations can ask.
func (e *Engine) world() index.World {
	return index.World{
		Config: e.cfg.Config, Store: e.store, Mesh: e.mesh, MeshConfig: e.meshConfig, Now: e.cfg.Now(),
		Attachments: e.attachments, KeySet: e.keySet,
	}
}

func (e *Engine) keySet(issuer, uri string) string {
	if e.cfg.Keys == nil {
		return ""
	}
	keys, _ := e.cfg.Keys.Get(uri, issuer) // the error is the policy's condition
	return keys
}

// attachments lists the routes attached to a gateway, oldest first.
func (e *Engine) attachments(gateway index.ID) []index.Attachment {
	var out []index.Attachment
	for u := range e.attached[gateway] {
		if r, ok := e.units[u].output.(*resolve.AttachResult); ok {
			out = append(out, r.Gateways[gateway])
		}
	}
	slices.SortFunc(out, func(a, b index.Attachment) int { return index.Older(a.Route.Meta, b.Route.Meta) })
	return out
}

// flush computes everything that is dirty, and hands on what came out different.
func (e *Engine) flush() {
	for e.readNotes() {
		w := e.world()
		for kind := range unitKinds {
			// A unit may make others of its own kind or of a later one dirty.
			for len(e.dirty[kind]) > 0 {
				batch := e.dirty[kind]
				e.dirty[kind] = map[unit]struct{}{}
				for u := range batch {
					e.compute(w, u)
				}
			}
		}
	}
	// Pods let a proxy in before it is told to come.
	e.tellCallers()
	e.deliver()
}

// compute runs one unit and compares what came out.
func (e *Engine) compute(w index.World, u unit) {
	s := e.units[u]
	if s == nil {
		return
	}
	r := index.NewReader(w)
	out := e.run(r, u)
	e.unsubscribe(u, s)
	s.asked = r.Asked()
	for d := range s.asked {
		if e.subs[d] == nil {
			e.subs[d] = map[unit]struct{}{}
		}
		e.subs[d][u] = struct{}{}
	}
	if old := s.output; !reflect.DeepEqual(old, out) {
		s.output = out
		e.became(u, old, out)
	}
}

// readNotes turns what the graph said into dirty units; false if there is nothing to do.
func (e *Engine) readNotes() bool {
	e.notesMu.Lock()
	notes, c := e.notes, e.changed
	e.forgetNotes()
	e.notesMu.Unlock()
	for _, d := range notes {
		e.touch(d)
	}
	e.readChanges(c)
	if e.first {
		e.seed()
	}
	for _, d := range e.dirty {
		if len(d) > 0 {
			return true
		}
	}
	return false
}

func (e *Engine) readChanges(c graph.Changes) {
	for k := range c.Services {
		e.touch(index.Dep{Kind: index.Host, Name: translate.ServiceHostname(e.cfg.Config, k)})
		e.touch(index.Dep{Kind: index.Binding, Name: k.String()})
		u := unit{kind: unitBinding, id: index.NewID(model.KindService, k)}
		if e.mesh.Service(k) != nil {
			e.ensure(u)
		} else {
			e.drop(u)
		}
	}
	for k := range c.Endpoints {
		e.touch(index.Dep{Kind: index.Endpoints, Name: k.String()})
	}
	for n := range c.Namespaces {
		e.touch(index.Dep{Kind: index.Namespace, Name: n})
		e.touch(index.Dep{Kind: index.Namespaces})
	}
	for n := range c.PodsIn {
		e.touch(index.Dep{Kind: index.Pods, Name: n})
		e.touch(index.Dep{Kind: index.Pods})
	}
}

// seed makes the units of services that the graph had before the engine listened.
func (e *Engine) seed() {
	for _, s := range e.mesh.Services() {
		e.ensure(unit{kind: unitBinding, id: index.NewID(model.KindService, s.Key)})
	}
}
