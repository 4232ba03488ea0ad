package graph

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// What should come through a waypoint and does not is refused by the ztunnels of the pods: each port that services
// with a waypoint have, and no others, gets a policy that lets in only the proxies which istiod itself sends there.
// Make before break: the policy comes after the waypoint and goes before it.
const (
	// requiredAfter is how long after ztunnels were told of a service's waypoint the policy follows. Another istiod
	// may tell its ztunnels later than this one by as long as layer7 waits for a replica that does not answer, 5 s.
	requiredAfter = 10 * time.Second
	// withdrawLead is how long before its waypoint the policy is taken from a service: what ztunnels take to hear it.
	withdrawLead = 2 * time.Second
	// callerLinger is how long a proxy that no longer has a service as a destination may come: a waypoint that was
	// deleted ends its requests for up to a minute.
	callerLinger = 2 * time.Minute
)

// required is what the graph knows of ways through waypoints.
type required struct {
	// now is the clock; wake tells Run that something waits for it.
	now  func() time.Time
	wake chan struct{}
	// first is set during the first computation: node proxies hold what an earlier istiod told them.
	first bool

	told    map[model.Key]*told
	callers map[model.Key]*caller
	groups  map[string]*group
	// ofPod are the groups of each pod; dirty are groups to write again.
	ofPod map[model.Key][]string
	dirty map[string]struct{}
}

func newRequired(now func() time.Time) required {
	if now == nil {
		now = time.Now
	}
	return required{
		now: now, wake: make(chan struct{}, 1),
		told: map[model.Key]*told{}, callers: map[model.Key]*caller{}, groups: map[string]*group{},
		ofPod: map[model.Key][]string{}, dirty: map[string]struct{}{},
	}
}

// told is a service of whose waypoint ztunnels know.
type told struct {
	waypoint, canary model.Key
	since            time.Time
	// enforced says that who passes by is refused. until is set once that ended: then the waypoint goes too.
	enforced bool
	until    time.Time
}

// caller is a proxy with the service accounts that it runs as and the hosts that it sends to, each with the time at
// which it ends; zero while it lasts.
type caller struct {
	namespace       string
	accounts, hosts map[string]time.Time
}

// group is one policy: a port of pods that the same services have.
type group struct {
	policy   translate.WaypointRequired
	services []model.Key
	// pods, with the waypoint that each is reached through by its own address.
	pods map[model.Key]model.Key
}

// SetCallers says as which service account a proxy runs and which hosts it sends to; none when it is gone.
func (g *Graph) SetCallers(proxy model.Key, account string, hosts []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.required.callers[proxy]
	if c == nil {
		if account == "" {
			return
		}
		c = &caller{namespace: proxy.Namespace, accounts: map[string]time.Time{}, hosts: map[string]time.Time{}}
		g.required.callers[proxy] = c
	}
	end := g.required.now().Add(callerLinger)
	var accounts []string
	if account != "" {
		accounts = []string{account}
	}
	changed := last(c.hosts, hosts, end)
	if len(last(c.accounts, accounts, end)) > 0 {
		for h := range c.hosts {
			changed[h] = struct{}{}
		}
		for k, t := range g.required.told {
			if t.waypoint == proxy || t.canary == proxy {
				g.markRequired(k)
			}
		}
	}
	g.markCalled(changed)
	g.poke()
	if g.synced {
		g.flush()
	}
}

// last makes what is named last, and lets the rest end. It returns what was not known, or had been about to end.
func last(have map[string]time.Time, named []string, end time.Time) map[string]struct{} {
	added := map[string]struct{}{}
	for _, n := range named {
		if until, ok := have[n]; !ok || !until.IsZero() {
			have[n] = time.Time{}
			added[n] = struct{}{}
		}
	}
	for n, until := range have {
		if until.IsZero() && !slices.Contains(named, n) {
			have[n] = end
		}
	}
	return added
}

// markCalled marks the groups of services with one of the hosts.
func (g *Graph) markCalled(hosts map[string]struct{}) {
	if len(hosts) == 0 {
		return
	}
	for name, gr := range g.required.groups {
		for _, k := range gr.services {
			if _, is := hosts[translate.ServiceHostname(g.cfg.Config, k)]; is {
				g.required.dirty[name] = struct{}{}
			}
		}
	}
}

// markRequired marks what depends on whether a service's waypoint is the only way.
func (g *Graph) markRequired(k model.Key) {
	g.markEndpoints(g.services[k])
	for name, gr := range g.required.groups {
		if slices.Contains(gr.services, k) {
			g.required.dirty[name] = struct{}{}
		}
	}
}

func (g *Graph) poke() {
	select {
	case g.required.wake <- struct{}{}:
	default:
	}
}

