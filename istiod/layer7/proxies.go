package layer7

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/layer7/resolve"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// proxy is one waypoint or gateway.
type proxy struct {
	target *resolve.Target
	// parts are the outputs of services, ports and tables, by unit.
	parts map[unit]*resolve.Output
	// references count how many parts refer to a cluster.
	references map[string]int
	delivery
}

func compareUnits(a, b unit) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), strings.Compare(a.id.String(), b.id.String()), strings.Compare(a.name, b.name))
}

// became acts on what a unit came to. Either may be nil.
func (e *Engine) became(u unit, old, now any) {
	switch u.kind {
	case unitClass:
		st, _ := now.(*model.Status)
		e.setStatus(u.id, st)
	case unitRoute:
		e.routeBecame(u, old, now)
	case unitGateway:
		e.gatewayBecame(u, now)
	case unitBinding:
		e.bindingBecame(u, old, now)
	case unitTarget:
		e.targetBecame(u.proxy, now)
	case unitService, unitPorts, unitTable:
		e.partBecame(u, now)
	case unitProxy:
		e.proxyBecame(u, now)
	case unitCluster:
		if p := e.proxies[u.proxy]; p != nil {
			p.stale[u] = struct{}{}
		}
	case unitEntry:
		e.entryBecame(u, old, now)
	case unitPolicy:
		st, _ := now.(*model.Status)
		e.setStatus(u.id, st)
	}
}

// gone takes back what a unit gave.
func (e *Engine) gone(u unit, old any) {
	if old != nil {
		e.became(u, old, nil)
	}
}

func (e *Engine) routeBecame(u unit, old, now any) {
	if o, ok := old.(*resolve.AttachResult); ok {
		for id := range o.Gateways {
			delete(e.attached[id], u)
			e.touch(index.Dep{Kind: index.Attached, Name: id.String()})
		}
	}
	n, ok := now.(*resolve.AttachResult)
	if !ok {
		e.setStatus(u.id, nil)
		return
	}
	for id := range n.Gateways {
		if e.attached[id] == nil {
			e.attached[id] = map[unit]struct{}{}
		}
		e.attached[id][u] = struct{}{}
		e.touch(index.Dep{Kind: index.Attached, Name: id.String()})
	}
	e.setStatus(u.id, &n.Status)
}

// gatewayBecame makes the proxy of a Gateway, has it deployed, and tells the graph of a waypoint.
func (e *Engine) gatewayBecame(u unit, now any) {
	key := u.id.Key
	g, ok := now.(*gatewayOutput)
	target := unit{kind: unitTarget, proxy: key}
	if !ok {
		e.setWaypoint(key, nil)
		if e.joined[key] == nil {
			e.drop(target)
		}
		e.setStatus(u.id, nil)
		if e.cfg.Deployments != nil {
			e.cfg.Deployments.Delete(key)
		}
		return
	}
	e.ensure(target)
	e.setWaypoint(key, g.result.Waypoint)
	e.setStatus(u.id, &g.result.Status)
	if c := g.result.Status.Conditions; e.cfg.Deployments != nil && (len(c) > 0 && c[0].OK || e.deployed[key] != nil) {
		e.cfg.Deployments.Set(e.withClass(g.gateway))
	}
}

// withClass adds to a Gateway what its class says of its deployment.
func (e *Engine) withClass(g *model.Gateway) *model.Gateway {
	c, ok := e.store.Peek(index.NewID(model.KindGatewayClass, model.Key{Name: g.Class})).(*model.GatewayClass)
	if !ok || c.Parameters == nil {
		return g
	}
	out := *g
	out.ClassParameters = c.Parameters
	return &out
}

func (e *Engine) setWaypoint(key model.Key, w *model.Waypoint) {
	if reflect.DeepEqual(e.waypoints[key], w) {
		return
	}
	again := e.waypoints[key] == nil
	e.waypoints[key] = w
	if w == nil {
		delete(e.waypoints, key)
	}
	e.mesh.SetWaypoint(key, w)
	if p := e.proxies[key]; w != nil && again && p != nil {
		e.mesh.SetServed(key, slices.Collect(maps.Keys(p.served)), true)
	}
	e.touch(index.Dep{Kind: index.Binding, Name: index.AllEntries})
}

