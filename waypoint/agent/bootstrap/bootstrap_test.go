package bootstrap

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/tests/envoybin"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func sample() Config {
	return Config{
		Kind: "waypoint", IP: "10.0.0.7", Pod: "waypoint-6c9f-x", Namespace: "shop", Domain: "cluster.local", Gateway: "waypoint",
		ServiceAccount: "waypoint", ClusterID: "Kubernetes", NodeName: "node-1", Labels: map[string]string{"app": "waypoint"},
		Socket: "/var/run/ambit/xds.sock", Admin: netip.MustParseAddrPort("127.0.0.1:15000"), MaxConnections: 65536,
	}
}

func cases() map[string]Config {
	full := sample()
	full.Kind, full.IP, full.Network, full.MemoryLimit, full.JSON = "router", "fd00::7", "network-1", 1<<30, true
	full.StatsPrefixes, full.Admin = []string{"cluster.outbound"}, netip.MustParseAddrPort("[::1]:15000")
	return map[string]Config{"waypoint": sample(), "gateway": full}
}

// TestEnvoyTakesTheBootstrap compares with the golden files and has each checked by the real Envoy.
func TestEnvoyTakesTheBootstrap(t *testing.T) {
	for name, c := range cases() {
		t.Run(name, func(t *testing.T) {
			b, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "envoy.json")
			if err := Write(file, b); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			// protojson varies its spaces on purpose.
			var stable bytes.Buffer
			if err := json.Indent(&stable, compact(t, got), "", "  "); err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".golden.json")
			if *update {
				if err := os.WriteFile(golden, append(stable.Bytes(), '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), stable.String()+"\n"); diff != "" {
				t.Errorf("bootstrap changed (-golden +now); if that is wanted: go test ./waypoint/agent/bootstrap -update\n%s", diff)
			}
			out, err := exec.CommandContext(t.Context(), envoybin.Path(t), "--mode", "validate", "--config-path", file).CombinedOutput()
			if err != nil || bytes.Contains(out, []byte("deprecated")) {
				t.Errorf("envoy refuses it: %v\n%s", err, out)
			}
		})
	}
}

func compact(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestAdminIsLoopback(t *testing.T) {
	c := sample()
	c.Admin = netip.MustParseAddrPort("0.0.0.0:15000")
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("admin pages for everybody: %v", err)
	}
	c = sample()
	c.MaxConnections = 0
	if _, err := New(c); err == nil {
		t.Error("no connection is allowed, and nobody says so")
	}
}

// TestTags: the names of statistics, full of dots and of names with dots, are cut where they should be.
func TestTags(t *testing.T) {
	for stat, want := range map[string][]string{
		"cluster.outbound|80||web.shop.svc.cluster.local.upstream_rq_retry":               {"cluster_name", "outbound|80||web.shop.svc.cluster.local"},
		"cluster.outbound|80|v1|a.b.svc.cluster.local.outlier_detection.ejections_active": {"cluster_name", "outbound|80|v1|a.b.svc.cluster.local"},
		"cluster.xds.upstream_cx_active":                                                  {"cluster_name", "xds"},
		"cluster.outbound|80||default.example.com.circuit_breakers.default.rq_open":       {"cluster_name", "outbound|80||default.example.com"},
		"listener.0.0.0.0_15008.downstream_cx_active":                                     {"listener_address", "0.0.0.0_15008"},
		"listener.[__]_15008.worker_3.downstream_cx_active":                               {"listener_address", "[__]_15008", "worker_id", "3"},
		"http.connect_terminate.downstream_rq_active":                                     {"http_conn_manager_prefix", "connect_terminate"},
		"http.main_http.downstream_rq_5xx":                                                {"http_conn_manager_prefix", "main_http", "response_code_class", "5xx"},
		"http.main_http.rbac.denied":                                                      {"http_conn_manager_prefix", "main_http", "rbac_result", "denied"},
		"server.main_thread.watchdog_miss":                                                {"thread_name", "main_thread"},
		"sds.kubernetes://shop/web.example.com.update_success":                            {"secret", "kubernetes://shop/web.example.com"},
		"tcp.connect_originate.downstream_cx_total":                                       {"tcp_prefix", "connect_originate"},
		"cluster_manager.cds.update_success":                                              nil,
	} {
		var got []string
		for _, tag := range tags() {
			// Go's engine and Envoy's agree on what is used here.
			m := regexp.MustCompile(tag.expression).FindStringSubmatch(stat)
			if m != nil {
				got = append(got, tag.name, m[2])
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", stat, diff)
		}
	}
}

func TestWriteIsWholeOrNotAtAll(t *testing.T) {
	b, err := New(sample())
	if err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(t.TempDir(), "missing", "envoy.json"), b); err == nil {
		t.Error("writing into a directory that does not exist passes")
	}
}