// hold decides which waypoints ztunnels are told of for a service, given those that could take its traffic: one that
// is the only way stays for a moment after it no longer is.
func (g *Graph) hold(s *model.Service, w, canary *model.Waypoint) (*model.Waypoint, *model.Waypoint) {
	r := &g.required
	t, now := r.told[s.Key], r.now()
	if t == nil {
		if w != nil {
			r.told[s.Key] = &told{waypoint: w.Key, canary: keyOf(canary), since: now, enforced: r.first}
			g.markRequired(s.Key)
			g.poke()
		}
		return w, canary
	}
	if w != nil {
		if t.waypoint != w.Key || t.canary != keyOf(canary) || !t.until.IsZero() {
			t.waypoint, t.canary = w.Key, keyOf(canary)
			g.markRequired(s.Key)
		}
		if !t.until.IsZero() {
			t.since, t.until = now, time.Time{}
			g.poke()
		}
		return w, canary
	}
	old := g.usable(g.waypoints[t.waypoint], s.ResourceName())
	if t.enforced && old != nil {
		t.enforced, t.until = false, now.Add(withdrawLead)
		g.markRequired(s.Key)
		g.poke()
	}
	if old != nil && now.Before(t.until) {
		return old, nil
	}
	g.unhold(s.Key)
	return nil, nil
}

// unhold forgets a service that has no waypoint.
func (g *Graph) unhold(k model.Key) {
	if g.required.told[k] != nil {
		delete(g.required.told, k)
		g.markRequired(k)
	}
}

func keyOf(w *model.Waypoint) model.Key {
	if w == nil {
		return model.Key{}
	}
	return w.Key
}

// bypassOf is who may pass by the waypoint of a service.
func (g *Graph) bypassOf(s *model.Service) model.Bypass {
	if s.Bypass != model.BypassUnset {
		return s.Bypass
	}
	if ns := g.namespaces[s.Namespace]; ns != nil && ns.Bypass != model.BypassUnset {
		return ns.Bypass
	}
	if g.cfg.Bypass != model.BypassUnset {
		return g.cfg.Bypass
	}
	return model.BypassRefuse
}

// requires tells how a service sees to its pods' ports: closed, if its waypoint is the only way to them; open, if they
// must be reachable past waypoints. One whose name stands for the pods' own addresses decides nothing: what is sent to
// it never passes a waypoint for services.
func (g *Graph) requires(s *model.Service) (closed, open bool) {
	if s.NoWaypoint || g.bypassOf(s) == model.BypassAllow {
		return false, true
	}
	if len(s.VIPs) == 0 {
		return false, g.bind(s.Waypoint, s.IngressWaypoint, s.Namespace).Waypoint == nil
	}
	t := g.required.told[s.Key]
	closed = t != nil && t.enforced && g.required.callers[t.waypoint] != nil
	return closed, !closed
}

// flushRequired finds the groups of a pod, and returns their policies' names.
func (g *Graph) flushRequired(p *model.Pod, services []*model.Service) []string {
	at := map[uint16][]*model.Service{}
	for _, s := range services {
		e := Endpoint{Pod: p}
		for _, port := range s.Ports {
			if n, ok := e.Target(port); ok && !slices.Contains(at[n], s) {
				at[n] = append(at[n], s)
			}
		}
	}
	var names []string
	for _, port := range slices.Sorted(maps.Keys(at)) {
		gr := g.groupOf(port, at[port])
		if gr == nil {
			continue
		}
		name := gr.policy.Namespace + "/" + gr.policy.Name()
		names = append(names, name)
		if have := g.required.groups[name]; have != nil {
			gr = have
		} else {
			g.required.groups[name] = gr
			g.required.dirty[name] = struct{}{}
		}
		own := keyOf(g.waypointOf(p.Waypoint, p.Namespace, model.TrafficWorkload))
		if before, is := gr.pods[p.Key]; !is || before != own {
			gr.pods[p.Key] = own
			g.required.dirty[name] = struct{}{}
		}
	}
	g.setRequired(p.Key, names)
	return names
}

// groupOf is the policy of a port that services have; nil if the port is open.
func (g *Graph) groupOf(port uint16, services []*model.Service) *group {
	gr := &group{policy: translate.WaypointRequired{Port: port, Namespace: services[0].Namespace}, pods: map[model.Key]model.Key{}}
	for _, s := range services {
		closed, open := g.requires(s)
		if open {
			return nil
		}
		if closed {
			gr.services = append(gr.services, s.Key)
			gr.policy.Services = append(gr.policy.Services, s.Name)
		}
	}
	if len(gr.services) == 0 {
		return nil
	}
	return gr
}

// setRequired stores the groups of a pod, and takes it from those that it left.
func (g *Graph) setRequired(pod model.Key, names []string) {
	for _, n := range g.required.ofPod[pod] {
		if !slices.Contains(names, n) {
			delete(g.required.groups[n].pods, pod)
			g.required.dirty[n] = struct{}{}
		}
	}
	if g.required.ofPod[pod] = names; len(names) == 0 {
		delete(g.required.ofPod, pod)
	}
}

