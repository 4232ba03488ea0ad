// Package collect is an OpenTelemetry collector for tests: it takes traces and logs
// by OTLP/gRPC and by OTLP/HTTP with protobuf, on one port, keeps the newest of them
// in memory and tells them as JSON. `tools collect` runs it in a pod; tests of
// waypoint/config run it in their own process.
//
// It always holds that memory is bounded: the oldest are forgotten. It exports,
// samples and judges nothing, and has no metrics.
package collect

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	// PathTraces and PathLogs are where OTLP over HTTP comes in (OTLP specification, "OTLP/HTTP Request").
	PathTraces = "/v1/traces"
	PathLogs   = "/v1/logs"
	// PathReceived answers with Received as JSON; ?trace=<hex id> gives one trace only. PathReset forgets everything.
	PathReceived = "/received"
	PathReset    = "/reset"
	// PathHealth always answers 200.
	PathHealth = "/healthz"

	// kept is how many spans, and how many records, are remembered: more than a test asks about, some MiB.
	kept = 4096
	// maxBody bounds one export, in bytes; senders batch a few hundred spans.
	maxBody = 4 << 20

	// The services of OTLP over gRPC. Their generated code would bring in a gateway for JSON, so they are described here: the
	// request of each has the same fields as TracesData and LogsData, and nothing has to be in the answers.
	serviceTraces = "opentelemetry.proto.collector.trace.v1.TraceService"
	serviceLogs   = "opentelemetry.proto.collector.logs.v1.LogsService"
	methodExport  = "Export"

	contentType = "application/x-protobuf"
	contentGRPC = "application/grpc"
)

// How something came in.
const (
	ViaGRPC = "grpc"
	ViaHTTP = "http"
)

// Span is one span.
type Span struct {
	// Trace, ID and Parent are hexadecimal, Parent is empty for a root.
	Trace, ID, Parent string
	Name, Kind        string
	// Service is the resource's service.name.
	Service    string
	Start, End time.Time
	Attributes map[string]string
	// Failed is the status ERROR.
	Failed bool
	Via    Via
}

// Record is one record of a log.
type Record struct {
	Time       time.Time
	Body       string
	Attributes map[string]string
	// Resource is what the records of one sender have in common.
	Resource map[string]string
	// Trace and Span are hexadecimal, empty if the record belongs to no span.
	Trace, Span string
	Via         Via
}

// Via is the request that brought something.
type Via struct {
	// Protocol is ViaGRPC or ViaHTTP, Path the method or path, Authority whom the sender asked for.
	Protocol, Path, Authority string
	// Headers have lower-case names, of several values the first.
	Headers map[string]string
}

// Received is what was kept, oldest first.
type Received struct {
	Spans []Span
	Logs  []Record
}

// Collector is the server. Make it with New.
type Collector struct {
	grpc *grpc.Server
	mux  *http.ServeMux

	mu   sync.Mutex
	kept Received
}

// New returns a collector that has nothing yet.
func New() *Collector {
	c := &Collector{grpc: grpc.NewServer(grpc.MaxRecvMsgSize(maxBody)), mux: http.NewServeMux()}
	export(c, serviceTraces, PathTraces, (*Collector).addSpans)
	export(c, serviceLogs, PathLogs, (*Collector).addLogs)
	c.mux.HandleFunc("GET "+PathReceived, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(c.Received(r.URL.Query().Get("trace"))) // the caller went away
	})
	c.mux.HandleFunc("POST "+PathReset, func(http.ResponseWriter, *http.Request) { c.Reset() })
	c.mux.HandleFunc("GET "+PathHealth, func(http.ResponseWriter, *http.Request) {})
	return c
}

// message is a pointer to a message.
type message[T any] interface {
	*T
	proto.Message
}

// export serves one kind of signal by both protocols.
func export[T any, M message[T]](c *Collector, service, path string, add func(*Collector, M, Via)) {
	c.grpc.RegisterService(&grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: methodExport,
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := M(new(T))
			if err := decode(in); err != nil {
				return nil, err
			}
			add(c, in, viaGRPC(ctx))
			return &emptypb.Empty{}, nil
		},
	}}}, c)
	c.mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		in := M(new(T))
		answer(w, r, in, func(v Via) { add(c, in, v) })
	})
}

// ServeHTTP serves all of it; gRPC needs HTTP/2.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), contentGRPC) {
		c.grpc.ServeHTTP(w, r)
		return
	}
	c.mux.ServeHTTP(w, r)
}

