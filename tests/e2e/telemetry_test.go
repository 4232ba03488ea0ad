package e2e

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/tests/demo/collect"
	"github.com/ambit-mesh/ambit/tests/demo/probe"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

//go:embed telemetry.yaml
var telemetryManifest string

const (
	telemetryNS = "telemetry"
	observeNS   = "observe"
	ofWaypoint  = "gateway.networking.k8s.io/gateway-name=waypoint"
	clientID    = "spiffe://cluster.local/ns/telemetry/sa/client"
	productID   = "spiffe://cluster.local/ns/telemetry/sa/product"
	productHost = "product.telemetry.svc.cluster.local"
)

// meshConfig is Istio's mesh configuration with a collector, which spans reach by the port, and a log format.
const meshConfig = `apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: spans
      opentelemetry: %s
    - name: records
      envoyOtelAls: {service: collector.observe.svc.cluster.local, port: 4317}
    - name: lines
      envoyFileAccessLog: {path: /dev/stdout, logFormat: {labels: {path: "%%REQ(:PATH)%%", code: "%%RESPONSE_CODE%%", from: "%%FILTER_STATE(mesh.peer_principal:PLAIN)%%"}}}
`

const (
	spansByGRPC = "{service: collector.observe.svc.cluster.local, port: 4317}"
	spansByHTTP = "{service: collector.observe.svc.cluster.local, port: 4318, http: {path: /v1/traces, headers: [{name: x-team, value: 100% shop}]}}"
)

// TestTelemetry looks at what a waypoint tells about the requests that it serves, and changes that with Istio's
// Telemetry resources and mesh configuration.
func TestTelemetry(t *testing.T) {
	stand(t)
	t.Run("metrics have Istio's labels", metricsHaveLabels)
	t.Run("metrics are changed", metricsAreChanged)
	t.Run("logs name both ends", logsNameBothEnds)
	t.Run("spans join the applications", spansJoin)
	t.Run("sampling is changed", samplingIsChanged)
	t.Run("the mesh configuration is changed", meshConfigIsChanged)
}

// stand deploys the manifest and the waypoint, until the test ends.
func stand(t *testing.T) {
	t.Helper()
	tools := world.Image("tools")
	tmpl, err := template.New("telemetry").Option("missingkey=error").Parse(telemetryManifest)
	must(t, err)
	var manifest strings.Builder
	must(t, tmpl.Execute(&manifest, []map[string]any{
		{"Name": "client", "Namespace": telemetryNS, "Image": tools, "Command": "serve", "Port": 8080},
		{"Name": "product", "Namespace": telemetryNS, "Image": tools, "Command": "serve", "Port": 8080},
		{"Name": "collector", "Namespace": observeNS, "Image": tools, "Command": "collect", "Port": 4317},
	}))
	_, err = world.Kubectl(t.Context(), "delete", "namespace", telemetryNS, observeNS, "--ignore-not-found")
	must(t, err)
	t.Cleanup(func() {
		_, err := world.Kubectl(context.WithoutCancel(t.Context()), "delete", "namespace", telemetryNS, observeNS, "--ignore-not-found", "--wait=false")
		if err := errors.Join(err, world.Delete(context.WithoutCancel(t.Context()), fmt.Sprintf(meshConfig, spansByGRPC))); err != nil {
			t.Error(err)
		}
	})
	must(t, world.Apply(t.Context(), fmt.Sprintf(meshConfig, spansByGRPC)))
	must(t, world.Apply(t.Context(), manifest.String()))
	for _, ns := range []string{telemetryNS, observeNS} {
		must(t, world.WaitRollout(t.Context(), ns, "deployment", ""))
		must(t, world.WaitCaptured(t.Context(), ns, true))
	}
	_, err = world.Ambit(t.Context(), "waypoint", "apply", "-n", telemetryNS, "--enroll-namespace", "--wait")
	must(t, err)
	await(t, "requests pass the waypoint", func(ctx context.Context) error {
		r, err := ask(ctx, "/")
		if err != nil {
			return err
		}
		if r.OK() != 1 || r.LastHeaders.Get("x-envoy-upstream-service-time") == "" {
			return fmt.Errorf("status %v with headers %v", r.Status, r.LastHeaders)
		}
		return nil
	})
}

