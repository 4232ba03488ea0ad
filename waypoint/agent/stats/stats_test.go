package stats

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/ambit-mesh/ambit/internal/telemetry"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func gateway() Self {
	return Self{telemetry.Peer{
		Workload: "gateway-istio", Namespace: "edge", CanonicalService: "gateway-istio", CanonicalRevision: "latest",
		App: "gateway-istio", Version: "latest", Cluster: "Kubernetes",
	}}
}

func rewrite(t testing.TB, r *Rewriter, in string) string {
	t.Helper()
	var out bytes.Buffer
	if err := r.Copy(&out, strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// valid fails the test if Prometheus would refuse the page.
func valid(t testing.TB, page string) {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	if _, err := parser.TextToMetricFamilies(strings.NewReader(page)); err != nil {
		t.Errorf("Prometheus would refuse the page: %v\n%s", err, page)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(page) {
		series, _, _ := cut(line)
		if !strings.HasPrefix(line, "#") && strings.TrimSpace(line) != "" {
			if seen[series] {
				t.Errorf("the series %s is there twice", series)
			}
			seen[series] = true
		}
	}
}

// cut splits a line at its value.
func cut(line string) (series, value string, ok bool) {
	i := strings.LastIndexByte(strings.TrimRight(line, "\n"), ' ')
	if i < 0 {
		return line, "", false
	}
	return line[:i], line[i+1:], true
}

// TestGolden compares pages as Envoy gives them, in testdata, with what becomes of them.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob(filepath.Join("testdata", "*.in.txt"))
	if err != nil || len(inputs) == 0 {
		t.Fatalf("inputs %v, %v", inputs, err)
	}
	for _, input := range inputs {
		t.Run(strings.TrimSuffix(filepath.Base(input), ".in.txt"), func(t *testing.T) {
			in, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			got := rewrite(t, New(gateway()), string(in))
			valid(t, got)
			golden := strings.Replace(input, ".in.", ".golden.", 1)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-golden +now)\n%s", diff)
			}
		})
	}
}

