package load

import (
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

func TestEveryKindMovesUnitsWithoutErrors(t *testing.T) {
	for _, server := range []struct {
		serve func(net.Listener) error
		kinds []Kind
	}{{Serve, []Kind{Stream, HTTP, Conns}}, {ServeHTTP, []Kind{H1, H2}}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- server.serve(l) }()
		for _, k := range server.kinds {
			r, err := Run(t.Context(), Spec{Kind: k, Addr: l.Addr().String(), Conns: 4, Duration: 100 * time.Millisecond})
			if err != nil || r.Errors != 0 || r.Units == 0 {
				t.Errorf("Run(%c) = %+v, %v; want units and no errors", k, r, err)
			}
			if k != Stream && (r.P50 <= 0 || r.P99 < r.P50) {
				t.Errorf("Run(%c) latencies p50 %v p99 %v", k, r.P50, r.P99)
			}
		}
		l.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Requests must go by the protocol and over the one connection that the kind says, or the comparison means nothing.
func TestRequestsUseTheirProtocolOnOneConnectionEach(t *testing.T) {
	for kind, want := range map[Kind]string{H1: "HTTP/1.1", H2: "HTTP/2.0"} {
		var protocols http.Protocols
		protocols.SetHTTP1(true)
		protocols.SetUnencryptedHTTP2(true)
		var mu sync.Mutex
		seen := map[string]map[string]bool{}
		body := make([]byte, bodySize)
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if seen[r.Proto] == nil {
				seen[r.Proto] = map[string]bool{}
			}
			seen[r.Proto][r.RemoteAddr] = true
			w.Write(body)
		}))
		s.Config.Protocols = &protocols
		s.Start()
		r, err := Run(t.Context(), Spec{Kind: kind, Addr: s.Listener.Addr().String(), Conns: 3, Duration: 100 * time.Millisecond})
		s.Close()
		if err != nil || r.Errors != 0 {
			t.Fatalf("Run(%c) = %+v, %v", kind, r, err)
		}
		if len(seen) != 1 || len(seen[want]) != 3 {
			t.Errorf("Run(%c) used %v, want 3 connections of %s", kind, seen, want)
		}
	}
}

func TestWrongAnswersAreErrors(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"status": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			w.Write(make([]byte, bodySize))
		},
		"short": func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, bodySize-1)) },
		"long":  func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, bodySize+1)) },
	} {
		s := httptest.NewServer(answer)
		r, err := Run(t.Context(), Spec{Kind: H1, Addr: s.Listener.Addr().String(), Conns: 1, Duration: 50 * time.Millisecond})
		s.Close()
		if err != nil || r.Errors != 1 || r.Units != 0 {
			t.Errorf("%s: Run = %+v, %v; want one error", name, r, err)
		}
	}
}

func TestARefusedServerIsCountedPerConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	r, err := Run(t.Context(), Spec{Kind: HTTP, Addr: addr, Conns: 3, Duration: time.Second})
	if err != nil || r.Errors != 3 || r.FirstErr == "" {
		t.Errorf("Run = %+v, %v; want 3 errors and a reason", r, err)
	}
}

func TestLoadIsBounded(t *testing.T) {
	for _, s := range []Spec{
		{Kind: 'x', Conns: 1, Duration: time.Second},
		{Kind: HTTP, Conns: 0, Duration: time.Second},
		{Kind: HTTP, Conns: MaxConns + 1, Duration: time.Second},
		{Kind: HTTP, Conns: 1, Duration: MaxDuration + 1},
	} {
		if _, err := Run(t.Context(), s); err == nil {
			t.Errorf("Run(%+v) ran; want it refused", s)
		}
	}
}