// await is stage.Poll that ends the test.
func await(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	if err := stage.Poll(t.Context(), settleTimeout, f); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// ask requests a path of the service from the client's pod.
func ask(ctx context.Context, path string, args ...string) (probe.Report, error) {
	return world.Fetch(ctx, telemetryNS, "app=client", append(args, "http://product"+path)...)
}

// telemetry applies a Telemetry to the namespace, until the test ends.
func telemetry(t *testing.T, spec string) {
	t.Helper()
	manifest := "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: test, namespace: " + telemetryNS + "}\nspec:\n" + spec
	must(t, world.Apply(t.Context(), manifest))
	t.Cleanup(func() {
		if err := world.Delete(context.WithoutCancel(t.Context()), manifest); err != nil {
			t.Error(err)
		}
	})
}

// counted reads a metric of the waypoint, by a label of it.
func counted(ctx context.Context, metric, by string) (map[string]stage.Series, error) {
	all, err := world.Metrics(ctx, telemetryNS, ofWaypoint, metric)
	if err != nil {
		return nil, err
	}
	out := map[string]stage.Series{}
	for _, s := range all {
		out[s.Labels[by]] = s
	}
	return out, nil
}

// names of the metrics.
const (
	requestsTotal   = "istio_requests_total"
	requestDuration = "istio_request_duration_milliseconds"
	requestBytes    = "istio_request_bytes"
	responseBytes   = "istio_response_bytes"
)

func metricsHaveLabels(t *testing.T) {
	const requests = 7
	before := map[string]map[string]stage.Series{}
	metrics := []string{requestsTotal, requestDuration, requestBytes, responseBytes}
	for _, m := range metrics {
		var err error
		before[m], err = counted(t.Context(), m, "response_code")
		must(t, err)
	}
	_, err := ask(t.Context(), "/", fmt.Sprint("--count=", requests))
	must(t, err)
	_, err = ask(t.Context(), "/?status=404", fmt.Sprint("--count=", requests))
	must(t, err)
	_, err = world.Fetch(t.Context(), telemetryNS, "app=client", "http://nobody/")
	must(t, err)
	want := map[string]string{
		"reporter": "waypoint", "request_protocol": "http", "response_code": "200", "response_flags": "-", "connection_security_policy": "mutual_tls",
		"source_workload": "client", "source_workload_namespace": telemetryNS, "source_principal": clientID, "source_cluster": "Kubernetes",
		"source_app": "client", "source_version": "v1", "source_canonical_service": "client", "source_canonical_revision": "v1",
		"destination_workload": "product", "destination_workload_namespace": telemetryNS, "destination_principal": productID, "destination_cluster": "Kubernetes",
		"destination_app": "product", "destination_version": "v1", "destination_canonical_service": "product", "destination_canonical_revision": "v1",
		"destination_service": productHost, "destination_service_name": "product", "destination_service_namespace": telemetryNS,
	}
	for _, m := range metrics {
		var now map[string]stage.Series
		await(t, m, func(ctx context.Context) error {
			var err error
			if now, err = counted(ctx, m, "response_code"); err != nil {
				return err
			}
			for _, code := range []string{"200", "404"} {
				if n := now[code].Value - before[m][code].Value; n != requests {
					return fmt.Errorf("%v requests with status %s, want %d", n, code, requests)
				}
			}
			if now["503"].Value == 0 {
				return errors.New("the request that nobody answers is not counted")
			}
			return nil
		})
		if diff := cmp.Diff(want, now["200"].Labels); diff != "" {
			t.Errorf("%s (-want +got):\n%s", m, diff)
		}
		if l := now["503"].Labels; l["response_flags"] != "UH" || l["destination_service_name"] != "nobody" || l["destination_workload"] != "unknown" || l["source_workload"] != "client" {
			t.Errorf("%s of a service without pods: %v", m, l)
		}
		if sum := now["200"].Sum - before[m]["200"].Sum; m != requestsTotal && sum <= 0 {
			t.Errorf("%s adds up to %v", m, sum)
		}
	}
}

func metricsAreChanged(t *testing.T) {
	telemetry(t, `
  metrics:
  - providers: [{name: prometheus}]
    overrides:
    - {match: {metric: REQUEST_COUNT}, tagOverrides: {tenant: {value: "request.headers['x-tenant']"}, source_app: {operation: REMOVE}, request_method: {value: request.method}}}
    - {match: {metric: REQUEST_SIZE}, disabled: true}
`)
	await(t, "the labels", func(ctx context.Context) error {
		if _, err := ask(ctx, "/", "-H=x-tenant: acme"); err != nil {
			return err
		}
		all, err := counted(ctx, requestsTotal, "tenant")
		if err != nil {
			return err
		}
		s, ok := all["acme"]
		if !ok {
			return fmt.Errorf("no requests of the tenant: %v", all)
		}
		if _, there := s.Labels["source_app"]; there || s.Labels["request_method"] != "GET" || s.Labels["source_principal"] != clientID {
			return fmt.Errorf("labels %v", s.Labels)
		}
		return nil
	})
	all, err := counted(t.Context(), requestBytes, "")
	must(t, err)
	if len(all) > 0 {
		t.Errorf("%s is still there: %v", requestBytes, all)
	}
	all, err = counted(t.Context(), responseBytes, "tenant")
	must(t, err)
	if _, there := all["acme"]; there || len(all) == 0 {
		t.Errorf("%s, which was not to be changed: %v", responseBytes, all)
	}
}

func logsNameBothEnds(t *testing.T) {
	telemetry(t, `
  accessLogging:
  - providers: [{name: envoy}, {name: lines}, {name: records}]
    filter: {expression: "response.code >= 400"}
`)
	since := time.Now().Add(-time.Second)
	logged := func(ctx context.Context) (text, labels string, record collect.Record, err error) {
		lines, err := world.Lines(ctx, telemetryNS, ofWaypoint, since)
		if err != nil {
			return "", "", record, err
		}
		got, err := world.Collected(ctx, observeNS, "app=collector", "")
		if err != nil {
			return "", "", record, err
		}
		for _, l := range lines {
			switch {
			case !strings.Contains(l, "/failing"):
			case strings.HasPrefix(l, "{"):
				labels = l
			case strings.HasPrefix(l, "["):
				text = l
			}
		}
		for _, r := range got.Logs {
			if strings.Contains(r.Body, "/failing") {
				record = r
			}
		}
		if text == "" || labels == "" || record.Body == "" {
			return "", "", record, fmt.Errorf("text %q, labels %q, record %q", text, labels, record.Body)
		}
		return text, labels, record, nil
	}
	var text, labels string
	var record collect.Record
	await(t, "a request that fails is logged", func(ctx context.Context) error {
		if _, err := ask(ctx, "/fine"); err != nil {
			return err
		}
		if _, err := ask(ctx, "/failing?status=418"); err != nil {
			return err
		}
		var err error
		text, labels, record, err = logged(ctx)
		return err
	})
	for _, l := range []string{text, record.Body} {
		if !strings.Contains(l, `"GET /failing?status=418 HTTP/1.1" 418 `) || !strings.Contains(l, `"`+clientID+`" "`+productID+`"`) {
			t.Errorf("the log says %s", l)
		}
	}
	var got map[string]any
	must(t, json.Unmarshal([]byte(labels), &got))
	if diff := cmp.Diff(map[string]any{"path": "/failing?status=418", "code": float64(418), "from": clientID}, got); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"source_principal": clientID, "destination_principal": productID}, record.Attributes); diff != "" {
		t.Errorf("attributes of the record (-want +got):\n%s", diff)
	}
	lines, err := world.Lines(t.Context(), telemetryNS, ofWaypoint, since)
	must(t, err)
	if i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "/fine") }); i >= 0 {
		t.Errorf("the filter let through: %s", lines[i])
	}
}