// TestSeriesThatBecomeEqualAreAddedUp: Prometheus refuses a page with two series of the same labels.
func TestSeriesThatBecomeEqualAreAddedUp(t *testing.T) {
	r := New(gateway())
	got := rewrite(t, r, `# TYPE envoy_mesh_requests_total counter
envoy_mesh_requests_total{reporter="waypoint",source_baggage="service.name=a,cloud.region=x"} 2
envoy_mesh_requests_total{reporter="waypoint",source_baggage="service.name=a,cloud.region=y"} 3
# TYPE envoy_mesh_request_bytes histogram
envoy_mesh_request_bytes_bucket{reporter="waypoint",source_baggage="service.name=a,x=1",le="1"} 1
envoy_mesh_request_bytes_bucket{reporter="waypoint",source_baggage="service.name=a,x=1",le="+Inf"} 2
envoy_mesh_request_bytes_sum{reporter="waypoint",source_baggage="service.name=a,x=1"} 10
envoy_mesh_request_bytes_count{reporter="waypoint",source_baggage="service.name=a,x=1"} 2
envoy_mesh_request_bytes_bucket{reporter="waypoint",source_baggage="service.name=a,x=2",le="1"} 3
envoy_mesh_request_bytes_bucket{reporter="waypoint",source_baggage="service.name=a,x=2",le="+Inf"} 4
envoy_mesh_request_bytes_sum{reporter="waypoint",source_baggage="service.name=a,x=2"} 20
envoy_mesh_request_bytes_count{reporter="waypoint",source_baggage="service.name=a,x=2"} 4
`)
	valid(t, got)
	for _, want := range []string{"istio_requests_total{", `,le="1"} 4` + "\n", `,le="+Inf"} 6` + "\n", "} 30\n", "istio_request_bytes_count{"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if n := strings.Count(got, "istio_requests_total{"); n != 1 {
		t.Errorf("%d series of requests, want 1", n)
	}
}

// TestHistogramsAreCutAnywhere: a batch ends where it is full, in the middle of a histogram too.
func TestHistogramsAreCutAnywhere(t *testing.T) {
	var in strings.Builder
	in.WriteString("# TYPE envoy_mesh_request_bytes histogram\n")
	const series = 400
	padding := strings.Repeat("x", 100)
	for i := range series {
		labels := fmt.Sprintf(`reporter="waypoint",destination_service="s%d",path="%s"`, i, padding)
		for b := 1; b <= 10; b++ {
			fmt.Fprintf(&in, "envoy_mesh_request_bytes_bucket{%s,le=\"%d\"} %d\n", labels, b, i)
		}
		fmt.Fprintf(&in, "envoy_mesh_request_bytes_bucket{%s,le=\"+Inf\"} %d\nenvoy_mesh_request_bytes_sum{%s} 7\nenvoy_mesh_request_bytes_count{%s} %d\n", labels, i, labels, labels, i)
	}
	if in.Len() < 2*batchBytes {
		t.Fatalf("%d bytes are one batch only", in.Len())
	}
	r := New(gateway())
	got := rewrite(t, r, in.String())
	valid(t, got)
	if n := strings.Count(got, "_sum{"); n != series || r.Dropped() != 0 {
		t.Errorf("%d histograms, %d dropped; want %d and none", n, r.Dropped(), series)
	}
	if strings.Contains(got, "_sum{") && strings.Count(got, "} 7\n") < series {
		t.Error("a sum was split")
	}
}

func TestSeriesAreBounded(t *testing.T) {
	r := New(gateway())
	r.limit = 3
	var in strings.Builder
	in.WriteString("# TYPE envoy_mesh_requests_total counter\n")
	for i := range 5 {
		fmt.Fprintf(&in, "envoy_mesh_requests_total{reporter=\"waypoint\",destination_service=\"s%d\"} 1\n", i)
	}
	if got := rewrite(t, r, in.String()); strings.Count(got, "istio_requests_total{") != 3 || r.Dropped() != 2 {
		t.Errorf("%d dropped of\n%s", r.Dropped(), got)
	}
}

// TestBadLinesCostThemselves: what cannot be read is counted, and the rest is there.
func TestBadLinesCostThemselves(t *testing.T) {
	for name, tc := range map[string]struct {
		line    string
		dropped uint64
	}{
		"no value":        {`envoy_mesh_requests_total{reporter="waypoint"}`, 1},
		"no quote":        {`envoy_mesh_requests_total{reporter="waypoint} 1`, 1},
		"not a number":    {`envoy_mesh_requests_total{reporter="waypoint"} many`, 1},
		"too long":        {`envoy_mesh_requests_total{reporter="` + strings.Repeat("x", 2*maxLineBytes) + `"} 1`, 1},
		"another's":       {`go_goroutines 1`, 0},
		"a comment":       {`# HELP envoy_mesh_requests_total x`, 0},
		"not UTF-8":       {"envoy_mesh_requests_total{reporter=\"waypoint\",destination_service=\"\xff\"} 1", 0},
		"carriage return": {"envoy_mesh_requests_total{reporter=\"waypoint\",destination_service=\"b\"} 1\r", 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := New(gateway())
			got := rewrite(t, r, "# TYPE envoy_mesh_requests_total counter\n"+
				"envoy_mesh_requests_total{reporter=\"waypoint\",response_code=\"200\"} 1\n"+tc.line+"\n"+
				"envoy_mesh_requests_total{reporter=\"waypoint\",response_code=\"500\"} 1\n# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n")
			valid(t, got)
			if r.Dropped() != tc.dropped {
				t.Errorf("%d dropped, want %d", r.Dropped(), tc.dropped)
			}
			for _, want := range []string{`response_code="200"`, `response_code="500"`, "envoy_server_live{} 1\n"} {
				if !strings.Contains(got, want) {
					t.Errorf("no %s in\n%s", want, got)
				}
			}
		})
	}
	r := New(gateway())
	if got := rewrite(t, r, "istio_requests_total 1\n\xff\nenvoy_x 1"); got != "envoy_x 1\n" || r.Dropped() != 2 {
		t.Errorf("what is not Envoy's: %q, %d dropped", got, r.Dropped())
	}
}

type brokenWriter struct{}

var errBroken = errors.New("broken")

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

type brokenReader struct{ text string }

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.text == "" {
		return 0, errBroken
	}
	n := copy(p, b.text)
	b.text = b.text[n:]
	return n, nil
}

func TestErrorsAreTold(t *testing.T) {
	r := New(gateway())
	for _, in := range []string{"envoy_a 1\n", "# TYPE envoy_mesh_requests_total counter\nenvoy_mesh_requests_total 1\n"} {
		if err := r.Copy(brokenWriter{}, strings.NewReader(in)); !errors.Is(err, errBroken) {
			t.Errorf("writer: %v", err)
		}
	}
	if err := r.Copy(io.Discard, &brokenReader{"envoy_a 1\n"}); !errors.Is(err, errBroken) {
		t.Errorf("reader: %v", err)
	}
	if err := r.Copy(io.Discard, &brokenReader{"envoy_" + strings.Repeat("x", maxLineBytes)}); !errors.Is(err, errBroken) {
		t.Errorf("reader within a long line: %v", err)
	}
}

