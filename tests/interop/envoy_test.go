package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/tests/envoybin"
)

// envoy is a running Envoy.
type envoy struct {
	admin string
	addrs map[string]netip.AddrPort // of its listeners, by name
}

// startEnvoy runs Envoy with the configuration until the test ends.
func startEnvoy(t *testing.T, config string) *envoy {
	t.Helper()
	bin := envoybin.Path(t)
	dir := t.TempDir()
	adminFile := filepath.Join(dir, "admin")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, bin, "--config-yaml", config, "--admin-address-path", adminFile, "--use-dynamic-base-id",
		"--concurrency", "1", "--log-level", "warning", "--disable-hot-restart")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", log.String())
		}
	})
	e := &envoy{addrs: map[string]netip.AddrPort{}}
	until(t, "Envoy is ready", func() bool {
		select {
		case <-ended:
			t.Fatalf("Envoy exited: %s", log.String())
		default:
		}
		b, err := os.ReadFile(adminFile)
		if err != nil || len(b) == 0 {
			return false
		}
		e.admin = "http://" + strings.TrimSpace(string(b))
		ready, err := e.get("/ready")
		return err == nil && strings.HasPrefix(ready, "LIVE")
	})
	e.readListeners(t)
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

func (e *envoy) readListeners(t *testing.T) {
	t.Helper()
	body := must(e.get("/listeners?format=json"))(t)
	var l struct {
		ListenerStatuses []struct {
			Name         string
			LocalAddress struct {
				SocketAddress struct {
					Address   string
					PortValue uint16 `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal([]byte(body), &l); err != nil {
		t.Fatal(err)
	}
	for _, s := range l.ListenerStatuses {
		a := s.LocalAddress.SocketAddress
		e.addrs[s.Name] = netip.AddrPortFrom(netip.MustParseAddr(a.Address), a.PortValue)
	}
}

// stat returns one of Envoy's counters.
func (e *envoy) stat(t *testing.T, name string) string {
	t.Helper()
	body := must(e.get("/stats?filter=" + url.QueryEscape("^"+regexp.QuoteMeta(name)+"$")))(t)
	return strings.TrimSpace(body)
}
