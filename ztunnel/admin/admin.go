// Package admin is the page of the node proxy for people: what it knows
// (/config_dump), what it carries (/connections), what it can prove
// (/certificates), how much it says (/logging), where its time goes
// (/debug/pprof), and a way to stop it (/quitquitquit). app.go serves it on
// loopback only, since it has no authentication.
//
// What always holds: no key is ever shown, a page is a snapshot and never blocks
// a connection, and what changes something wants a POST.
//
// It decides nothing and keeps nothing.
package admin

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/capture"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
	"github.com/ambit-mesh/ambit/ztunnel/state"
)

// Sources are where the pages come from. Pods may be nil (dedicated mode).
type Sources struct {
	Version      string
	Config       any
	Store        *state.Store
	Connections  func() []proxy.ConnectionInfo
	Pods         func() []capture.PodInfo
	Certificates func() []identity.CertificateStatus
	Logging      *telemetry.Logging
	Ready        *telemetry.Readiness
	// Quit starts an orderly shutdown.
	Quit func()
}

// Handler serves the pages.
func Handler(s Sources) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", index)
	mux.HandleFunc("GET /config_dump", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.dump()) })
	mux.HandleFunc("GET /connections", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Connections()) })
	mux.HandleFunc("GET /certificates", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.certificates()) })
	mux.HandleFunc("GET /pods", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.pods()) })
	mux.Handle("/logging", s.Logging)
	mux.Handle(telemetry.PathReady, s.Ready)
	mux.HandleFunc("POST /quitquitquit", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "shutting down")
		s.Quit()
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

func index(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprint(w, strings.TrimLeft(`
GET  /config_dump     workloads, services, policies, certificates, pods, configuration
GET  /connections     live connections
GET  /certificates    certificates, without keys
GET  /pods            pods served and pending
GET  /logging         log level; POST ?level=debug changes it
GET  /debug/pprof/    profiles
GET  /healthz/ready   readiness, with what is missing
POST /quitquitquit    drain and exit
`, "\n"))
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		// The header is gone: the reader sees a truncated page.
		return
	}
}

type dump struct {
	Version      string            `json:"version"`
	Config       any               `json:"config"`
	Workloads    []workload        `json:"workloads"`
	Services     []service         `json:"services"`
	Policies     []json.RawMessage `json:"policies"`
	Certificates []certificate     `json:"certificates"`
	Pods         []capture.PodInfo `json:"workloadState"`
}

func (s Sources) dump() dump {
	snap := s.Store.Snapshot()
	d := dump{
		Version: s.Version, Config: s.Config, Certificates: s.certificates(), Pods: s.pods(),
		Workloads: []workload{}, Services: []service{}, Policies: policies(snap),
	}
	for w := range snap.Workloads {
		d.Workloads = append(d.Workloads, newWorkload(w))
	}
	for v := range snap.Services {
		d.Services = append(d.Services, newService(v))
	}
	slices.SortFunc(d.Workloads, func(a, b workload) int { return cmp.Compare(a.UID, b.UID) })
	slices.SortFunc(d.Services, func(a, b service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Hostname, b.Hostname))
	})
	return d
}

func (s Sources) pods() []capture.PodInfo {
	if s.Pods == nil {
		return []capture.PodInfo{}
	}
	return append([]capture.PodInfo{}, s.Pods()...)
}

type certificate struct {
	Identity  string     `json:"identity"`
	State     string     `json:"state"`
	Serial    string     `json:"serialNumber,omitempty"`
	NotBefore *time.Time `json:"validFrom,omitempty"`
	NotAfter  *time.Time `json:"expirationTime,omitempty"`
	RenewAt   *time.Time `json:"renewAt,omitempty"`
	Failures  int        `json:"failures,omitempty"`
	LastError string     `json:"lastError,omitempty"`
	Pods      int        `json:"pods"`
}

func (s Sources) certificates() []certificate {
	out := []certificate{}
	for _, c := range s.Certificates() {
		v := certificate{
			Identity: c.Identity.String(), State: string(c.State), Failures: c.Failures,
			LastError: c.LastError, Pods: c.References,
		}
		if !c.RenewAt.IsZero() {
			v.RenewAt = &c.RenewAt
		}
		if c.Certificate != nil {
			v.NotBefore, v.NotAfter = &c.Certificate.NotBefore, &c.Certificate.NotAfter
			v.Serial = serial(c.Certificate)
		}
		out = append(out, v)
	}
	return out
}

func serial(c *identity.Certificate) string {
	leaf := c.TLS.Leaf
	if leaf == nil && len(c.TLS.Certificate) > 0 {
		parsed, err := x509.ParseCertificate(c.TLS.Certificate[0])
		if err != nil {
			return ""
		}
		leaf = parsed
	}
	if leaf == nil {
		return ""
	}
	return leaf.SerialNumber.Text(16)
}
