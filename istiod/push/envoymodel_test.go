package push_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/push/pushtest"
)

// modelEnvoy behaves as Envoy does where it matters here: a cluster that came
// carries traffic only after its endpoints came too, endpoints are asked for once,
// and a request that is routed to a cluster which is not there fails.
type modelEnvoy struct {
	t *testing.T
	c *pushtest.Client
	// active clusters carry traffic; warming ones do not, and an update warms beside the active one.
	active, warming map[string]bool
	routes          map[string]string
	held            map[string]map[string]string
	subscribed      map[string]bool
}

func newModelEnvoy(t *testing.T) *modelEnvoy {
	return &modelEnvoy{t: t, active: map[string]bool{}, warming: map[string]bool{}, routes: map[string]string{},
		held: map[string]map[string]string{}, subscribed: map[string]bool{}}
}

// connect opens a stream and says what is held, type by type.
func (m *modelEnvoy) connect(e *envoys) {
	m.c = e.open()
	for typeURL, held := range m.held {
		m.c.Held[typeURL] = maps.Clone(held)
	}
	m.c.Subscribe(push.TypeCluster, m.held[push.TypeCluster])
	if names := slices.Sorted(maps.Keys(m.subscribed)); len(names) > 0 {
		m.c.Names(push.TypeEndpoints, names, nil, m.held[push.TypeEndpoints])
	}
	m.c.Subscribe(push.TypeRoute, m.held[push.TypeRoute])
}

// take applies a response, checks that no request would fail, and acknowledges.
func (m *modelEnvoy) take(r *discovery.DeltaDiscoveryResponse) {
	var ask, drop []string
	for _, res := range r.GetResources() {
		switch r.GetTypeUrl() {
		case push.TypeCluster:
			c := &cluster.Cluster{}
			m.must(res.GetResource().UnmarshalTo(c))
			m.warming[c.GetName()] = true
			if !m.subscribed[c.GetName()] {
				m.subscribed[c.GetName()] = true
				ask = append(ask, c.GetName())
			}
		case push.TypeEndpoints:
			if m.warming[res.GetName()] {
				delete(m.warming, res.GetName())
				m.active[res.GetName()] = true
			}
		case push.TypeRoute:
			rc := &route.RouteConfiguration{}
			m.must(res.GetResource().UnmarshalTo(rc))
			m.routes[rc.GetName()] = rc.GetVirtualHosts()[0].GetRoutes()[0].GetRoute().GetCluster()
		}
	}
	for _, name := range r.GetRemovedResources() {
		switch r.GetTypeUrl() {
		case push.TypeCluster:
			delete(m.active, name)
			delete(m.warming, name)
			if m.subscribed[name] {
				delete(m.subscribed, name)
				delete(m.c.Held[push.TypeEndpoints], name)
				drop = append(drop, name)
			}
		case push.TypeRoute:
			delete(m.routes, name)
		}
	}
	for table, to := range m.routes {
		if !m.active[to] {
			m.t.Errorf("after %s %v removed %v: table %s leads to cluster %s, which carries no traffic",
				r.GetTypeUrl(), pushtest.Names(r), r.GetRemovedResources(), table, to)
		}
	}
	m.c.Ack(r)
	if len(ask)+len(drop) > 0 {
		m.c.Names(push.TypeEndpoints, ask, drop, nil)
	}
}

func (m *modelEnvoy) must(err error) {
	if err != nil {
		m.t.Helper()
		m.t.Fatal(err)
	}
}

// TestNoRequestFailsUnderAnyChange applies random consistent changes and looks at every step whether a request could fail.
func TestNoRequestFailsUnderAnyChange(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 4))
			e := newEnvoys(t, push.WithGrace(push.Config{}, 20*time.Millisecond))
			e.cache.Synced()
			m := newModelEnvoy(t)
			m.connect(e)
			tables, clusters := map[string]string{}, map[string]bool{}
			for step := range 400 {
				e.cache.Apply(randomChange(t, rnd, step, tables, clusters))
				for range rnd.IntN(4) {
					if !m.step(e) {
						break
					}
				}
			}
			m.settle(e)
			if n := counter(t, e, "istiod_xds_warming_timeouts_total"); n != 0 {
				t.Errorf("the server gave up waiting for clusters %v times", n)
			}
			want := map[string]string{}
			for _, r := range e.cache.All(push.TypeRoute) {
				want[r.Name] = r.Version
			}
			if !maps.Equal(want, m.c.Held[push.TypeRoute]) || !maps.Equal(tables, m.routes) {
				t.Errorf("routes are %v, want %v", m.routes, tables)
			}
			if !maps.Equal(clusters, m.active) {
				t.Errorf("clusters are %v, want %v", m.active, clusters)
			}
		})
	}
}

func counter(t *testing.T, e *envoys, name string) float64 {
	t.Helper()
	families, err := e.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// step takes one response if there is one soon.
func (m *modelEnvoy) step(e *envoys) bool {
	r := m.c.TryRecv(4 * time.Millisecond)
	if r != nil {
		m.take(r)
	}
	return r != nil
}

// settle takes responses until the proxy has everything.
func (m *modelEnvoy) settle(e *envoys) {
	deadline := time.Now().Add(10 * time.Second)
	for calm := 0; calm < 25 && time.Now().Before(deadline); calm++ {
		if m.step(e) {
			calm = 0
		}
	}
}

// randomChange moves tables between clusters, replaces clusters, and removes those that no table leads to.
func randomChange(t *testing.T, rnd *rand.Rand, step int, tables map[string]string, clusters map[string]bool) []push.Change {
	var out []push.Change
	name := fmt.Sprintf("c%d", rnd.IntN(6))
	clusters[name] = true
	out = append(out, upsert(edsCluster(t, name, step), endpoints(t, name, fmt.Sprintf("127.0.0.1:%d", step+1)))...)
	table := fmt.Sprintf("t%d", rnd.IntN(3))
	tables[table] = name
	out = append(out, upsert(routeTo(t, table, name))...)
	if rnd.IntN(5) == 0 {
		gone := fmt.Sprintf("t%d", rnd.IntN(3))
		if _, ok := tables[gone]; ok && gone != table {
			delete(tables, gone)
			out = append(out, removal(push.TypeRoute, gone))
		}
	}
	used := map[string]bool{}
	for _, to := range tables {
		used[to] = true
	}
	for c := range clusters {
		if !used[c] && rnd.IntN(2) == 0 {
			delete(clusters, c)
			out = append(out, removal(push.TypeCluster, c), removal(push.TypeEndpoints, c))
		}
	}
	return out
}
