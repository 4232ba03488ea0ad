package route

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/model"
)

var update = flag.Bool("update", false, "rewrite golden files")

// golden is one input and what is written of it.
type golden struct {
	name  string
	proxy *model.Proxy
	// host becomes a table; tables may be given whole.
	host  *model.VirtualHost
	table *model.RouteTable
	// filters has the chain in the file, network the filters of connections for these policies.
	filters bool
	network []*model.Authorization
	// problems are those that Build reports.
	problems []string
}

func (g *golden) routes() *model.RouteTable {
	if g.table != nil {
		return g.table
	}
	name := "shop/web.shop.svc.cluster.local:8080"
	if g.proxy != nil && !g.proxy.Waypoint {
		name = "http.80"
	}
	t := &model.RouteTable{Name: name}
	if g.host != nil {
		h := *g.host
		if h.Name == "" {
			h.Name = "web"
		}
		if h.Domains == nil {
			h.Domains = []string{"*"}
		}
		t.Hosts = []model.VirtualHost{h}
	}
	return t
}

func (g *golden) onProxy() *model.Proxy {
	if g.proxy != nil {
		return g.proxy
	}
	return waypointProxy()
}

func TestGolden(t *testing.T) {
	for _, g := range goldens() {
		t.Run(g.name, func(t *testing.T) {
			got := g.write(t)
			path := filepath.Join("testdata", g.name+".golden.json")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("configuration changed (-golden +now); if that is wanted: go test -update\n%s", diff)
			}
		})
	}
}

// write is the golden file's content.
func (g *golden) write(t *testing.T) []byte {
	t.Helper()
	out := object{}
	if g.network == nil {
		table, problems := Build(g.onProxy(), g.routes())
		out["routes"] = toJSON(t, table)
		var messages []string
		for _, p := range problems {
			messages = append(messages, p.Error())
		}
		if diff := cmp.Diff(g.problems, messages); diff != "" {
			t.Errorf("problems (-want +got):\n%s", diff)
		}
		again, _ := Build(g.onProxy(), g.routes())
		if diff := cmp.Diff(string(toJSON(t, table)), string(toJSON(t, again))); diff != "" {
			t.Errorf("the same input gave something else:\n%s", diff)
		}
	} else {
		filters, err := NetworkAuthz(g.onProxy(), g.network)
		if err != nil {
			t.Fatal(err)
		}
		var all []json.RawMessage
		for _, f := range filters {
			all = append(all, toJSON(t, f))
		}
		out["network_filters"] = all
	}
	if g.filters {
		filters, err := HTTPFilters(g.onProxy())
		if err != nil {
			t.Fatal(err)
		}
		var all []json.RawMessage
		for _, f := range filters {
			all = append(all, toJSON(t, f))
		}
		out["http_filters"] = all
	}
	b, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(indented(b) + "\n")
}

// TestEnvoyLoadsGoldens: the real Envoy accepts every configuration, each in a listener of its own.
func TestEnvoyLoadsGoldens(t *testing.T) {
	all := goldens()
	config := func(t *testing.T, goldens []golden) []byte {
		var listeners []object
		for i := range goldens {
			listeners = append(listeners, goldens[i].listener(t))
		}
		return bootstrap(t, listeners, grpcClusters(goldens))
	}
	if _, err := validate(t, config(t, all)); err == nil {
		return
	}
	for i := range all {
		t.Run(all[i].name, func(t *testing.T) {
			c := config(t, all[i:i+1])
			if out, err := validate(t, c); err != nil {
				t.Errorf("Envoy refuses it: %v\n%s\n%s", err, out, indented(c))
			}
		})
	}
}

// listener serves what the golden case says.
func (g *golden) listener(t *testing.T) object {
	t.Helper()
	p := g.onProxy()
	filters, err := HTTPFilters(p)
	if err != nil {
		t.Fatal(err)
	}
	table, err := Table(p, g.routes())
	if err != nil {
		t.Fatal(err)
	}
	var network []*listenerv3.Filter
	if g.network != nil {
		if network, err = NetworkAuthz(p, g.network); err != nil {
			t.Fatal(err)
		}
	}
	return socket(t, g.name, append(network, manager(t, filters, table))...)
}

// grpcClusters are those that Envoy wants to be there before anything asks them.
func grpcClusters(goldens []golden) []object {
	var out []object
	var seen []string
	add := func(name string) {
		if !slices.Contains(seen, name) {
			seen = append(seen, name)
			out = append(out, object{"name": name, "type": "STATIC", "load_assignment": object{"cluster_name": name}})
		}
	}
	for i := range goldens {
		for _, e := range goldens[i].onProxy().HTTP.ExtAuthz {
			add(e.Cluster)
		}
		for _, l := range goldens[i].onProxy().HTTP.RateLimit {
			add(l.Cluster)
		}
	}
	return out
}
