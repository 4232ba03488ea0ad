package telemetry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

func scrape(t *testing.T, m *TCPMetrics) string {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(m)
	w := httptest.NewRecorder()
	MetricsHandler(reg).ServeHTTP(w, httptest.NewRequest(http.MethodGet, PathMetrics, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("scrape: %d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestTCPMetricsHaveIstiosLabels(t *testing.T) {
	m := newTCPMetrics(10, time.Now)
	c := m.Open(TCPLabels{
		Reporter: ReporterSource, Source: Peer{Workload: "a", Namespace: "ns", Principal: "spiffe://td/ns/ns/sa/a"},
		Destination: Peer{Workload: "b"}, Service: "b.ns.svc", ServiceName: "b", ServiceNamespace: "ns", Security: SecurityMutualTLS,
	})
	c.AddBytes(11, 22)
	c.Close(FlagNone)
	labels := `{connection_security_policy="mutual_tls",destination_app="unknown",destination_canonical_revision="unknown",` +
		`destination_canonical_service="unknown",destination_cluster="unknown",destination_principal="unknown",destination_service="b.ns.svc",` +
		`destination_service_name="b",destination_service_namespace="ns",destination_version="unknown",destination_workload="b",` +
		`destination_workload_namespace="unknown",reporter="source",request_protocol="tcp",response_flags="-",source_app="unknown",` +
		`source_canonical_revision="unknown",source_canonical_service="unknown",source_cluster="unknown",source_principal="spiffe://td/ns/ns/sa/a",` +
		`source_version="unknown",source_workload="a",source_workload_namespace="ns"} `
	got := scrape(t, m)
	for _, want := range []string{
		MetricConnectionsOpened + labels + "1", MetricConnectionsClosed + labels + "1",
		MetricReceivedBytes + labels + "11", MetricSentBytes + labels + "22",
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("no line %s in\n%s", want, got)
		}
	}
}

func TestFailedConnectionsAreCountedUnderTheirFlag(t *testing.T) {
	m := newTCPMetrics(10, time.Now)
	m.Open(TCPLabels{Reporter: ReporterDestination}).Close(FlagDenied)
	got := scrape(t, m)
	for _, want := range []string{MetricConnectionsClosed, MetricConnectionsFailed} {
		found := false
		for line := range strings.Lines(got) {
			found = found || strings.HasPrefix(line, want+"{") && strings.Contains(line, `response_flags="DENY"`) && strings.HasSuffix(line, " 1\n")
		}
		if !found {
			t.Errorf("no %s with DENY in\n%s", want, got)
		}
	}
}

func TestTCPSeriesAreBoundedAndIdleOnesGo(t *testing.T) {
	now := time.Unix(1000, 0)
	m := newTCPMetrics(3, func() time.Time { return now })
	label := func(name string) TCPLabels {
		return TCPLabels{Reporter: ReporterSource, Source: Peer{Workload: name}}
	}
	live := m.Open(label("live"))
	m.Open(label("idle")).Close(FlagNone)
	m.Open(label("idle2")).Close(FlagNone)
	m.Open(label("over")).Close(FlagNone)
	if got := scrape(t, m); strings.Contains(got, `"over"`) || !strings.Contains(got, MetricSeriesDropped+" 1") {
		t.Errorf("a series over the limit was made:\n%s", got)
	}
	now = now.Add(tcpSeriesIdle + tcpSweepEvery)
	m.Open(label("later")).Close(FlagNone)
	got := scrape(t, m)
	if !strings.Contains(got, `"live"`) || !strings.Contains(got, `"later"`) || strings.Contains(got, `"idle"`) {
		t.Errorf("wrong series were evicted:\n%s", got)
	}
	live.AddBytes(1, 1)
	live.Close(FlagNone)
}

func TestReadinessNamesWhatIsMissing(t *testing.T) {
	r := NewReadiness()
	a, b := r.Condition("a"), r.Condition("b")
	changed := r.Changed()
	a.Set(nil)
	select {
	case <-changed:
	default:
		t.Error("change was not announced")
	}
	b.Set(errors.New("broken"))
	if d := cmp.Diff([]string{"b: broken"}, r.Missing()); d != "" {
		t.Error(d)
	}
	w := httptest.NewRecorder()
	r.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, PathReady, nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "b: broken") {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
	b.Set(nil)
	if !r.Ready() {
		t.Errorf("still missing %v", r.Missing())
	}
}

func TestLogLevelChangesAtRunTime(t *testing.T) {
	var out bytes.Buffer
	l, err := NewLogging(&out, "warn", "")
	if err != nil {
		t.Fatal(err)
	}
	log := l.Logger("x")
	log.Info("hidden")
	w := httptest.NewRecorder()
	l.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/logging?level=debug", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET changed the level: %d", w.Code)
	}
	w = httptest.NewRecorder()
	l.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/logging?level=info,access=debug", nil))
	log.Info("shown")
	if got := out.String(); strings.Contains(got, "hidden") || !strings.Contains(got, "shown") || !strings.Contains(got, "scope=x") {
		t.Errorf("logged %q", got)
	}
	w = httptest.NewRecorder()
	l.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/logging?level=loud", nil))
	if w.Code != http.StatusBadRequest {
		t.Errorf("a wrong level got %d", w.Code)
	}
}

func TestAccessRecordIsOneLineWithIstiosFields(t *testing.T) {
	var out bytes.Buffer
	l, err := NewLogging(&out, "", "")
	if err != nil {
		t.Fatal(err)
	}
	NewAccessLog(l.Root()).Write(&AccessRecord{
		Direction: DirectionInbound, Src: AccessEnd{Addr: netip.MustParseAddrPort("10.0.0.1:5"), Workload: "a", Identity: "spiffe://x"},
		Dst: AccessEnd{Addr: netip.MustParseAddrPort("10.0.0.2:15008"), Workload: "b"}, HBONEAddr: "10.0.0.2:80", BytesSent: 1, BytesRecv: 2,
		Duration: 1500 * time.Microsecond, Policy: "ns/deny", Reason: "denied by policy", Flags: FlagDenied,
	})
	_, line, _ := strings.Cut(out.String(), " ")
	want := `level=WARN msg="connection denied" scope=access src.addr=10.0.0.1:5 src.workload=a src.identity=spiffe://x dst.addr=10.0.0.2:15008 ` +
		`dst.hbone_addr=10.0.0.2:80 dst.workload=b direction=inbound bytes_sent=1 bytes_recv=2 duration=1ms policy=ns/deny reason="denied by policy" response_flags=DENY` + "\n"
	if d := cmp.Diff(want, line); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestServerEndsWithItsContext(t *testing.T) {
	s, err := NewServer("127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hi") }))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r, err := http.Get("http://" + s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	again, err := NewServer(s.Addr().String(), nil)
	if err != nil {
		t.Fatalf("the port is still taken: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