// bindingBecame gives waypoints a part for the service, or takes it from them.
func (e *Engine) bindingBecame(u unit, old, now any) {
	var before, after []model.Key
	if o, ok := old.(*bindingOutput); ok {
		before = o.waypoints
	}
	n, ok := now.(*bindingOutput)
	if ok {
		after = n.waypoints
	}
	e.rebind(u.id, "", before, after)
	if !ok || n.condition == nil {
		if old, was := e.statuses[u.id]; was {
			// An object that says nothing any more must lose what it said.
			e.setStatus(u.id, &model.Status{Meta: old.Meta})
		}
		if !ok {
			e.setStatus(u.id, nil)
		}
		return
	}
	meta := model.Meta{Kind: model.KindService, Key: u.id.Key}
	if s := e.mesh.Service(u.id.Key); s != nil {
		meta.Generation = s.Generation
	}
	e.setStatus(u.id, &model.Status{Meta: meta, Conditions: []model.Condition{*n.condition}})
}

func (e *Engine) rebind(id index.ID, host string, before, after []model.Key) {
	for _, w := range before {
		if !slices.Contains(after, w) {
			e.part(unit{kind: unitService, proxy: w, id: id, name: host})
		}
	}
	for _, w := range after {
		if p := e.proxies[w]; p != nil && p.target != nil && p.target.Waypoint {
			u := unit{kind: unitService, proxy: w, id: id, name: host}
			delete(e.parting, u)
			e.ensure(u)
		}
	}
}

// part lets a waypoint go on serving a service that has left it for a while: node proxies have yet to hear of it, and
// connections that came through the waypoint live on. A service that is gone leaves at once.
func (e *Engine) part(u unit) {
	if e.units[u] == nil {
		return
	}
	there := e.mesh.Service(u.id.Key) != nil
	if u.id.Kind == model.KindServiceEntry {
		there = e.store.Peek(u.id) != nil
	}
	if !there {
		e.drop(u)
		return
	}
	e.parting[u] = e.cfg.Now().Add(linger)
}

// leave ends what has lingered long enough.
func (e *Engine) leave() {
	now := e.cfg.Now()
	for u, until := range e.parting {
		if now.After(until) {
			delete(e.parting, u)
			e.drop(u)
		}
	}
}

func (e *Engine) entryBecame(u unit, old, now any) {
	o, _ := old.(*entryOutput)
	n, _ := now.(*entryOutput)
	if o != nil {
		for _, h := range o.hosts {
			var after []model.Key
			if n != nil && slices.Contains(n.hosts, h) {
				after = n.waypoints
			}
			e.rebind(u.id, h, o.waypoints, after)
		}
	}
	if n == nil {
		e.setStatus(u.id, nil)
		return
	}
	for _, h := range n.hosts {
		e.rebind(u.id, h, nil, n.waypoints)
	}
	e.setStatus(u.id, &n.status)
}

// targetBecame makes, changes or ends a proxy.
func (e *Engine) targetBecame(key model.Key, now any) {
	t, ok := now.(*resolve.Target)
	p := e.proxies[key]
	if !ok {
		if p == nil {
			return
		}
		for u := range e.units {
			if u.proxy == key && u.kind != unitTarget {
				e.drop(u)
			}
		}
		delete(e.proxies, key)
		e.ended = append(e.ended, key)
		e.calling[key] = struct{}{}
		return
	}
	if p == nil {
		p = &proxy{parts: map[unit]*resolve.Output{}, references: map[string]int{}, delivery: newDelivery()}
		e.proxies[key] = p
	}
	p.target = t
	e.calling[key] = struct{}{}
	e.ensure(unit{kind: unitProxy, proxy: key})
	if t.Waypoint {
		e.bindAll(key)
	} else {
		e.ensure(unit{kind: unitPorts, proxy: key})
	}
	// What a part is may depend on any of what the proxy is.
	for u := range e.units {
		if u.proxy == key && u.kind != unitTarget {
			e.mark(u)
		}
	}
}

// bindAll gives a new waypoint the services that had been bound to it before it was made.
func (e *Engine) bindAll(key model.Key) {
	for u, s := range e.units {
		switch o := s.output.(type) {
		case *bindingOutput:
			if slices.Contains(o.waypoints, key) {
				e.ensure(unit{kind: unitService, proxy: key, id: u.id})
			}
		case *entryOutput:
			if slices.Contains(o.waypoints, key) {
				for _, h := range o.hosts {
					e.ensure(unit{kind: unitService, proxy: key, id: u.id, name: h})
				}
			}
		}
	}
}

