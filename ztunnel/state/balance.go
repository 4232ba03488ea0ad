package state

import (
	"fmt"
	"math/rand/v2"
)

// guesses is how many random endpoints are tried before all are looked at. When most
// are usable, as is normal, this makes a choice among thousands as cheap as among few,
// and it stays uniform: a rejected guess says nothing about the others.
const guesses = 4

// choose picks an endpoint of svc for a client at src and the port there, or says why
// there is none. For a waypoint, an endpoint with an application tunnel needs no
// mapping of the port.
func (v *Snapshot) choose(src *Workload, svc *Service, port uint16, waypoint bool) (w *Workload, target uint16, reason string) {
	c := choice{src: src, svc: svc, port: port, waypoint: waypoint}
	c.svcTarget, c.hasPort = mapped(svc.Ports, port)
	if !c.hasPort && !waypoint {
		return nil, 0, fmt.Sprintf("has no port %d", port)
	}
	set, ok := v.endpoints.Get(svc.Key())
	if !ok {
		return nil, 0, "has no endpoint"
	}
	standard := svc.LoadBalancing == nil || svc.LoadBalancing.Mode == ModeStandard
	if standard && set.uniform && len(set.list) > guesses {
		for range guesses {
			e := &set.list[rand.IntN(len(set.list))]
			if t, why := c.usable(e); why == none {
				return e.w, t, ""
			}
		}
	}
	var chosen *endpoint
	var total uint64
	best := -1
	for i := range set.list {
		e := &set.list[i]
		t, why := c.usable(e)
		if why != none {
			c.met[why] = true
			continue
		}
		rank := 0
		if !standard {
			var ok bool
			if rank, ok = c.rank(e.w); !ok {
				c.met[otherLocality] = true
				continue
			}
		}
		if rank < best {
			continue
		}
		if rank > best {
			best, total, chosen = rank, 0, nil
		}
		// Weighted reservoir sampling: one pass, no list of candidates.
		weight := uint64(e.w.Capacity)
		total += weight
		if weight > 0 && rand.Uint64N(total) < weight {
			chosen, target = e, t
		}
	}
	if chosen == nil {
		return nil, 0, c.why()
	}
	return chosen.w, target, ""
}

// choice is one decision and what it has learned of unusable endpoints.
type choice struct {
	src       *Workload
	svc       *Service
	port      uint16
	svcTarget uint16
	hasPort   bool
	waypoint  bool
	met       [obstacles]bool
}

// obstacle is why an endpoint cannot be taken.
type obstacle uint8

// The obstacles, the most telling first.
const (
	otherNetwork obstacle = iota
	onlyHostname
	otherLocality
	noPort
	unhealthy
	obstacles // their number
	none
)

func (o obstacle) String() string {
	switch o {
	case otherNetwork:
		return "has healthy endpoints only on other networks, which cannot be reached yet"
	case onlyHostname:
		return "has endpoints only by host name, which cannot be resolved yet"
	case otherLocality:
		return "has no healthy endpoint where its load balancing demands one"
	case noPort:
		return "has no healthy endpoint that serves the port"
	case unhealthy:
		return "has no healthy endpoint"
	}
	return "has no endpoint with capacity"
}

// why is the most telling obstacle met.
func (c *choice) why() string {
	for o, met := range c.met {
		if met {
			return obstacle(o).String()
		}
	}
	return none.String()
}

// usable maps the port for an endpoint, or says why it cannot be taken. The
// workload's own mapping comes before the service's.
func (c *choice) usable(e *endpoint) (uint16, obstacle) {
	if !e.w.Healthy && (c.svc.LoadBalancing == nil || !c.svc.LoadBalancing.AllowUnhealthy) {
		return 0, unhealthy
	}
	target, ok := mapped(e.ports, c.port)
	switch {
	case ok && target != 0:
	case c.svcTarget != 0:
		target = c.svcTarget
	case c.waypoint && e.w.ApplicationTunnel != nil:
		target = c.port
	default:
		return 0, noPort
	}
	if e.w.Network != c.src.Network {
		return 0, otherNetwork
	}
	if len(e.w.Addresses) == 0 {
		return 0, onlyHostname
	}
	return target, none
}

func mapped(list []Port, port uint16) (uint16, bool) {
	for _, p := range list {
		if p.Service == port {
			return p.Target, true
		}
	}
	return 0, false
}

// rank counts how many scopes of the routing preference w shares with the client,
// from the first on. With the network as first scope it does not end the comparison
// but outweighs the others, so that an endpoint of another network is still ranked.
func (c *choice) rank(w *Workload) (int, bool) {
	lb := c.svc.LoadBalancing
	networkFirst := len(lb.Preference) > 0 && lb.Preference[0] == ScopeNetwork
	rank, extra := 0, 0
	for _, scope := range lb.Preference {
		same := sameScope(scope, c.src, w)
		if scope == ScopeNetwork && networkFirst {
			if !same {
				continue
			}
			extra = len(lb.Preference) - 1
		}
		if !same {
			break
		}
		rank++
	}
	if lb.Mode == ModeStrict && rank != len(lb.Preference) {
		return 0, false
	}
	return rank + extra, true
}

func sameScope(scope Scope, a, b *Workload) bool {
	switch scope {
	case ScopeRegion:
		return a.Locality.Region == b.Locality.Region
	case ScopeZone:
		return a.Locality.Zone == b.Locality.Zone
	case ScopeSubzone:
		return a.Locality.Subzone == b.Locality.Subzone
	case ScopeNode:
		return a.Node == b.Node
	case ScopeCluster:
		return a.ClusterID == b.ClusterID
	case ScopeNetwork:
		return a.Network == b.Network
	}
	return false
}