// traced makes a request within a trace of an application, and waits until the collector has the waypoint's spans.
func traced(t *testing.T, via string) (app probe.Answer, server, client collect.Span) {
	t.Helper()
	const parent = "00f067aa0ba902b7"
	await(t, "spans by "+via, func(ctx context.Context) error {
		trace := fmt.Sprintf("%032x", time.Now().UnixNano()) // another one each time
		r, err := ask(ctx, "/traced", "-H=traceparent: 00-"+trace+"-"+parent+"-01")
		if err != nil {
			return err
		}
		if r.Last == nil || strings.Contains(r.Last.Headers.Get("Traceparent"), parent) {
			return errors.New("no span yet")
		}
		app = *r.Last
		// The tracer sends what it has every 5 s, or five spans.
		if _, err := ask(ctx, "/traced", "--count=3"); err != nil {
			return err
		}
		return stage.Poll(ctx, 2*time.Second, func(ctx context.Context) error {
			got, err := world.Collected(ctx, observeNS, "app=collector", trace)
			if err != nil {
				return err
			}
			server, client = collect.Span{}, collect.Span{}
			for _, s := range got.Spans {
				switch s.Kind {
				case "server":
					server = s
				case "client":
					client = s
				}
			}
			if server.ID == "" || client.ID == "" || server.Via.Protocol != via {
				return fmt.Errorf("spans %+v", got.Spans)
			}
			return nil
		})
	})
	if server.Parent != parent || client.Parent != server.ID {
		t.Errorf("the waypoint's span has parent %s, want %s; the one below it %s, want %s", server.Parent, parent, client.Parent, server.ID)
	}
	if want := "00-" + server.Trace + "-" + client.ID + "-01"; app.Headers.Get("Traceparent") != want {
		t.Errorf("the application got traceparent %s, want %s", app.Headers.Get("Traceparent"), want)
	}
	return app, server, client
}

