// Package probe is a service that says what reached it, and a client that counts
// what became of its requests. The end-to-end tests of layer 7 deploy the one and
// run the other in pods, through the command tests/demo/tools.
//
// The server answers every request with an Answer; parameters of the query and
// its controls make it slow or faulty. The client repeats nothing on connections of
// its own, so that what is repeated was repeated by the mesh; on kept ones net/http
// repeats a GET whose connection turned out to be dead. Neither knows of a mesh.
package probe

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// wellKnown is where RFC 8615 puts what describes a site, such as its keys.
const wellKnown = "/.well-known/"

// maxDelay bounds what a request may ask for.
const maxDelay = 30 * time.Second

// Answer is what the server tells about a request.
type Answer struct {
	Name    string      `json:"name"`
	Version string      `json:"version"`
	Pod     string      `json:"pod"`
	Method  string      `json:"method"`
	Host    string      `json:"host"`
	URL     string      `json:"url"`
	Proto   string      `json:"proto"`
	Remote  string      `json:"remote"`
	Headers http.Header `json:"headers"`
	// Request counts this server's requests, this one included.
	Request int64 `json:"request"`
}

// Server is the handler. Its fields are not changed while it serves.
type Server struct {
	Name, Version, Pod string
	// WellKnown is a directory that is served under /.well-known/; empty for none.
	WellKnown string

	requests atomic.Int64
	status   atomic.Int64
}

// ServeHTTP answers:
//
//	/healthz             200, always
//	/control?status=503  from now on every request gets this status; 200 ends it
//	/.well-known/…       a file of the directory WellKnown, if there is one
//	/count               how many requests there were, without counting this one
//	anything else        an Answer; ?status=503 and ?delay=2s make one request faulty or slow,
//	                     ?failpercent=20 this share of requests, with status 500
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.WellKnown != "" && strings.HasPrefix(r.URL.Path, wellKnown) {
		http.StripPrefix(wellKnown, http.FileServer(http.Dir(s.WellKnown))).ServeHTTP(w, r)
		return
	}
	switch r.URL.Path {
	case "/healthz":
	case "/control":
		status, err := strconv.ParseInt(r.URL.Query().Get("status"), 10, 64)
		if err != nil || status < 200 || status > 599 {
			http.Error(w, "status must be between 200 and 599", http.StatusBadRequest)
			return
		}
		s.status.Store(status)
	case "/count":
		_, _ = w.Write(strconv.AppendInt(nil, s.requests.Load(), 10)) // the caller went away
	default:
		s.answer(w, r)
	}
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	n := s.requests.Add(1)
	query := r.URL.Query()
	if d, err := time.ParseDuration(query.Get("delay")); err == nil {
		select {
		case <-time.After(min(d, maxDelay)):
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	status := int(s.status.Load())
	if asked, err := strconv.Atoi(query.Get("status")); err == nil && asked >= 200 && asked <= 599 {
		status = asked
	}
	if share, err := strconv.Atoi(query.Get("failpercent")); err == nil && rand.IntN(100) < share {
		status = http.StatusInternalServerError
	}
	if status != 0 {
		w.WriteHeader(status)
	}
	_ = json.NewEncoder(w).Encode(Answer{ // the caller went away
		Name: s.Name, Version: s.Version, Pod: s.Pod, Method: r.Method, Host: r.Host, URL: r.URL.String(),
		Proto: r.Proto, Remote: r.RemoteAddr, Headers: r.Header, Request: n,
	})
}
