package agent

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/internal/telemetry"
)

func environment() map[string]string {
	return map[string]string{
		"GATEWAY_NAME": "waypoint", "POD_NAME": "waypoint-6c9f-x", "POD_NAMESPACE": "shop", "SERVICE_ACCOUNT": "waypoint", "INSTANCE_IP": "10.0.0.7",
	}
}

func load(env map[string]string) (Config, error) {
	return LoadConfig(KindWaypoint, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
}

func TestDefaults(t *testing.T) {
	got, err := load(environment())
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Kind: KindWaypoint, XDSAddress: "https://istiod.istio-system.svc:15012", XDSRoot: "/var/run/secrets/istio/root-cert.pem",
		MeshRoots: "/var/run/secrets/istio/root-cert.pem",
		CAAddress: "https://istiod.istio-system.svc:15012", CARoot: "/var/run/secrets/istio/root-cert.pem", TokenFile: "/var/run/secrets/tokens/istio-token",
		ClusterID: "Kubernetes", TrustDomain: "cluster.local", Domain: "cluster.local", GatewayName: "waypoint", PodName: "waypoint-6c9f-x",
		PodNamespace: "shop", ServiceAccount: "waypoint", InstanceIP: "10.0.0.7", LabelsFile: DefaultLabelsFile,
		Grace: 30 * time.Second, DrainMinimum: 5 * time.Second, SecretTTL: 24 * time.Hour, Envoy: DefaultEnvoy, Directory: DefaultDirectory,
		MaxConnections: defaultMaxConnections, AdminAddr: "127.0.0.1:15000", MetricsAddr: ":15020", ReadinessAddr: ":15021", EnvoyLogLevel: "warning",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got.socket() != "/var/run/ambit/xds.sock" || got.drainMaximum() != 25*time.Second || got.identity().String() != waypointID {
		t.Errorf("socket %q, drain %v, identity %q", got.socket(), got.drainMaximum(), got.identity())
	}
}

func TestBadSettingsAreNamed(t *testing.T) {
	for key, value := range map[string]string{
		"GATEWAY_NAME": "", "POD_NAME": "", "POD_NAMESPACE": "", "SERVICE_ACCOUNT": "", "INSTANCE_IP": "nowhere", "ADMIN_ADDR": "15000",
		"CPU_LIMIT": "two", "MEMORY_LIMIT": "-1", "MAX_DOWNSTREAM_CONNECTIONS": "0", "SECRET_TTL": "long", "MINIMUM_DRAIN_DURATION": "-1s",
		"TERMINATION_GRACE_PERIOD_SECONDS": "x",
	} {
		env := environment()
		env[key] = value
		if _, err := load(env); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s=%q: %v", key, value, err)
		}
	}
	for key, value := range map[string]string{"XDS_ADDRESS": "istiod:15012", "CA_ADDRESS": "ftp://x:1", "TRUST_DOMAIN": "Not Good", "POD_NAMESPACE": "a/b"} {
		env := environment()
		env[key] = value
		if _, err := load(env); err == nil || !strings.Contains(err.Error(), value) {
			t.Errorf("%s=%q: %v", key, value, err)
		}
	}
	if _, err := LoadConfig("sidecar", func(k string) (string, bool) { v, ok := environment()[k]; return v, ok }); err == nil {
		t.Error("an unknown kind passes")
	}
}

func TestSettings(t *testing.T) {
	env := environment()
	maps.Copy(env, map[string]string{
		"CPU_LIMIT": "2", "MEMORY_LIMIT": "1073741824", "STATS_INCLUSION_PREFIXES": "cluster.outbound, ,http.", "MINIMUM_DRAIN_DURATION": "7s",
		"TERMINATION_GRACE_PERIOD_SECONDS": "60", "XDS_ADDRESS": "https://istiod.mesh.svc.cluster.local:15012",
	})
	got, err := load(env)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"cluster.outbound", "http."}, got.StatsPrefixes); diff != "" {
		t.Error(diff)
	}
	if got.Concurrency != 2 || got.MemoryLimit != 1<<30 || got.DrainMinimum != 7*time.Second || got.drainMaximum() != 55*time.Second {
		t.Errorf("%+v", got)
	}
	if name := got.xds().ServerName; name != "istiod.mesh.svc" || got.ca().Address != env["XDS_ADDRESS"] {
		t.Errorf("server %q, CA %q", name, got.ca().Address)
	}
	if text := got.LogValue().String(); !strings.Contains(text, "istio-token") || strings.Contains(text, testToken) {
		t.Errorf("logged as %s", text)
	}
}

func TestLabels(t *testing.T) {
	got, err := parseLabels("app=\"web\"\nnote=\"a \\\"b\\\"\\n=c\"\n\nempty=\"\"")
	if diff := cmp.Diff(map[string]string{"app": "web", "note": "a \"b\"\n=c", "empty": ""}, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, bad := range []string{"app", "app=web", "=\"web\"", "app=\"web"} {
		if got, err := parseLabels(bad); err == nil {
			t.Errorf("%q reads as %v", bad, got)
		}
	}
	if got, err := readLabels(filepath.Join(t.TempDir(), "missing")); got != nil || err != nil {
		t.Errorf("a file that is not there: %v, %v", got, err)
	}
	if _, err := readLabels(t.TempDir()); err == nil {
		t.Error("a directory is read")
	}
	big := filepath.Join(t.TempDir(), "labels")
	if err := os.WriteFile(big, make([]byte, maxLabelsBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readLabels(big); err == nil {
		t.Error("a file without bounds is read")
	}
}

func FuzzParseLabels(f *testing.F) {
	f.Add("app=\"web\"\nversion=\"v1\"")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseLabels(s)
		if err == nil && len(got) > strings.Count(s, "=") {
			t.Errorf("%q reads as %v", s, got)
		}
	})
}

// TestSelf: a gateway is named in metrics as istiod names it.
func TestSelf(t *testing.T) {
	cfg, err := load(environment())
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		labels map[string]string
		want   telemetry.Peer
	}{
		"deployed by istiod": {
			map[string]string{"pod-template-hash": "6c9f", "service.istio.io/canonical-name": "edge", "service.istio.io/canonical-revision": "latest"},
			telemetry.Peer{Workload: "waypoint", Namespace: "shop", Cluster: "Kubernetes", CanonicalService: "edge", CanonicalRevision: "latest"},
		},
		"by a chart": {
			map[string]string{"pod-template-hash": "6c9f", "app": "gw", "version": "v1"},
			telemetry.Peer{Workload: "waypoint", Namespace: "shop", Cluster: "Kubernetes", CanonicalService: "gw", CanonicalRevision: "v1", App: "gw", Version: "v1"},
		},
		"by hand": {nil, telemetry.Peer{Workload: "waypoint-6c9f-x", Namespace: "shop", Cluster: "Kubernetes", CanonicalService: "waypoint-6c9f-x", CanonicalRevision: "latest"}},
	} {
		a := &app{cfg: cfg, labels: tc.labels}
		if diff := cmp.Diff(tc.want, a.self().Peer); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}

func TestSocket(t *testing.T) {
	if _, err := listenUnix("/tmp/" + strings.Repeat("x", maxSocketPath)); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("a name that is too long: %v", err)
	}
	path := filepath.Join(t.TempDir(), "s")
	write(t, path, "left by one that was killed")
	l, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := listenUnix("/proc/1/nowhere/s"); err == nil {
		t.Error("a directory that cannot be")
	}
}