// serve runs the handler over HTTP, because what is tested shows on the wire.
func serve(t *testing.T, r *Rewriter, open func(context.Context) (io.ReadCloser, error)) string {
	t.Helper()
	reg := prometheus.NewRegistry()
	own := prometheus.NewCounter(prometheus.CounterOpts{Name: "own_total", Help: "Own."})
	reg.MustRegister(own)
	s := httptest.NewServer(Handler(r, open, reg, slog.New(slog.DiscardHandler)))
	t.Cleanup(s.Close)
	return s.URL
}

func opens(text string) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
}

func TestHandler(t *testing.T) {
	url := serve(t, New(gateway()), opens("envoy_a 1\n"))
	for _, path := range []string{"/metrics", "/stats/prometheus"} {
		for _, zipped := range []bool{false, true} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if zipped {
				req.Header.Set("Accept-Encoding", "gzip")
			}
			resp, err := (&http.Transport{DisableCompression: true}).RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			body := io.Reader(resp.Body)
			if zipped {
				if body, err = gzip.NewReader(resp.Body); err != nil {
					t.Fatal(err)
				}
			}
			b, err := io.ReadAll(body)
			resp.Body.Close()
			if want := "# HELP own_total Own.\n# TYPE own_total counter\nown_total 0\nenvoy_a 1\n"; err != nil || string(b) != want {
				t.Errorf("%s: %q, %v; want %q", path, b, err, want)
			}
			if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/plain; version=0.0.4") {
				t.Errorf("%s: content type %q", path, got)
			}
		}
	}
}

// TestHandlerWithoutEnvoy: while Envoy starts the agent's own metrics are there; a page that breaks off is no whole page.
func TestHandlerWithoutEnvoy(t *testing.T) {
	r := New(gateway())
	url := serve(t, r, func(context.Context) (io.ReadCloser, error) { return nil, errBroken })
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !strings.Contains(string(b), "own_total 0\n") || r.Unreachable() != 1 {
		t.Errorf("%q, %v, %d unreachable", b, err, r.Unreachable())
	}
	url = serve(t, r, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(&brokenReader{strings.Repeat("envoy_a 1\n", 1000)}), nil
	})
	for _, zipped := range []bool{false, true} {
		transport := &http.Transport{DisableCompression: !zipped}
		resp, err := (&http.Client{Transport: transport}).Get(url + "/metrics")
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		transport.CloseIdleConnections()
		if err == nil {
			t.Errorf("compressed %v: half a page passes for a whole one", zipped)
		}
	}
}

func FuzzCopy(f *testing.F) {
	inputs, err := filepath.Glob(filepath.Join("testdata", "*.in.txt"))
	if err != nil {
		f.Fatal(err)
	}
	for _, input := range inputs {
		b, err := os.ReadFile(input)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("# TYPE envoy_mesh_requests_total counter\nenvoy_mesh_requests_total{a=\"\xff\"} 1\n")
	f.Fuzz(func(t *testing.T, in string) {
		out := rewrite(t, New(gateway()), in)
		parser := expfmt.NewTextParser(model.UTF8Validation)
		if _, err := parser.TextToMetricFamilies(strings.NewReader(in)); err != nil {
			return // what was bad may stay bad
		}
		if _, err := parser.TextToMetricFamilies(strings.NewReader(out)); err != nil {
			t.Errorf("a good page became a bad one: %v\n%q\n%q", err, in, out)
		}
	})
}

func FuzzParseBaggage(f *testing.F) {
	f.Add("k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,service.version=v1")
	f.Add("=,;,k8s.pod.name")
	f.Fuzz(func(t *testing.T, s string) {
		p := parseBaggage(s)
		for _, v := range []string{p.Workload, p.Namespace, p.CanonicalService, p.CanonicalRevision, p.Cluster} {
			if strings.ContainsAny(v, ",;") || !strings.Contains(s, v) {
				t.Errorf("%q has %q", s, v)
			}
		}
	})
}

func BenchmarkCopy(b *testing.B) {
	in, err := os.ReadFile(filepath.Join("testdata", "waypoint.in.txt"))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	r := New(gateway())
	for b.Loop() {
		if err := r.Copy(io.Discard, bytes.NewReader(in)); err != nil {
			b.Fatal(err)
		}
	}
}
