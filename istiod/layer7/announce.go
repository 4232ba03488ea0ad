package layer7

import (
	"maps"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/istiod/layer7/resolve"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// Make before break: node proxies send a service's traffic to its waypoint only after the waypoint's proxies have
// taken the configuration for it.
const (
	// settlePoll is how often it is looked whether proxies have taken what they were sent.
	settlePoll = 20 * time.Millisecond
	// settleMin is how long it takes at least until what was handed over is on its way: caches publish in batches.
	settleMin = 50 * time.Millisecond
	// settleAlone is how long is waited if no replica is connected here: they are at other istiods, or starting.
	settleAlone = time.Second
	// settleMax is how long is waited for a replica that does not answer.
	settleMax = 5 * time.Second
)

// announcement is the services of one waypoint that wait.
type announcement struct {
	// since is when the newest of them was handed over, first when the oldest was.
	since, first time.Time
	names        map[string]struct{}
}

// served is the service's name on the wire that a part is for; empty if it is none.
func (e *Engine) served(u unit) string {
	if u.kind != unitService {
		return ""
	}
	if u.id.Kind == model.KindServiceEntry {
		return u.id.Namespace + "/" + u.name
	}
	return u.id.Namespace + "/" + translate.ServiceHostname(e.cfg.Config, u.id.Key)
}

// serve notes that a waypoint was handed the part of a service.
func (e *Engine) serve(key model.Key, p *proxy, u unit) {
	name := e.served(u)
	if name == "" || p.served[name] {
		return
	}
	if s := e.units[u]; s == nil || s.output == nil {
		return
	} else if out, ok := s.output.(*resolve.Output); !ok || len(out.Scopes) == 0 {
		return
	}
	p.served[name] = true
	if e.first || e.cfg.Settled == nil {
		// At the start node proxies and waypoints hold what an earlier istiod told them.
		e.mesh.SetServed(key, []string{name}, true)
		return
	}
	now := e.cfg.Now()
	a := e.serving[key]
	if a == nil {
		a = &announcement{first: now, names: map[string]struct{}{}}
		e.serving[key] = a
	}
	a.since = now
	a.names[name] = struct{}{}
}

// unserve takes a service back.
func (e *Engine) unserve(u unit) {
	name := e.served(u)
	if p := e.proxies[u.proxy]; p != nil {
		delete(p.served, name)
	}
	if a := e.serving[u.proxy]; a != nil {
		delete(a.names, name)
	}
	e.mesh.SetServed(u.proxy, []string{name}, false)
}

// Announce tells the graph of services whose waypoints are settled, and whether some still wait.
func (e *Engine) Announce() (waiting bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.cfg.Now()
	for key, a := range e.serving {
		if !e.settled(key, a, now) {
			waiting = true
			continue
		}
		delete(e.serving, key)
		names := make([]string, 0, len(a.names))
		for n := range a.names {
			names = append(names, n)
		}
		if len(names) > 0 {
			e.mesh.SetServed(key, names, true)
		}
	}
	return waiting
}

func (e *Engine) settled(key model.Key, a *announcement, now time.Time) bool {
	switch waited := now.Sub(a.since); {
	case waited < settleMin && now.Sub(a.first) < settleMax:
		return false
	case now.Sub(a.first) >= settleMax:
		return true
	default:
		connected, settled := e.cfg.Settled(key)
		return connected && settled || !connected && waited >= settleAlone
	}
}

// tellCallers tells the graph where proxies send, and as whom.
func (e *Engine) tellCallers() {
	for key := range e.calling {
		p := e.proxies[key]
		if p == nil || p.target == nil {
			e.mesh.SetCallers(key, "", nil)
			continue
		}
		hosts := map[string]struct{}{}
		for name := range p.references {
			if _, _, host, ok := resolve.ParseClusterName(name); ok {
				hosts[host] = struct{}{}
			}
		}
		e.mesh.SetCallers(key, p.target.ServiceAccount, slices.Sorted(maps.Keys(hosts)))
	}
	clear(e.calling)
}
