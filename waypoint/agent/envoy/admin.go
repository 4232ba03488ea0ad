package envoy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

const (
	// askTimeout bounds one question: the pages come from Envoy's main thread, which a large push holds up for seconds.
	askTimeout = 5 * time.Second
	// maxAnswerBytes bounds an answer other than statistics.
	maxAnswerBytes = 4 << 20
	// stateLive is what /ready says of an Envoy that serves.
	stateLive = "LIVE"
)

// Statistics that tell of the first configuration.
const (
	statClusters  = "cluster_manager.cds.update_success"
	statListeners = "listener_manager.lds.update_success"
	statWorkers   = "listener_manager.workers_started"
)

// Admin asks Envoy's admin pages.
type Admin struct {
	base   string
	client *http.Client
}

// NewAdmin returns an Admin. Close it.
func NewAdmin(addr netip.AddrPort) *Admin {
	dialer := &net.Dialer{Timeout: askTimeout}
	return &Admin{
		base:   "http://" + addr.String(),
		client: &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, MaxIdleConns: 2, IdleConnTimeout: time.Minute}},
	}
}

// Close closes idle connections.
func (a *Admin) Close() { a.client.CloseIdleConnections() }

// Live says why Envoy does not serve, or nothing.
func (a *Admin) Live(ctx context.Context) error {
	// The page answers 503 with the state until Envoy is live.
	body, status, err := a.ask(ctx, http.MethodGet, "/ready")
	if err != nil {
		return err
	}
	if state := strings.TrimSpace(body); status != http.StatusOK || state != stateLive {
		return fmt.Errorf("envoy is %q", state)
	}
	return nil
}

// Configured says which part of the first configuration is missing, or nothing.
func (a *Admin) Configured(ctx context.Context) error {
	all, err := a.numbers(ctx, "^("+statClusters+"|"+statListeners+"|"+statWorkers+")$")
	if err != nil {
		return err
	}
	var missing []string
	for _, s := range []struct{ stat, what string }{{statClusters, "clusters"}, {statListeners, "listeners"}, {statWorkers, "workers"}} {
		if all[s.stat] == 0 {
			missing = append(missing, s.what)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("envoy has no %s yet", strings.Join(missing, ", "))
	}
	return nil
}

// Drain makes Envoy tell its clients to go elsewhere, while it still takes connections.
func (a *Admin) Drain(ctx context.Context) error {
	body, status, err := a.ask(ctx, http.MethodPost, "/drain_listeners?graceful&skip_exit")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("drain listeners: envoy answers %d: %s", status, strings.TrimSpace(body))
	}
	return nil
}

// Active counts what clients would lose if Envoy ended now: requests, tunnels, and connections that carry neither. Idle
// connections do not count. Nobody tells them to go, and clients keep theirs open for hours; those that were used since
// Drain have been told.
func (a *Admin) Active(ctx context.Context) (uint64, error) {
	all, err := a.numbers(ctx, `^(listener\..*\.downstream_cx_active|http\..*\.downstream_(cx|rq)_active)$`)
	if err != nil {
		return 0, err
	}
	return active(all), nil
}

// active reads it from the statistics. What a socket's listener has beyond the connections of HTTP is TCP.
func active(all map[string]uint64) uint64 {
	const (
		connections = ".downstream_cx_active"
		requests    = ".downstream_rq_active"
	)
	// A waypoint's only socket is where tunnels end; its other HTTP is inside of them, on connections within Envoy.
	tunnels, waypoint := all["http."+names.ConnectTerminate+connections]
	var sockets, http, busy uint64
	for name, v := range all {
		switch {
		case strings.HasPrefix(name, "http.admin.") || strings.HasPrefix(name, "listener.admin."):
		case strings.HasPrefix(name, "http.") && strings.HasSuffix(name, requests):
			busy += v
		case strings.HasPrefix(name, "http."):
			http += v
		// "listener.<address>." is a socket, "listener.<address>.worker_<n>." one worker's part of it.
		case strings.HasPrefix(name, "listener.envoy_internal_") || strings.Contains(name, ".worker_"):
		default:
			sockets += v
		}
	}
	if waypoint {
		http = tunnels
	}
	if sockets > http { // else the numbers are of slightly different moments
		busy += sockets - http
	}
	return busy
}

// Prometheus opens the page of statistics that were ever used. The caller closes it.
func (a *Admin) Prometheus(ctx context.Context) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+"/stats/prometheus?usedonly", nil)
	if err != nil {
		return nil, fmt.Errorf("ask envoy for statistics: %w", err)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask envoy for statistics: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("ask envoy for statistics: it answers %d", resp.StatusCode)
	}
	return resp.Body, nil
}

// numbers are the counters and gauges whose name matches filter. Those that were never used are absent or 0.
func (a *Admin) numbers(ctx context.Context, filter string) (map[string]uint64, error) {
	body, status, err := a.ask(ctx, http.MethodGet, "/stats?filter="+url.QueryEscape(filter))
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("ask envoy for statistics: it answers %d", status)
	}
	return parseNumbers(body)
}

// parseNumbers reads lines of "name: number". Lines of another form, such as histograms, are skipped.
func parseNumbers(text string) (map[string]uint64, error) {
	out := map[string]uint64{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		// A name may hold ": ", a number cannot.
		name, value, ok := cutLast(lines.Text(), ": ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64); err == nil {
			out[name] = n
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read envoy's statistics: %w", err)
	}
	return out, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func (a *Admin) ask(ctx context.Context, method, path string) (body string, status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, nil)
	if err != nil {
		return "", 0, fmt.Errorf("ask envoy %q: %w", path, err)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return "", 0, fmt.Errorf("ask envoy: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return "", 0, fmt.Errorf("ask envoy %q: %w", path, err)
	}
	return string(b), resp.StatusCode, nil
}