// partBecame stores a part, counts what it refers to, and has the whole looked at again.
func (e *Engine) partBecame(u unit, now any) {
	p := e.proxies[u.proxy]
	if p == nil {
		return
	}
	old := p.parts[u]
	out, ok := now.(*resolve.Output)
	if ok {
		p.parts[u] = out
	} else {
		delete(p.parts, u)
		out = &resolve.Output{}
	}
	if old == nil {
		old = &resolve.Output{}
	}
	e.refer(u.proxy, p, old.Clusters, out.Clusters)
	if u.kind == unitPorts {
		e.retable(u.proxy, old.TableNames, out.TableNames)
	}
	if !sameNeeds(old, out) {
		e.mark(unit{kind: unitProxy, proxy: u.proxy})
	}
	p.stale[u] = struct{}{}
}

// sameNeeds tells that two outputs of a part mean the same to the proxy as a whole.
func sameNeeds(a, b *resolve.Output) bool {
	return reflect.DeepEqual(a.Scopes, b.Scopes) && reflect.DeepEqual(a.Ports, b.Ports) && reflect.DeepEqual(a.JWT, b.JWT) &&
		reflect.DeepEqual(a.ExtAuthz, b.ExtAuthz) && reflect.DeepEqual(a.Limits, b.Limits)
}

func (e *Engine) retable(key model.Key, before, after []string) {
	for _, n := range before {
		if !slices.Contains(after, n) {
			e.drop(unit{kind: unitTable, proxy: key, name: n})
		}
	}
	for _, n := range after {
		e.ensure(unit{kind: unitTable, proxy: key, name: n})
	}
}

// refer makes the clusters that are referred to for the first time, and ends those that nobody refers to.
func (e *Engine) refer(key model.Key, p *proxy, before, after []string) {
	changed := false
	for _, c := range after {
		p.references[c]++
		if p.references[c] == 1 {
			e.ensure(unit{kind: unitCluster, proxy: key, name: c})
			changed = true
		}
	}
	for _, c := range before {
		p.references[c]--
		if p.references[c] == 0 {
			delete(p.references, c)
			e.drop(unit{kind: unitCluster, proxy: key, name: c})
			changed = true
		}
	}
	if changed {
		e.calling[key] = struct{}{}
		e.touch(index.Dep{Kind: index.Attached, Name: allClusters})
	}
}

func (e *Engine) proxyBecame(u unit, now any) {
	p := e.proxies[u.proxy]
	if p == nil {
		return
	}
	out, ok := now.(*proxyOutput)
	own := resolve.Output{}
	if ok {
		own = out.own
	}
	e.refer(u.proxy, p, p.own, own.Clusters)
	p.own = own.Clusters
	p.stale[u] = struct{}{}
}

// setStatus keeps a verdict and tells who writes it. What could not be read says so, whatever else is said.
func (e *Engine) setStatus(id index.ID, st *model.Status) {
	if st == nil {
		delete(e.statuses, id)
		e.tell(id)
		return
	}
	e.statuses[id] = st
	e.tell(id)
}

// announce tells an object's status again, because it could not be read, or can again.
func (e *Engine) announce(id index.ID) { e.tell(id) }

func (e *Engine) tell(id index.ID) {
	st := e.status(id)
	if e.cfg.Statuses == nil {
		return
	}
	if st == nil {
		e.cfg.Statuses.Delete(id.Kind, id.Key)
		return
	}
	e.cfg.Statuses.Set(st)
}

// status is what an object is told: nil for nothing.
func (e *Engine) status(id index.ID) *model.Status {
	st := e.statuses[id]
	f, bad := e.failed[id]
	if !bad {
		return st
	}
	out := model.Status{Meta: f.meta}
	if st != nil {
		out = *st
		out.Meta = f.meta
	}
	message := f.reason
	if f.lastGood {
		message += " (the last good form of the object is in force)"
	}
	c := model.Condition{Type: conditionAccepted, Reason: "Invalid", Message: message}
	out.Conditions = replace(out.Conditions, c)
	return &out
}

// conditionAccepted is the type of the verdict on an object as a whole.
const conditionAccepted = "Accepted"
