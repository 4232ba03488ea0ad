// Package admin serves istiod's pages for people, probes and scripts: readiness,
// the log level, and JSON of what istiod holds and which proxy has which of it.
// app.go makes one handler and serves it on the debug port.
//
// What always holds: pages only read; a page of many objects is written as a
// stream and holds no lock while it is written; nothing secret is on any page,
// keys least of all.
//
// It does not serve metrics (telemetry does) and does not authenticate: the port
// is for the cluster's own network, as Istio's.
package admin

import (
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/istiod/graph"
	"github.com/ambit-mesh/ambit/istiod/layer7"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/watch"
)

// Config is what the pages show.
type Config struct {
	// Ready serves /ready.
	Ready http.Handler
	// LogLevel shows and, by POST, sets the log level.
	LogLevel http.Handler
	Graph    *graph.Graph
	// Layer7 and Directory are what waypoints and gateways are told.
	Layer7    *layer7.Engine
	Directory *push.Directory
	Cache     *push.Cache
	Server    *push.Server
	Source    watch.Source
	// Settings is what istiod was started with.
	Settings any
	Leader   func() bool
}

// page is one debug page.
type page struct{ path, help string }

// Handler serves all pages.
func Handler(c Config) http.Handler {
	mux := http.NewServeMux()
	c.basics(mux)
	pages := []page{
		{"/ready", "200 when everything is in place, else what is missing"},
		{"/debug/loglevel", "the log level; POST ?level= sets it"},
		{"/debug/pprof/", "profiles"},
	}
	add := func(path, help string, f http.HandlerFunc) {
		mux.HandleFunc("GET "+path, f)
		pages = append(pages, page{path, help})
	}
	add("/debug/syncz", "which proxy acknowledged what, and how far behind it is", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, c.Server.Proxies())
	})
	add("/debug/problems", "objects that cannot be used, and why", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]any{"objects": append(c.Graph.Problems(), c.Layer7.Problems()...), "source": c.Source.Conditions()})
	})
	add("/debug/config", "what istiod was started with, what it holds, whether it leads", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]any{"settings": c.Settings, "sizes": c.Graph.Sizes(), "layer7": c.Layer7.Sizes(), "leader": c.Leader()})
	})
	add("/debug/workloads", "workloads as proxies get them; ?name= or ?address= chooses", func(w http.ResponseWriter, r *http.Request) {
		c.resources(w, r, ports.TypeAddress, func(b []byte) (proto.Message, error) {
			m := &workload.Address{}
			err := proto.Unmarshal(b, m)
			if m.GetWorkload() == nil {
				return nil, err
			}
			return m.GetWorkload(), err
		})
	})
	add("/debug/services", "services as proxies get them; ?name= or ?address= chooses", func(w http.ResponseWriter, r *http.Request) {
		c.resources(w, r, ports.TypeAddress, func(b []byte) (proto.Message, error) {
			m := &workload.Address{}
			err := proto.Unmarshal(b, m)
			if m.GetService() == nil {
				return nil, err
			}
			return m.GetService(), err
		})
	})
	add("/debug/policies", "policies as proxies get them; ?name= chooses", func(w http.ResponseWriter, r *http.Request) {
		c.resources(w, r, ports.TypeAuthorization, func(b []byte) (proto.Message, error) {
			m := &security.Authorization{}
			return m, proto.Unmarshal(b, m)
		})
	})
	add("/debug/proxies", "what waypoints and gateways hold, by type and name; ?proxy=namespace/name chooses", c.proxies)
	add("/debug/statuses", "what authors of routes, gateways and policies are told; ?name= chooses", c.statuses)
	mux.HandleFunc("GET /debug", func(w http.ResponseWriter, _ *http.Request) {
		index := map[string]string{}
		for _, p := range pages {
			index[p.path] = p.help
		}
		writeJSON(w, index)
	})
	return mux
}

// basics are the pages that are not JSON.
func (c Config) basics(mux *http.ServeMux) {
	mux.Handle("GET /ready", c.Ready)
	mux.Handle("/debug/loglevel", telemetry.LocalOnly(c.LogLevel))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}

// resources writes a JSON array, one resource at a time.
func (c Config) resources(w http.ResponseWriter, r *http.Request, typeURL string, decode func([]byte) (proto.Message, error)) {
	name, address := r.URL.Query().Get("name"), r.URL.Query().Get("address")
	w.Header().Set("Content-Type", "application/json")
	sep := "[\n"
	for _, res := range c.Cache.All(typeURL) {
		if name != "" && !strings.Contains(res.Name, name) || address != "" && !hasAddress(res.Aliases, address) {
			continue
		}
		m, err := decode(res.Content())
		if err != nil || m == nil {
			continue
		}
		b, err := protojson.Marshal(m)
		if err != nil {
			continue
		}
		entry, err := json.Marshal(map[string]any{"name": res.Name, "version": res.Version, "resource": json.RawMessage(b)})
		if err != nil {
			continue
		}
		if _, err := w.Write(append([]byte(sep), entry...)); err != nil {
			return // the reader left
		}
		sep = ",\n"
	}
	if sep == "[\n" {
		_, _ = w.Write([]byte("["))
	}
	_, _ = w.Write([]byte("]\n")) // nobody is left to tell if this fails
}

func hasAddress(aliases []string, address string) bool {
	for _, a := range aliases {
		if i := strings.LastIndexByte(a, '/'); a[i+1:] == address {
			return true
		}
	}
	return false
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
