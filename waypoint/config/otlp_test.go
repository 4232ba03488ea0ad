package config

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/tests/demo/collect"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

const (
	collectorHost    = "otel.obs.svc.cluster.local"
	collectorCluster = "outbound|4317||" + collectorHost
	collectorID      = "spiffe://cluster.local/ns/obs/sa/otel"

	appTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	appSpan   = "00f067aa0ba902b7"
	appParent = "00-" + appTrace + "-" + appSpan + "-01"

	// percentTeam is a header's value that is not a format.
	percentTeam = "100% shop"
)

// startCollector serves HTTP/1 and HTTP/2 as `tools collect` does.
func startCollector(t *testing.T) (*collect.Collector, string) {
	t.Helper()
	c := collect.New()
	srv := httptest.NewUnstartedServer(c)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	return c, srv.Listener.Addr().String()
}

// otlpWorld is a waypoint with a collector, which is reached directly, or through a tunnel if it has a node.
func otlpWorld(t *testing.T, protocol model.AppProtocol, tunnel bool, f func(*model.OTLP) model.HTTPFilters) (*world, *collect.Collector, *node) {
	t.Helper()
	var ztunnel *node
	collector, at := startCollector(t)
	w := newWorld(t, func(w *world) {
		e := pod(at, func(e *model.ProxyEndpoint) { e.Tunnel, e.Identity = false, "" })
		if tunnel {
			ztunnel = startNode(t, w.ca, collectorID)
			e.Address, e.Tunnel, e.Identity = ztunnel.app(4317, at), true, collectorID
		}
		otlp := model.OTLP{Backend: model.Destination{Host: collectorHost, Port: 4317}, Headers: []model.Header{{Name: "x-team", Value: "shop"}}}
		if protocol == model.ProtocolHTTP1 {
			otlp.HTTPPath = collect.PathTraces
			otlp.Headers[0].Value = percentTeam
		}
		more := f(&otlp)
		for i := range more.Logs {
			more.Logs[i].Cluster = collectorCluster
		}
		if more.Tracing != nil {
			more.Tracing.Cluster = collectorCluster
		}
		w.input.proxy.HTTP = more
		w.input.clusters = append(w.input.clusters, &model.Cluster{
			Name: collectorCluster, HTTP: true, Protocol: protocol, Service: "otel", Namespace: "obs", Host: collectorHost,
		})
		w.input.endpoints = append(w.input.endpoints, &model.Endpoints{Cluster: collectorCluster, Endpoints: []model.ProxyEndpoint{e}})
	})
	return w, collector, ztunnel
}

// ways are those in which a collector can be reached.
func ways(t *testing.T, test func(*testing.T, model.AppProtocol, bool)) {
	for name, protocol := range map[string]model.AppProtocol{collect.ViaGRPC: model.ProtocolGRPC, collect.ViaHTTP: model.ProtocolHTTP1} {
		for _, tunnel := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/tunnel=%v", name, tunnel), func(t *testing.T) { test(t, protocol, tunnel) })
		}
	}
}

// checkVia compares how something came to the collector.
func checkVia(t *testing.T, v collect.Via, protocol model.AppProtocol, path string) {
	t.Helper()
	want := collect.Via{Protocol: collect.ViaGRPC, Path: path, Authority: collectorHost, Headers: map[string]string{"x-team": "shop"}}
	if protocol == model.ProtocolHTTP1 {
		want.Protocol, want.Headers["x-team"] = collect.ViaHTTP, percentTeam
	}
	v.Headers = map[string]string{"x-team": v.Headers["x-team"]}
	if diff := cmp.Diff(want, v); diff != "" {
		t.Errorf("came by (-want +got):\n%s", diff)
	}
}

