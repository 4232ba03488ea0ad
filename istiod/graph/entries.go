package graph

import (
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// SetEntry stores a ServiceEntry, nil to remove it. Package layer7 reads them; the graph tells ztunnels.
func (g *Graph) SetEntry(k model.Key, e *model.ServiceEntry) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.entries, k)
	if e != nil {
		g.entries[k] = e
	}
	g.dirty.entries[k] = struct{}{}
	if g.synced {
		g.flush()
	}
	g.tell()
}

// markEntries marks the entries that may use a waypoint, or whose namespace changed: there are few.
func (g *Graph) markEntries() {
	for k := range g.entries {
		g.dirty.entries[k] = struct{}{}
	}
}

// flushEntry makes the outputs of a ServiceEntry, and takes back those of its last form that are no more.
func (g *Graph) flushEntry(c *collector, k model.Key) {
	before := g.entryOutputs[k]
	now := map[string]struct{}{}
	if e := g.entries[k]; e != nil {
		b := g.bind(e.Waypoint, nil, k.Namespace)
		for _, host := range e.Hosts { // all of them are served, or none
			b.Waypoint, b.Canary = g.usable(b.Waypoint, k.Namespace+"/"+host), g.usable(b.Canary, k.Namespace+"/"+host)
		}
		if translate.EntryPublished(e, b.Waypoint) {
			g.putEntry(c, e, b, now)
		}
	}
	for name := range before {
		if _, stays := now[name]; !stays {
			c.remove(name)
		}
	}
	g.entryOutputs[k] = now
	if len(now) == 0 {
		delete(g.entryOutputs, k)
	}
}

func (g *Graph) putEntry(c *collector, e *model.ServiceEntry, b Binding, now map[string]struct{}) {
	in := translate.ServiceInputs{Waypoint: b.Waypoint, Canary: b.Canary, CanaryWeight: b.CanaryWeight, IngressWaypoint: b.Ingress}
	var aliases []string
	for _, p := range e.Addresses {
		if p.IsSingleIP() {
			aliases = append(aliases, translate.NetworkIP(g.cfg.Network, p.Addr()))
		}
	}
	var keys []string
	for _, host := range e.Hosts {
		name := e.Namespace + "/" + host
		if g.outputs[c.change.Type][name] != nil {
			if _, mine := g.entryOutputs[e.Key][name]; !mine {
				continue // a Service, or an older entry, of the same namespace has the name
			}
		}
		wire := translate.EntryWire(g.cfg.Config, e, host, in)
		c.put(name, &workload.Address{Type: &workload.Address_Service{Service: wire}}, aliases, nil)
		now[name] = struct{}{}
		keys = append(keys, name)
	}
	for i := range e.Endpoints {
		ep := &e.Endpoints[i]
		if !ep.Address.IsValid() {
			continue
		}
		uid := translate.EntryUID(g.cfg.Config, e, ep.Address)
		c.put(uid, &workload.Address{Type: &workload.Address_Workload{Workload: translate.EntryWorkload(g.cfg.Config, e, ep)}},
			[]string{translate.NetworkIP(g.cfg.Network, ep.Address)}, keys)
		now[uid] = struct{}{}
	}
}
