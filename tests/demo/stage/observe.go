package stage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/ambit-mesh/ambit/api/ports"
)

// scrapeTimeout bounds reading one proxy's metrics.
const scrapeTimeout = 5 * time.Second

// LogLine is one line of a proxy's log by its fields.
type LogLine map[string]string

// ZtunnelLogs reads what the node proxies logged since a time, newest proxies and retiring ones alike.
func (s *Stage) ZtunnelLogs(ctx context.Context, since time.Time) ([]LogLine, error) {
	out, err := s.Kubectl(ctx, "-n", System, "logs", "-l", "app=ztunnel", "--tail=-1", "--since-time="+since.UTC().Format(time.RFC3339))
	if err != nil {
		return nil, err
	}
	var lines []LogLine
	for text := range strings.Lines(out) {
		lines = append(lines, parseLogLine(text))
	}
	return lines, nil
}

// parseLogLine reads key=value and key="quoted value" fields, as log/slog's text handler writes them.
func parseLogLine(text string) LogLine {
	line := LogLine{}
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimLeft(text, " ") {
		key, rest, found := strings.Cut(text, "=")
		if !found {
			break
		}
		if quoted, err := strconv.QuotedPrefix(rest); err == nil {
			value, err := strconv.Unquote(quoted)
			if err != nil {
				break
			}
			line[key], text = value, rest[len(quoted):]
			continue
		}
		line[key], text, _ = strings.Cut(rest, " ")
	}
	return line
}

// Series is one time series.
type Series struct {
	Labels map[string]string
	Value  float64
}

// ZtunnelMetrics scrapes one metric from every node proxy.
func (s *Stage) ZtunnelMetrics(ctx context.Context, name string) ([]Series, error) {
	pods, err := s.Pods(ctx, System, "app=ztunnel")
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: scrapeTimeout, Transport: &http.Transport{DialContext: s.Cluster.Dial, DisableKeepAlives: true}}
	var all []Series
	for _, p := range pods {
		url := "http://" + net.JoinHostPort(p.Status.PodIP, strconv.Itoa(ports.Metrics)) + "/metrics"
		family, err := scrape(ctx, client, url, name)
		if err != nil {
			return nil, fmt.Errorf("scrape proxy %q: %w", p.Name, err)
		}
		for _, m := range family.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			all = append(all, Series{labels, m.GetCounter().GetValue() + m.GetGauge().GetValue()})
		}
	}
	return all, nil
}

func scrape(ctx context.Context, client *http.Client, url, name string) (*dto.MetricFamily, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	return families[name], nil
}

// Dump writes the logs of the mesh and of the cluster, and the state of all pods, for a person to find a failure in.
func (s *Stage) Dump(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("dump logs: %w", err)
	}
	save := func(file string, args ...string) error {
		out, err := s.Kubectl(ctx, args...)
		if err != nil {
			out += "\n" + err.Error() + "\n"
		}
		return os.WriteFile(filepath.Join(dir, file), []byte(out), 0o644)
	}
	errs := []error{
		save("pods.txt", "get", "pods", "-A", "-o", "wide"),
		save("events.txt", "get", "events", "-A", "--sort-by=.lastTimestamp"),
		save("describe.txt", "-n", System, "describe", "pods"),
		save("istiod.log", "-n", System, "logs", "-l", "app=istiod", "--tail=-1", "--prefix"),
		save("ztunnel.log", "-n", System, "logs", "-l", "app=ztunnel", "--tail=-1", "--prefix"),
		save("ztunnel-previous.log", "-n", System, "logs", "-l", "app=ztunnel", "--tail=-1", "--prefix", "--previous"),
		save("node-agent.log", "-n", System, "logs", "-l", "k8s-app=istio-cni-node", "--tail=-1", "--prefix"),
	}
	logs, err := filepath.Glob(filepath.Join(s.Cluster.LogDir(), "*.log"))
	errs = append(errs, err)
	for _, file := range logs {
		b, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "cluster-"+filepath.Base(file)), b, 0o644)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
