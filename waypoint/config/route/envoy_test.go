package route

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/tests/envoybin"
)

// object is JSON.
type object = map[string]any

// toJSON is protobuf's JSON in a form that does not change from run to run.
func toJSON(t testing.TB, m proto.Message) json.RawMessage {
	t.Helper()
	b, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	if b, err = json.Marshal(v); err != nil {
		t.Fatal(err)
	}
	return b
}

// manager serves a table behind a filter chain.
func manager(t testing.TB, filters []*hcmv3.HttpFilter, table *routev3.RouteConfiguration) *listenerv3.Filter {
	t.Helper()
	any, err := pack(&hcmv3.HttpConnectionManager{
		StatPrefix: "test", HttpFilters: filters,
		UseRemoteAddress: wrapperspb.Bool(false),
		UpgradeConfigs:   []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		RouteSpecifier:   &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: table},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &listenerv3.Filter{Name: "envoy.filters.network.http_connection_manager", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: any}}
}

// socket is a listener on a free port of loopback.
func socket(t testing.TB, name string, filters ...*listenerv3.Filter) object {
	t.Helper()
	var all []json.RawMessage
	for _, f := range filters {
		all = append(all, toJSON(t, f))
	}
	return object{
		"name":          name,
		"address":       object{"socket_address": object{"address": "127.0.0.1", "port_value": 0}},
		"filter_chains": []object{{"filters": all}},
	}
}

// cluster has one endpoint.
func cluster(name string, address netip.AddrPort, http2 bool) object {
	out := object{
		"name": name, "type": "STATIC", "connect_timeout": "1s",
		"load_assignment": object{"cluster_name": name, "endpoints": []object{{"lb_endpoints": []object{endpoint(address)}}}},
	}
	if http2 {
		out["typed_extension_protocol_options"] = object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
			"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicit_http_config": object{"http2_protocol_options": object{}},
		}}
	}
	return out
}

func endpoint(a netip.AddrPort) object {
	return object{"endpoint": object{"address": object{"socket_address": object{"address": a.Addr().String(), "port_value": a.Port()}}}}
}

// bootstrap is a configuration of Envoy.
func bootstrap(t testing.TB, listeners, clusters []object) []byte {
	t.Helper()
	b, err := json.Marshal(object{
		"node":  object{"id": "test", "cluster": "test"},
		"admin": object{"address": object{"socket_address": object{"address": "127.0.0.1", "port_value": 0}}},
		"bootstrap_extensions": []object{{
			"name":         "envoy.bootstrap.internal_listener",
			"typed_config": object{"@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"},
		}},
		"static_resources": object{"listeners": listeners, "clusters": clusters},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// validate lets the real Envoy load a configuration.
func validate(t testing.TB, config []byte) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, envoybin.Path(t), "--mode", "validate", "-c", path, "--log-level", "error").CombinedOutput()
	return string(out), err
}

// envoy is a running Envoy.
type envoy struct {
	admin string
	addrs map[string]string
}

// start runs Envoy until the test ends.
func start(t *testing.T, config []byte) *envoy {
	t.Helper()
	dir := t.TempDir()
	path, admin := filepath.Join(dir, "envoy.json"), filepath.Join(dir, "admin")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, envoybin.Path(t), "-c", path, "--admin-address-path", admin, "--use-dynamic-base-id",
		"--concurrency", "2", "--log-level", "warning", "--disable-hot-restart")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", log.String())
		}
	})
	e := &envoy{addrs: map[string]string{}}
	until(t, "Envoy is ready", func() bool {
		select {
		case <-ended:
			t.Fatalf("Envoy exited:\n%s", log.String())
		default:
		}
		b, err := os.ReadFile(admin)
		if err != nil || len(b) == 0 {
			return false
		}
		e.admin = "http://" + strings.TrimSpace(string(b))
		ready, err := e.get("/ready")
		return err == nil && strings.HasPrefix(ready, "LIVE")
	})
	list, err := e.get("/listeners")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Fields(list) {
		if name, address, ok := strings.Cut(line, "::"); ok {
			e.addrs[name] = address
		}
	}
	return e
}

func (e *envoy) get(path string) (string, error) {
	resp, err := http.Get(e.admin + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}

// indented makes JSON readable.
func indented(b []byte) string {
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", " "); err != nil {
		return string(b)
	}
	return out.String()
}
