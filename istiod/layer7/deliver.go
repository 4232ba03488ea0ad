package layer7

import (
	"maps"
	"reflect"
	"slices"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/layer7/resolve"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
)

// delivery is what a proxy has been given.
type delivery struct {
	// own are the clusters that the proxy as a whole refers to.
	own []string
	// stale are units whose output was not rendered yet, by core, the proxy that the others were rendered for.
	stale map[unit]struct{}
	core  *model.Proxy
	whole *model.Proxy
	// given holds the resources of each unit, holders how many units give a resource.
	given   map[unit]map[resourceID]*push.Resource
	holders map[resourceID]int
	live    map[resourceID]*push.Resource
	// broken are units that could not be rendered, by what they are; flawed are those of which parts could not.
	broken     map[string]string
	flawed     map[string][]string
	registered string
	// served are the services that node proxies were told, or are about to be told, to send here.
	served map[string]bool
}

// resourceID names a resource of a proxy.
type resourceID struct{ typeURL, name string }

func newDelivery() delivery {
	return delivery{
		stale: map[unit]struct{}{}, given: map[unit]map[resourceID]*push.Resource{}, holders: map[resourceID]int{},
		live: map[resourceID]*push.Resource{}, broken: map[string]string{}, flawed: map[string][]string{}, served: map[string]bool{},
	}
}

// deliver renders what changed and hands it to the proxies' caches.
func (e *Engine) deliver() {
	for _, key := range e.ended {
		if e.proxies[key] == nil {
			e.caches.Remove(key)
		}
	}
	e.ended = nil
	for key, p := range e.proxies {
		if len(p.stale) > 0 && p.target != nil {
			e.deliverTo(key, p)
		}
	}
}

func (e *Engine) deliverTo(key model.Key, p *proxy) {
	s := e.units[unit{kind: unitProxy, proxy: key}]
	if s == nil {
		return
	}
	out, ok := s.output.(*proxyOutput)
	if !ok {
		return
	}
	p.whole = out.proxy
	if core := resolve.Core(out.proxy); !reflect.DeepEqual(core, p.core) {
		p.core = core
		for u := range e.units {
			if u.proxy == key && u.kind >= unitService && u.kind <= unitCluster {
				p.stale[u] = struct{}{}
			}
		}
	}
	touched := map[resourceID]struct{}{}
	stale := p.stale
	trouble := p.trouble()
	for u := range stale {
		e.renderUnit(p, u, touched)
	}
	if p.trouble() != trouble {
		// Its status says so; it is computed in the next round.
		e.mark(unit{kind: unitGateway, id: index.NewID(model.KindGateway, key)})
		e.poke()
	}
	p.stale = map[unit]struct{}{}
	cache := e.caches.Cache(key)
	if changes := p.changes(touched); len(changes) > 0 {
		cache.Apply(changes)
	}
	cache.Synced()
	if p.registered != p.target.ServiceAccount {
		p.registered = p.target.ServiceAccount
		e.caches.Register(key, p.registered)
	}
	for u := range stale {
		e.serve(key, p, u)
	}
}

// renderUnit replaces what a unit gives; what cannot be rendered stays as it was.
func (e *Engine) renderUnit(p *proxy, u unit, touched map[resourceID]struct{}) {
	var rs []Resource
	var err error
	if s := e.units[u]; s != nil {
		rs, err = e.renderOutput(p.whole, s.output)
	}
	now := map[resourceID]*push.Resource{}
	var flaws []string
	for _, r := range rs {
		if err != nil {
			break
		}
		for _, problem := range r.Problems {
			flaws = append(flaws, problem.Error())
		}
		var res *push.Resource
		if res, err = push.NewResource(r.Type, r.Name, r.Message, nil, nil); err == nil {
			now[resourceID{r.Type, r.Name}] = res
		}
	}
	name := describe(u)
	if err != nil {
		if p.broken[name] != err.Error() {
			p.broken[name] = err.Error()
			e.cfg.Log.Error("part of a proxy cannot be rendered; its last state stays", "proxy", p.target.Key.String(), "part", name, "error", err)
		}
		return
	}
	delete(p.broken, name)
	e.noteFlaws(p, name, flaws)
	old := p.given[u]
	for id, res := range now {
		if _, had := old[id]; !had {
			p.holders[id]++
		}
		if live := p.live[id]; live == nil || live.Version != res.Version {
			p.live[id] = res
			touched[id] = struct{}{}
		}
	}
	for id := range old {
		if _, stays := now[id]; stays {
			continue
		}
		p.holders[id]--
		if p.holders[id] == 0 {
			delete(p.holders, id)
			delete(p.live, id)
			touched[id] = struct{}{}
		}
	}
	if p.given[u] = now; len(now) == 0 {
		delete(p.given, u)
	}
}

// noteFlaws remembers parts of a unit that could not be written, and logs those that are new.
func (e *Engine) noteFlaws(p *proxy, unit string, flaws []string) {
	for _, f := range flaws {
		if !slices.Contains(p.flawed[unit], f) {
			e.cfg.Log.Error("rule cannot be rendered; its requests are answered with an error", "proxy", p.target.Key.String(), "part", unit, "error", f)
		}
	}
	if p.flawed[unit] = flaws; len(flaws) == 0 {
		delete(p.flawed, unit)
	}
}

// trouble is the first of what could not be rendered, in order of name; empty if all could.
func (d *delivery) trouble() string {
	if len(d.broken) > 0 {
		first := slices.Sorted(maps.Keys(d.broken))[0]
		return first + ": " + d.broken[first] + "; its last state stays"
	}
	if len(d.flawed) > 0 {
		first := slices.Sorted(maps.Keys(d.flawed))[0]
		return first + ": " + d.flawed[first][0]
	}
	return ""
}

// describe names a unit for people.
func describe(u unit) string {
	switch {
	case u.name != "":
		return u.name
	case u.id.Name != "":
		return u.id.String()
	}
	return "proxy"
}

func (e *Engine) renderOutput(p *model.Proxy, output any) ([]Resource, error) {
	switch o := output.(type) {
	case *proxyOutput:
		return e.render.Proxy(p)
	case *resolve.Output:
		var out []Resource
		for i := range o.Scopes {
			out = append(out, e.render.Scope(p, &o.Scopes[i])...)
		}
		for _, t := range o.Tables {
			rs, err := e.render.RouteTable(p, t)
			if err != nil {
				return nil, err
			}
			out = append(out, rs...)
		}
		return out, nil
	case *clusterOutput:
		out, err := e.render.Cluster(p, o.cluster)
		if err != nil || o.endpoints == nil {
			return out, err
		}
		eps, err := e.render.Endpoints(p, o.endpoints)
		if err != nil {
			return nil, err
		}
		return append(out, eps), nil
	}
	return nil, nil
}

// changes sorts what was touched by type.
func (p *proxy) changes(touched map[resourceID]struct{}) []push.Change {
	byType := map[string]*push.Change{}
	for id := range touched {
		c := byType[id.typeURL]
		if c == nil {
			c = &push.Change{Type: id.typeURL}
			byType[id.typeURL] = c
		}
		if res := p.live[id]; res != nil {
			c.Upsert = append(c.Upsert, res)
		} else {
			c.Removed = append(c.Removed, id.name)
		}
	}
	out := make([]push.Change, 0, len(byType))
	for _, t := range slices.Sorted(maps.Keys(byType)) {
		out = append(out, *byType[t])
	}
	return out
}