// TestSpansJoinTheApplications: the application that called is the parent of the waypoint's span, and the one that is
// called gets the waypoint's as its own parent.
func TestSpansJoinTheApplications(t *testing.T) {
	ways(t, func(t *testing.T, protocol model.AppProtocol, tunnel bool) {
		w, collector, ztunnel := otlpWorld(t, protocol, tunnel, func(o *model.OTLP) model.HTTPFilters {
			return model.HTTPFilters{Tracing: &model.Tracing{OTLP: *o, Percent: 100, Service: "waypoint.shop", Tags: []model.TraceTag{
				{Name: "team", Literal: "shop"}, {Name: "user", Header: "x-user"},
			}}}
		})
		alice := w.client(t, aliceID)
		request(t, alice.dial(t, webVIP), "/traced", "traceparent: "+appParent, "tracestate: app=1", "x-user: alice")
		var server, client collect.Span
		until(t, "both spans are there", func() bool {
			for _, s := range collector.Received(appTrace).Spans {
				switch s.Kind {
				case "server":
					server = s
				case "client":
					client = s
				}
			}
			return server.ID != "" && client.ID != ""
		})
		if server.Parent != appSpan || client.Parent != server.ID {
			t.Errorf("the span has parent %s, want the application's %s; the one below it %s, want %s", server.Parent, appSpan, client.Parent, server.ID)
		}
		got := w.web.calls()[0].header
		if want := "00-" + appTrace + "-" + client.ID + "-01"; got.Get("traceparent") != want || got.Get("tracestate") != "app=1" {
			t.Errorf("the application got traceparent %s, tracestate %s, want %s and its own", got.Get("traceparent"), got.Get("tracestate"), want)
		}
		path := "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
		if protocol == model.ProtocolHTTP1 {
			path = collect.PathTraces
		}
		checkVia(t, server.Via, protocol, path)
		for _, s := range []collect.Span{server, client} {
			if s.Service != "waypoint.shop" {
				t.Errorf("service %q, want waypoint.shop", s.Service)
			}
			for tag, want := range map[string]string{
				"http.status_code": "200", "component": "proxy", "upstream_cluster.name": webCluster,
				"source.principal": aliceID, "destination.principal": webID, "team": "shop", "user": "alice",
				"istio.canonical_service": "waypoint", "istio.canonical_revision": "latest", "istio.namespace": "shop",
				"istio.mesh_id": "cluster.local", "istio.cluster_id": "Kubernetes",
				"istio.destination_workload": "web", "istio.destination_namespace": "shop",
				"istio.source_workload": "client", "istio.source_namespace": "shop", "istio.source_canonical_service": "client",
			} {
				if s.Attributes[tag] != want {
					t.Errorf("%s span: %s is %q, want %q", s.Kind, tag, s.Attributes[tag], want)
				}
			}
			// The tunnel does not say these.
			for _, tag := range []string{"istio.source_canonical_revision", "istio.source_cluster_id"} {
				if v := s.Attributes[tag]; v != "" && v != names.Unknown {
					t.Errorf("%s span: %s is %q, want nothing", s.Kind, tag, v)
				}
			}
		}
		if got := server.Attributes["http.method"] + " " + server.Attributes["http.url"]; got != "GET http://web/traced" {
			t.Errorf("the span is of %s", got)
		}
		if n := ztunnel != nil && len(ztunnel.seen()) > 0; n != tunnel {
			t.Errorf("the collector was reached through a tunnel: %v, want %v", n, tunnel)
		}
	})
}

// TestSamplingFollowsTheApplication: a trace that the application does not record is not recorded here either, and of
// those that begin here the percentage counts.
func TestSamplingFollowsTheApplication(t *testing.T) {
	for _, c := range []struct {
		name, parent string
		percent      float64
		recorded     bool
	}{
		{"recorded by the application", appParent, 0, true},
		{"not recorded by the application", strings.TrimSuffix(appParent, "1") + "0", 100, false},
		{"new, all", "", 100, true},
		{"new, none", "", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, collector, _ := otlpWorld(t, model.ProtocolGRPC, false, func(o *model.OTLP) model.HTTPFilters {
				return model.HTTPFilters{Tracing: &model.Tracing{OTLP: *o, Percent: c.percent}}
			})
			var headers []string
			if c.parent != "" {
				headers = append(headers, "traceparent: "+c.parent)
			}
			alice := w.client(t, aliceID)
			request(t, alice.dial(t, webVIP), "/judged", headers...)
			// A last request that is recorded for certain: what came before it was sent before it.
			request(t, alice.dial(t, webVIP), "/last", "traceparent: "+strings.Replace(appParent, "4bf9", "0000", 1))
			var recorded bool
			until(t, "the last request's span is there", func() bool {
				last := false
				for _, s := range collector.Received("").Spans {
					url := s.Attributes["http.url"]
					recorded = recorded || strings.HasSuffix(url, "/judged")
					last = last || strings.HasSuffix(url, "/last")
				}
				return last
			})
			if recorded != c.recorded {
				t.Errorf("recorded: %v, want %v", recorded, c.recorded)
			}
			if next := w.web.calls()[0].header.Get("traceparent"); strings.HasSuffix(next, "-01") != c.recorded {
				t.Errorf("the next application is told %s, want recorded: %v", next, c.recorded)
			}
		})
	}
}

