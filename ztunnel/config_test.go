package ztunnel

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func env(kv map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := kv[k]; return v, ok }
}

func TestConfigDefaultsAreIstios(t *testing.T) {
	got, err := LoadConfig(env(map[string]string{"XDS_ADDRESS": "https://istiod.istio-system.svc:15012", "PROXY_MODE": "Shared"}))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Mode: ModeShared, XDSAddress: "https://istiod.istio-system.svc:15012", XDSRoot: "/var/run/secrets/istio/root-cert.pem",
		CAAddress: "https://istiod.istio-system.svc:15012", CARoot: "/var/run/secrets/istio/root-cert.pem",
		TokenFile: "/var/run/secrets/tokens/istio-token", ClusterID: "Kubernetes", TrustDomain: "cluster.local",
		ZDSSocket: "/var/run/ztunnel/ztunnel.sock", Grace: 30 * time.Second, SecretTTL: 24 * time.Hour,
		AdminAddr: "127.0.0.1:15000", MetricsAddr: ":15020", ReadinessAddr: ":15021", SOCKSAddr: "127.0.0.1:15080",
		OutboundAddr: "127.0.0.1:15001", PlaintextAddr: ":15006", HBONEAddr: ":15008",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if d := got.drainTime(); d != 25*time.Second {
		t.Errorf("drains for %v", d)
	}
}

func TestConfigNamesEachMistake(t *testing.T) {
	_, err := LoadConfig(env(map[string]string{
		"PROXY_MODE": "both", "TERMINATION_GRACE_PERIOD_SECONDS": "soon", "SECRET_TTL": "-1h", "ADMIN_ADDR": "localhost",
	}))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"PROXY_MODE", "TERMINATION_GRACE_PERIOD_SECONDS", "SECRET_TTL", `"localhost"`, "XDS_ADDRESS", "CA_ADDRESS"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not name %s: %v", want, err)
		}
	}
	_, err = LoadConfig(env(map[string]string{"PROXY_MODE": "dedicated", "LOCAL_XDS_PATH": "x", "AMBIT_CA_DIR": "y"}))
	if err == nil || !strings.Contains(err.Error(), "POD_NAME") {
		t.Errorf("dedicated without a workload: %v", err)
	}
}

func TestServerNameIsTheServiceThatIsAddressed(t *testing.T) {
	for in, want := range map[string]string{
		"https://istiod.istio-system.svc:15012":       "istiod.istio-system.svc",
		"https://istiod.mesh.svc:15012":               "istiod.mesh.svc",
		"https://istiod.mesh.svc.cluster.local:15012": "istiod.mesh.svc",
		"https://localhost:15012":                     "istiod.istio-system.svc",
		"https://10.0.0.1:15012":                      "istiod.istio-system.svc",
		"::":                                          "istiod.istio-system.svc",
	} {
		if got := serverName(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