// flushGroups writes the policies that changed.
func (g *Graph) flushGroups(c *collector) {
	for name := range g.required.dirty {
		gr := g.required.groups[name]
		if gr == nil {
			continue
		}
		if len(gr.pods) == 0 {
			delete(g.required.groups, name)
			c.remove(name)
			continue
		}
		policy := gr.policy
		policy.Callers = g.callersOf(gr)
		policy.Plaintext = !slices.ContainsFunc(gr.services, func(k model.Key) bool {
			s := g.services[k]
			return s == nil || g.bypassOf(s) != model.BypassStrict
		})
		c.put(name, policy.Wire(), nil, nil)
	}
	g.required.dirty = map[string]struct{}{}
}

// callersOf lists the principals that a group's pods let in: the waypoints in front of them, and every waypoint and
// gateway that has one of the services as a destination, since those send to pods themselves. A gateway that goes
// through the waypoint is among them, so that it can be told to and not to without a moment in which it is refused.
func (g *Graph) callersOf(gr *group) []string {
	out := map[string]struct{}{}
	add := func(c *caller) {
		if c != nil {
			for a := range c.accounts {
				out[translate.Principal(g.cfg.Config, c.namespace, a)] = struct{}{}
			}
		}
	}
	for _, w := range gr.pods {
		add(g.required.callers[w])
	}
	for _, k := range gr.services {
		if t := g.required.told[k]; t != nil {
			add(g.required.callers[t.waypoint])
			add(g.required.callers[t.canary])
		}
		host := translate.ServiceHostname(g.cfg.Config, k)
		for _, c := range g.required.callers {
			if _, sends := c.hosts[host]; sends {
				add(c)
			}
		}
	}
	return slices.Sorted(maps.Keys(out))
}

// Require does what is due: policies that may follow their waypoints now, waypoints that may go after their policies,
// callers that have left. It returns how long until the next is due; false if nothing waits.
func (g *Graph) Require() (time.Duration, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.required.now()
	var next time.Time
	due := func(t time.Time) bool {
		if !now.Before(t) {
			return true
		}
		if next.IsZero() || t.Before(next) {
			next = t
		}
		return false
	}
	for k, t := range g.required.told {
		switch {
		case !t.until.IsZero():
			if due(t.until) {
				g.dirty.services[k] = struct{}{}
			}
		case !t.enforced && due(t.since.Add(requiredAfter)):
			t.enforced = true
			g.markRequired(k)
			g.explain(k)
		}
	}
	g.expireCallers(due)
	if g.synced {
		g.flush()
	}
	return next.Sub(now), !next.IsZero()
}

// expireCallers forgets what has lingered long enough.
func (g *Graph) expireCallers(due func(time.Time) bool) {
	for k, c := range g.required.callers {
		ended := map[string]struct{}{}
		for h, until := range c.hosts {
			if !until.IsZero() && due(until) {
				ended[h] = struct{}{}
				delete(c.hosts, h)
			}
		}
		for a, until := range c.accounts {
			if !until.IsZero() && due(until) {
				delete(c.accounts, a)
				for h := range c.hosts {
					ended[h] = struct{}{}
				}
				for s, t := range g.required.told {
					if t.waypoint == k || t.canary == k {
						g.markRequired(s)
					}
				}
			}
		}
		if len(c.accounts) == 0 {
			delete(g.required.callers, k)
		}
		g.markCalled(ended)
	}
}

// explain says if another service keeps a service's ports open.
func (g *Graph) explain(k model.Key) {
	s := g.services[k]
	if s == nil {
		return
	}
	for pk := range g.podLabels.candidates(s.Namespace, s.Selector) {
		if !matches(s.Selector, g.pods[pk].Labels) {
			continue
		}
		for _, other := range g.servicesOf(g.pods[pk]) {
			if _, open := g.requires(other); open && sharesPort(g.pods[pk], s, other) {
				g.cfg.Log.Info("pods can be reached past their waypoint, because of another service with the same port",
					"service", k.String(), "other", other.Key.String())
			}
		}
		return // pods of a service are alike
	}
}

func sharesPort(p *model.Pod, a, b *model.Service) bool {
	e := Endpoint{Pod: p}
	for _, x := range a.Ports {
		for _, y := range b.Ports {
			m, ok := e.Target(x)
			n, is := e.Target(y)
			if ok && is && m == n {
				return true
			}
		}
	}
	return false
}

// Run does what is due when it is, until ctx ends.
func (g *Graph) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.required.wake:
		case <-timer.C:
		}
		if next, waits := g.Require(); waits {
			timer.Reset(next)
		}
	}
}