func TestLogsReachACollector(t *testing.T) {
	ways(t, func(t *testing.T, protocol model.AppProtocol, tunnel bool) {
		w, collector, _ := otlpWorld(t, protocol, tunnel, func(o *model.OTLP) model.HTTPFilters {
			o.Logs = true
			if o.HTTPPath != "" {
				o.HTTPPath = collect.PathLogs
			}
			ours := *o
			ours.LogName, ours.Text, ours.JSON = "shop", "%REQ(:PATH)%", map[string]string{"code": "%RESPONSE_CODE%"}
			return model.HTTPFilters{Logs: []model.AccessLog{{OTLP: o}, {OTLP: &ours, Filter: "response.code >= 400"}}}
		})
		alice := w.client(t, aliceID)
		request(t, alice.dial(t, webVIP), "/fine")
		request(t, alice.dial(t, webVIP), "/teapot")
		mail := alice.dial(t, bannerVIP)
		if err := echoAfterBanner(mail); err != nil {
			t.Fatal(err)
		}
		mail.Close()
		byLog := map[string][]collect.Record{}
		until(t, "all is in the logs", func() bool {
			clear(byLog)
			for _, l := range collector.Received("").Logs {
				byLog[l.Resource["log_name"]] = append(byLog[l.Resource["log_name"]], l)
			}
			return len(byLog[logName]) >= 3 && len(byLog["shop"]) >= 1
		})
		if n := len(byLog[logName]); n != 3 {
			t.Errorf("%d records of two requests and a connection", n)
		}
		for _, l := range byLog[logName] {
			want := map[string]string{"source_principal": aliceID, "destination_principal": webID}
			if diff := cmp.Diff(want, l.Attributes); diff != "" {
				t.Errorf("attributes (-want +got):\n%s", diff)
			}
			if !strings.Contains(l.Body, `"`+aliceID+`" "`+webID+`"`) {
				t.Errorf("record without both identities: %s", l.Body)
			}
		}
		path := "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
		if protocol == model.ProtocolHTTP1 {
			path = collect.PathLogs
		}
		for _, l := range byLog["shop"] {
			checkVia(t, l.Via, protocol, path)
			if l.Body != "/teapot" || l.Attributes["code"] != "418" {
				t.Errorf("the filter let through, or the format is not ours: %+v", l)
			}
		}
	})
}

// TestTelemetryOfARequestIsJoined: its record names its span.
func TestTelemetryOfARequestIsJoined(t *testing.T) {
	w, collector, _ := otlpWorld(t, model.ProtocolGRPC, false, func(o *model.OTLP) model.HTTPFilters {
		logs := *o
		logs.Logs = true
		return model.HTTPFilters{Tracing: &model.Tracing{OTLP: *o, NoPropagation: true, NoMeshTags: true}, Logs: []model.AccessLog{{OTLP: &logs}}}
	})
	request(t, w.client(t, aliceID).dial(t, webVIP), "/joined", "traceparent: "+appParent)
	var got collect.Received
	until(t, "span and record are there", func() bool {
		got = collector.Received(appTrace)
		return len(got.Spans) == 2 && len(got.Logs) > 0
	})
	if !slices.ContainsFunc(got.Spans, func(s collect.Span) bool { return s.ID == got.Logs[0].Span }) {
		t.Errorf("the record names span %s, which is none of %+v", got.Logs[0].Span, got.Spans)
	}
	for tag := range got.Spans[0].Attributes {
		if strings.HasPrefix(tag, "istio.") {
			t.Errorf("tag %s, want none of the mesh's own", tag)
		}
	}
	if next := w.web.calls()[0].header.Get("traceparent"); next != appParent {
		t.Errorf("the next application is told %s, want what the one before said", next)
	}
}