const tracingAll = `
  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]
  tracing: [{providers: [{name: spans}], randomSamplingPercentage: 100, customTags: {team: {literal: {value: shop}}, agent: {header: {name: user-agent}}}}]
`

func spansJoin(t *testing.T) {
	telemetry(t, tracingAll)
	_, server, client := traced(t, collect.ViaGRPC)
	want := map[string]string{
		"http.method": "GET", "http.url": "http://product/traced", "http.status_code": "200", "response_flags": "-",
		"source.principal": clientID, "destination.principal": productID, "team": "shop", "agent": "Go-http-client/1.1",
		"istio.canonical_service": "waypoint", "istio.canonical_revision": "latest", "istio.namespace": telemetryNS,
		"istio.mesh_id": "cluster.local", "istio.cluster_id": "Kubernetes",
		"istio.source_workload": "client", "istio.source_namespace": telemetryNS, "istio.source_cluster_id": "Kubernetes",
		"istio.source_canonical_service": "client", "istio.source_canonical_revision": "v1",
		"istio.destination_workload": "product", "istio.destination_namespace": telemetryNS,
	}
	got := maps.Clone(server.Attributes)
	maps.DeleteFunc(got, func(tag, _ string) bool { _, asked := want[tag]; return !asked })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	if server.Service != "waypoint."+telemetryNS || server.Name != productHost+"/*" {
		t.Errorf("span %q of service %q", server.Name, server.Service)
	}
	if cluster := client.Attributes["upstream_cluster.name"]; cluster != "outbound|80||"+productHost {
		t.Errorf("the span below it is of cluster %q", cluster)
	}
}

func samplingIsChanged(t *testing.T) {
	told := func(t *testing.T, what, flags string, args ...string) {
		t.Helper()
		await(t, what, func(ctx context.Context) error {
			r, err := ask(ctx, "/", args...)
			if err != nil {
				return err
			}
			if r.Last == nil || !strings.HasSuffix(r.Last.Headers.Get("Traceparent"), flags) || r.Last.Headers.Get("Traceparent") == "" {
				return fmt.Errorf("the application was told %+v", r.Last)
			}
			return nil
		})
	}
	for _, c := range []struct{ percent, flags string }{{"100", "-01"}, {"0", "-00"}} {
		telemetry(t, "\n  tracing: [{providers: [{name: spans}], randomSamplingPercentage: "+c.percent+"}]\n")
		told(t, c.percent+" % of new traces", c.flags)
	}
	told(t, "a trace that its application records", "-01", "-H=traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
}

// meshConfigIsChanged sends spans by HTTP instead of gRPC; nothing restarts for it.
func meshConfigIsChanged(t *testing.T) {
	lives := func() map[string]string {
		t.Helper()
		istiod, err := world.Pods(t.Context(), stage.System, "app=istiod")
		must(t, err)
		waypoint, err := world.Pods(t.Context(), telemetryNS, ofWaypoint)
		must(t, err)
		return stage.Lives(append(istiod, waypoint...))
	}
	before := lives()
	telemetry(t, tracingAll)
	traced(t, collect.ViaGRPC)
	must(t, world.Apply(t.Context(), fmt.Sprintf(meshConfig, spansByHTTP)))
	t.Cleanup(func() {
		if err := world.Apply(context.WithoutCancel(t.Context()), fmt.Sprintf(meshConfig, spansByGRPC)); err != nil {
			t.Error(err)
		}
	})
	_, server, _ := traced(t, collect.ViaHTTP)
	want := collect.Via{Protocol: collect.ViaHTTP, Path: "/v1/traces", Authority: "collector.observe.svc.cluster.local", Headers: map[string]string{"x-team": "100% shop"}}
	server.Via.Headers = map[string]string{"x-team": server.Via.Headers["x-team"]}
	if diff := cmp.Diff(want, server.Via); diff != "" {
		t.Errorf("spans came by (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, lives()); diff != "" {
		t.Errorf("something restarted (-before +after):\n%s", diff)
	}
}
