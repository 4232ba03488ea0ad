package load

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// until waits for a condition of the report.
func until(t *testing.T, g *Generator, what string, ok func(Report) bool) Report {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		r := g.report.snapshot()
		if ok(r) {
			return r
		}
		select {
		case <-deadline:
			b, _ := json.Marshal(r)
			t.Fatalf("no %s: %s", what, b)
		case <-tick.C:
		}
	}
}

func start(t *testing.T, c Config) *Generator {
	t.Helper()
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return g
}

// echoServer accepts until the test ends and hands each connection to serve.
func echoServer(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return ln.Addr().String()
}

func echo(conn net.Conn) {
	_, _ = io.Copy(conn, conn)
	_ = conn.Close()
}

func TestEveryFailedRequestCounts(t *testing.T) {
	var served, failed atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n := served.Add(1); n > 1 && n%10 == 0 {
			failed.Add(1)
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}
	}))
	defer server.Close()
	g := start(t, Config{Name: "t", Targets: []string{server.URL}, Rate: 500, Workers: 4})
	r := until(t, g, "failures", func(r Report) bool { return r.HTTP.Requests > 200 })
	want := failed.Load()
	if got := r.HTTP.Failed; got > want || got < want-4 { // up to one in flight per worker
		t.Errorf("counted %d failures of %d", got, want)
	}
	if r.HTTP.ByKind["reset"] != r.HTTP.Failed {
		t.Errorf("kinds %v, want resets only", r.HTTP.ByKind)
	}
	if r.HTTP.Connections < r.HTTP.Requests/3 {
		t.Errorf("%d connections for %d requests: half of the workers should use one each", r.HTTP.Connections, r.HTTP.Requests)
	}
}

func TestStreamsStayOpenAndAreChecked(t *testing.T) {
	g := start(t, Config{Name: "t", Streams: 3, StreamTargets: []string{echoServer(t, echo)}})
	r := until(t, g, "echoes", func(r Report) bool { return r.Streams.Open == 3 && r.Streams.Echoed > 6 })
	if r.Broken() != 0 || r.Streams.Opened != 3 {
		t.Errorf("report %+v", r.Streams)
	}
	g.Reopen()
	r = until(t, g, "reopened streams", func(r Report) bool { return r.Streams.Opened == 6 && r.Streams.Open == 3 })
	if r.Broken() != 0 {
		t.Errorf("reopening broke streams: %+v", r.Streams)
	}
}

func TestBrokenStreamsAreToldApart(t *testing.T) {
	for kind, serve := range map[string]func(net.Conn){
		"reset": func(c net.Conn) {
			b := make([]byte, messageSize)
			_, _ = io.ReadFull(c, b)
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		},
		"closed": func(c net.Conn) {
			b := make([]byte, messageSize)
			_, _ = io.ReadFull(c, b)
			_ = c.Close()
		},
		"other": func(c net.Conn) { // a changed message
			b := make([]byte, messageSize)
			_, _ = io.ReadFull(c, b)
			b[9]++
			_, _ = c.Write(b)
			_, _ = c.Read(b)
			_ = c.Close()
		},
	} {
		t.Run(kind, func(t *testing.T) {
			g := start(t, Config{Name: "t", Streams: 1, StreamTargets: []string{echoServer(t, serve)}})
			r := until(t, g, "broken stream", func(r Report) bool { return r.Streams.Broken > 0 })
			if got := r.Streams.Ended[0].Kind; got != kind {
				t.Errorf("kind %q (%s), want %q", got, r.Streams.Ended[0].Error, kind)
			}
		})
	}
}

func TestReportOverHTTP(t *testing.T) {
	g, err := New(Config{Name: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	g.report.streamRefused("x", io.EOF)
	server := httptest.NewServer(g.Handler())
	defer server.Close()
	read := func() (r Report) {
		resp, err := http.Get(server.URL + "/report")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := read(); r.Name != "pod" || r.Streams.Refused != 1 || len(r.Failures) != 1 {
		t.Errorf("report %+v", r)
	}
	resp, err := http.Post(server.URL+"/reset", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if r := read(); r.Broken() != 0 {
		t.Errorf("after the reset: %+v", r)
	}
}
