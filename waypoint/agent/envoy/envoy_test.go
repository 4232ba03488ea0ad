package envoy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const patience = 10 * time.Second

// script is a program in the place of Envoy.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "envoy")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func start(t *testing.T, text string) (*Process, *os.File) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(Options{Path: script(t, text), Bootstrap: "/b.json", Concurrency: 2, LogLevel: "warning", DrainTime: 45 * time.Second, Output: out})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Stop(context.Background())
		out.Close()
	})
	return p, out
}

// started waits until the program has said so.
func started(t *testing.T, out *os.File) string {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		if b, err := os.ReadFile(out.Name()); err == nil && strings.Contains(string(b), "\n") {
			return string(b)
		}
	}
	t.Fatal("the program does not start")
	return ""
}

func TestStartPassesArgumentsAndOutput(t *testing.T) {
	p, out := start(t, `echo "$@"; exec sleep 100`)
	want := "--config-path /b.json --concurrency 2 --log-level warning --component-log-level misc:error --drain-time-s 45 --drain-strategy immediate --file-flush-interval-msec 1000 --local-address-ip-version v4 --disable-hot-restart\n"
	if diff := cmp.Diff(want, started(t, out)); diff != "" {
		t.Error(diff)
	}
	select {
	case <-p.Done():
		t.Error("it has ended")
	default:
	}
}

func TestEndsAreTold(t *testing.T) {
	for text, want := range map[string]string{"exit 3": "exit status 3", "kill -9 $$": "out of memory", "exit 0": "by itself"} {
		p, _ := start(t, text)
		select {
		case <-p.Done():
		case <-time.After(patience):
			t.Fatalf("%s: it does not end", text)
		}
		if err := p.Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := Start(Options{Path: "/nonexistent/envoy", Output: os.Stdout}); err == nil || !strings.Contains(err.Error(), "/nonexistent/envoy") {
		t.Errorf("a program that is not there: %v", err)
	}
}

// TestStop: by asking, and by force if that does not help.
func TestStop(t *testing.T) {
	polite, out := start(t, `trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.01; done`)
	started(t, out)
	polite.Stop(t.Context())
	if b, err := os.ReadFile(out.Name()); err != nil || !strings.HasSuffix(string(b), "asked\n") {
		t.Errorf("%q, %v", b, err)
	}
	deaf, out := start(t, `trap '' TERM; echo up; while :; do sleep 0.01; done`)
	started(t, out)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	deaf.Stop(ctx)
	select {
	case <-deaf.Done():
	default:
		t.Error("Stop returned and it runs")
	}
	deaf.Stop(ctx) // once more is no harm
}

// admin serves fixed pages.
func admin(t *testing.T, pages map[string]string) *Admin {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := pages[r.Method+" "+r.URL.Path]
		if !ok {
			http.Error(w, "no page", http.StatusNotFound)
			return
		}
		if strings.HasPrefix(text, "!") {
			w.WriteHeader(http.StatusServiceUnavailable)
			text = text[1:]
		}
		fmt.Fprint(w, text)
	}))
	t.Cleanup(s.Close)
	a := NewAdmin(netip.MustParseAddrPort(s.Listener.Addr().String()))
	t.Cleanup(a.Close)
	return a
}

func TestLive(t *testing.T) {
	for page, want := range map[string]string{"LIVE\n": "", "!PRE_INITIALIZING\n": `envoy is "PRE_INITIALIZING"`, "!LIVE\n": `envoy is "LIVE"`, "DRAINING\n": `envoy is "DRAINING"`} {
		err := admin(t, map[string]string{"GET /ready": page}).Live(t.Context())
		if fmt.Sprint(err) != want && (err != nil || want != "") {
			t.Errorf("%q: %v, want %q", page, err, want)
		}
	}
	a := NewAdmin(netip.MustParseAddrPort("127.0.0.1:1"))
	defer a.Close()
	if err := a.Live(t.Context()); err == nil {
		t.Error("nobody answers, and that is fine")
	}
}

func TestConfigured(t *testing.T) {
	for _, tc := range []struct{ page, want string }{
		{"", "envoy has no clusters, listeners, workers yet"},
		{"cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 0\n", "envoy has no listeners, workers yet"},
		{"cluster_manager.cds.update_success: 2\nlistener_manager.lds.update_success: 1\nlistener_manager.workers_started: 1\n", ""},
	} {
		err := admin(t, map[string]string{"GET /stats": tc.page}).Configured(t.Context())
		if fmt.Sprint(err) != tc.want && (err != nil || tc.want != "") {
			t.Errorf("%q: %v, want %q", tc.page, err, tc.want)
		}
	}
}

func TestDrain(t *testing.T) {
	if err := admin(t, map[string]string{"POST /drain_listeners": "OK\n"}).Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if err := admin(t, nil).Drain(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("%v", err)
	}
}

func TestActive(t *testing.T) {
	for name, tc := range map[string]struct {
		page string
		want uint64
	}{
		"nothing": {"", 0},
		"an idle tunnel to a waypoint": {`http.connect_terminate.downstream_cx_active: 3
http.connect_terminate.downstream_rq_active: 0
http.main_http.downstream_cx_active: 2
http.main_http.downstream_rq_active: 0
listener.0.0.0.0_15008.downstream_cx_active: 3
listener.0.0.0.0_15008.worker_0.downstream_cx_active: 3
listener.admin.downstream_cx_active: 1
http.admin.downstream_cx_active: 1
http.admin.downstream_rq_active: 1
listener.envoy_internal_connect_originate.downstream_cx_active: 9
`, 0},
		"a tunnel in use": {`http.connect_terminate.downstream_cx_active: 3
http.connect_terminate.downstream_rq_active: 2
listener.0.0.0.0_15008.downstream_cx_active: 3
`, 2},
		"a gateway with idle clients and a request": {`http.a.downstream_cx_active: 3
http.b.downstream_cx_active: 2
http.b.downstream_rq_active: 1
listener.0.0.0.0_80.downstream_cx_active: 3
listener.[__]_443.downstream_cx_active: 2
`, 1},
		"a gateway with TCP": {`http.a.downstream_cx_active: 3
listener.0.0.0.0_80.downstream_cx_active: 3
listener.0.0.0.0_5432.downstream_cx_active: 4
`, 4},
		"numbers of different moments": {`http.a.downstream_cx_active: 3
listener.0.0.0.0_80.downstream_cx_active: 2
`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := admin(t, map[string]string{"GET /stats": tc.page}).Active(t.Context())
			if err != nil || got != tc.want {
				t.Errorf("%d, %v; want %d", got, err, tc.want)
			}
		})
	}
}

func TestPrometheus(t *testing.T) {
	body, err := admin(t, map[string]string{"GET /stats/prometheus": "envoy_a 1\n"}).Prometheus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(body)
	if err = errors.Join(err, body.Close()); err != nil || string(b) != "envoy_a 1\n" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := admin(t, nil).Prometheus(t.Context()); err == nil {
		t.Error("a page that is not there is no error")
	}
}

func FuzzParseNumbers(f *testing.F) {
	f.Add("a: 1\nb.c: P0(1,2)\n: \nlistener.[::]: 80: 3")
	f.Fuzz(func(t *testing.T, s string) {
		all, err := parseNumbers(s)
		if err == nil {
			_ = active(all)
		}
		for name, n := range all {
			if !strings.Contains(s, name) {
				t.Errorf("%q has no %q (%d)", s, name, n)
			}
		}
	})
}