// Received is what was kept, of one trace if the name is not empty.
func (c *Collector) Received(trace string) Received {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out Received
	for _, s := range c.kept.Spans {
		if trace == "" || s.Trace == trace {
			out.Spans = append(out.Spans, s)
		}
	}
	for _, l := range c.kept.Logs {
		if trace == "" || l.Trace == trace {
			out.Logs = append(out.Logs, l)
		}
	}
	return out
}

// Reset forgets everything.
func (c *Collector) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = Received{}
}

func viaGRPC(ctx context.Context) Via {
	v := Via{Protocol: ViaGRPC, Headers: map[string]string{}}
	v.Path, _ = grpc.Method(ctx)
	md, _ := metadata.FromIncomingContext(ctx)
	for name, values := range md {
		if len(values) > 0 {
			v.Headers[name] = values[0]
		}
	}
	v.Authority = v.Headers[":authority"]
	return v
}

// answer decodes one export over HTTP.
func answer(w http.ResponseWriter, r *http.Request, in proto.Message, keep func(Via)) {
	if got := r.Header.Get("Content-Type"); got != contentType {
		http.Error(w, fmt.Sprintf("content type %q, want %s", got, contentType), http.StatusUnsupportedMediaType)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		err = proto.Unmarshal(body, in)
	}
	if err != nil {
		status := http.StatusBadRequest
		if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, err.Error(), status)
		return
	}
	v := Via{Protocol: ViaHTTP, Path: r.URL.Path, Authority: r.Host, Headers: map[string]string{}}
	for name, values := range r.Header {
		v.Headers[strings.ToLower(name)] = values[0]
	}
	keep(v)
	w.Header().Set("Content-Type", contentType) // and nothing in it: all was taken
}

func (c *Collector) addSpans(in *tracepb.TracesData, v Via) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range in.GetResourceSpans() {
		service := resource(rs.GetResource())["service.name"]
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.kept.Spans = append(c.kept.Spans, Span{
					Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
					Name: s.GetName(), Kind: strings.ToLower(strings.TrimPrefix(s.GetKind().String(), "SPAN_KIND_")), Service: service,
					Start: moment(s.GetStartTimeUnixNano()), End: moment(s.GetEndTimeUnixNano()),
					Attributes: values(s.GetAttributes()), Failed: s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR, Via: v,
				})
			}
		}
	}
	c.kept.Spans = newest(c.kept.Spans)
}

func (c *Collector) addLogs(in *logspb.LogsData, v Via) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rl := range in.GetResourceLogs() {
		from := resource(rl.GetResource())
		for _, sl := range rl.GetScopeLogs() {
			for _, l := range sl.GetLogRecords() {
				c.kept.Logs = append(c.kept.Logs, Record{
					Time: moment(l.GetTimeUnixNano()), Body: text(l.GetBody()), Attributes: values(l.GetAttributes()), Resource: from,
					Trace: hex.EncodeToString(l.GetTraceId()), Span: hex.EncodeToString(l.GetSpanId()), Via: v,
				})
			}
		}
	}
	c.kept.Logs = newest(c.kept.Logs)
}

// newest forgets what is too much.
func newest[T any](all []T) []T {
	if over := len(all) - kept; over > 0 {
		return append([]T(nil), all[over:]...)
	}
	return all
}

func moment(nano uint64) time.Time { return time.Unix(0, int64(nano)).UTC() }

func resource(r *resourcepb.Resource) map[string]string { return values(r.GetAttributes()) }

func values(in []*commonpb.KeyValue) map[string]string {
	out := make(map[string]string, len(in))
	for _, kv := range in {
		out[kv.GetKey()] = text(kv.GetValue())
	}
	return out
}

// text writes a value as a person would; lists and objects in protobuf's text form.
func text(v *commonpb.AnyValue) string {
	switch x := v.GetValue().(type) {
	case nil:
		return ""
	case *commonpb.AnyValue_StringValue:
		return x.StringValue
	case *commonpb.AnyValue_BoolValue:
		return fmt.Sprint(x.BoolValue)
	case *commonpb.AnyValue_IntValue:
		return fmt.Sprint(x.IntValue)
	case *commonpb.AnyValue_DoubleValue:
		return fmt.Sprint(x.DoubleValue)
	default:
		return v.String()
	}
}
