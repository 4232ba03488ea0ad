package collect

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logv1 "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// start serves HTTP/1 and unencrypted HTTP/2 on one port, as `tools collect` does.
func start(t *testing.T) (*Collector, *httptest.Server) {
	t.Helper()
	c := New()
	srv := httptest.NewUnstartedServer(c)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	return c, srv
}

func str(s string) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: s}}
}

func attribute(k string, v *commonpb.AnyValue) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: k, Value: v}
}

func spans(name string) *tracev1.TracesData {
	return &tracev1.TracesData{ResourceSpans: []*tracev1.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{attribute("service.name", str("web"))}},
		ScopeSpans: []*tracev1.ScopeSpans{{Spans: []*tracev1.Span{{
			TraceId: bytes.Repeat([]byte{1}, 16), SpanId: bytes.Repeat([]byte{2}, 8), ParentSpanId: bytes.Repeat([]byte{3}, 8),
			Name: name, Kind: tracev1.Span_SPAN_KIND_SERVER, StartTimeUnixNano: 1e9, EndTimeUnixNano: 2e9,
			Attributes: []*commonpb.KeyValue{
				attribute("s", str("x")),
				attribute("i", &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: 7}}),
				attribute("b", &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: true}}),
				attribute("d", &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: 1.5}}),
				attribute("n", nil),
			},
			Status: &tracev1.Status{Code: tracev1.Status_STATUS_CODE_ERROR},
		}}}},
	}}}
}

func records(body string) *logv1.LogsData {
	return &logv1.LogsData{ResourceLogs: []*logv1.ResourceLogs{{
		Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{attribute("log_name", str("access"))}},
		ScopeLogs: []*logv1.ScopeLogs{{LogRecords: []*logv1.LogRecord{{
			TimeUnixNano: 3e9, Body: str(body), Attributes: []*commonpb.KeyValue{attribute("k", str("v"))}, TraceId: bytes.Repeat([]byte{1}, 16),
		}}}},
	}}}
}

func wantSpan(name string, v Via) Span {
	return Span{
		Trace: strings.Repeat("01", 16), ID: strings.Repeat("02", 8), Parent: strings.Repeat("03", 8), Name: name, Kind: "server", Service: "web",
		Start: time.Unix(1, 0).UTC(), End: time.Unix(2, 0).UTC(), Failed: true,
		Attributes: map[string]string{"s": "x", "i": "7", "b": "true", "d": "1.5", "n": ""}, Via: v,
	}
}

func wantRecord(body string, v Via) Record {
	return Record{Time: time.Unix(3, 0).UTC(), Body: body, Attributes: map[string]string{"k": "v"},
		Resource: map[string]string{"log_name": "access"}, Trace: strings.Repeat("01", 16), Via: v}
}

// withoutHeaders keeps those that the test sent.
func withoutHeaders(v Via) Via {
	v.Headers = map[string]string{"x-team": v.Headers["x-team"]}
	return v
}

func TestTakesGRPCAndHTTPOnOnePort(t *testing.T) {
	_, srv := start(t)
	at := srv.Listener.Addr().String()
	conn, err := grpc.NewClient(at, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("collector"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-team", "shop")
	for service, m := range map[string]proto.Message{serviceTraces: spans("a"), serviceLogs: records("a")} {
		if err := conn.Invoke(ctx, "/"+service+"/"+methodExport, m, &emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
	}
	for path, m := range map[string]proto.Message{PathTraces: spans("b"), PathLogs: records("b")} {
		if status, body := post(t, srv.URL+path, contentType, encode(t, m)); status != 200 {
			t.Fatalf("POST %s: %d %s", path, status, body)
		}
	}

	resp, err := http.Get(srv.URL + PathReceived + "?trace=" + strings.Repeat("01", 16))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got Received
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	for i := range got.Spans {
		got.Spans[i].Via = withoutHeaders(got.Spans[i].Via)
	}
	for i := range got.Logs {
		got.Logs[i].Via = withoutHeaders(got.Logs[i].Via)
	}
	headers := map[string]string{"x-team": "shop"}
	want := Received{
		Spans: []Span{
			wantSpan("a", Via{ViaGRPC, "/opentelemetry.proto.collector.trace.v1.TraceService/Export", "collector", headers}),
			wantSpan("b", Via{ViaHTTP, PathTraces, at, headers}),
		},
		Logs: []Record{
			wantRecord("a", Via{ViaGRPC, "/opentelemetry.proto.collector.logs.v1.LogsService/Export", "collector", headers}),
			wantRecord("b", Via{ViaHTTP, PathLogs, at, headers}),
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func post(t *testing.T, url, kind string, body []byte) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("X-Team", "shop")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestRefusesWhatItCannotRead(t *testing.T) {
	c, srv := start(t)
	for _, tc := range []struct {
		name, kind string
		body       []byte
		status     int
	}{
		{"JSON", "application/json", []byte("{}"), http.StatusUnsupportedMediaType},
		{"garbage", contentType, []byte("\xff\xff"), http.StatusBadRequest},
		{"too long", contentType, make([]byte, maxBody+1), http.StatusRequestEntityTooLarge},
	} {
		if status, body := post(t, srv.URL+PathTraces, tc.kind, tc.body); status != tc.status {
			t.Errorf("%s: status %d, want %d: %s", tc.name, status, tc.status, body)
		}
	}
	if got := c.Received(""); len(got.Spans)+len(got.Logs) > 0 {
		t.Errorf("kept %+v", got)
	}
}

func TestForgetsTheOldest(t *testing.T) {
	c := New()
	for i := range kept + 10 {
		c.addSpans(spans(fmt.Sprint(i)), Via{})
		c.addLogs(records(fmt.Sprint(i)), Via{})
	}
	got := c.Received("")
	if len(got.Spans) != kept || len(got.Logs) != kept || got.Spans[0].Name != "10" || got.Logs[0].Body != "10" {
		t.Errorf("%d spans from %s, %d records from %s; want %d from 10", len(got.Spans), got.Spans[0].Name, len(got.Logs), got.Logs[0].Body, kept)
	}
	if got := c.Received("ff"); len(got.Spans)+len(got.Logs) > 0 {
		t.Errorf("another trace has %+v", got)
	}
	srv := httptest.NewServer(c)
	defer srv.Close()
	if status, _ := post(t, srv.URL+PathReset, "", nil); status != 200 {
		t.Errorf("reset: status %d", status)
	}
	if got := c.Received(""); len(got.Spans)+len(got.Logs) > 0 {
		t.Errorf("kept %+v", got)
	}
}

func FuzzExport(f *testing.F) {
	for _, m := range []proto.Message{spans("a"), records("a")} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	c := New()
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, path := range []string{PathTraces, PathLogs} {
			req := httptest.NewRequestWithContext(context.Background(), http.MethodPost, path, bytes.NewReader(body))
			req.Header.Set("Content-Type", contentType)
			w := httptest.NewRecorder()
			c.ServeHTTP(w, req)
			if w.Code != http.StatusOK && w.Code != http.StatusBadRequest {
				t.Errorf("%s: status %d", path, w.Code)
			}
		}
		if _, err := json.Marshal(c.Received("")); err != nil {
			t.Errorf("what was kept is no JSON: %v", err)
		}
	})
}
