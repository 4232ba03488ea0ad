package agent

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/agent/stats"
)

// maxLabelsBytes bounds the file of labels: a pod's metadata has at most 256 KiB.
const maxLabelsBytes = 512 << 10

// Labels by which apps and versions are known, and the one that a Deployment puts into its pods' names.
const (
	labelApp      = "app"
	labelName     = "app.kubernetes.io/name"
	labelVersion  = "version"
	labelTemplate = "pod-template-hash"
)

// readLabels reads the pod's labels as the downward API writes them. A file that is missing is no label.
func readLabels(file string) (map[string]string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read labels: %w", err)
	}
	if len(b) > maxLabelsBytes {
		return nil, fmt.Errorf("read labels %q: %d bytes are more than %d", file, len(b), maxLabelsBytes)
	}
	return parseLabels(string(b))
}

// parseLabels reads lines of key="value", where value is quoted as in Go (Kubernetes' fieldpath.FormatMap).
func parseLabels(text string) (map[string]string, error) {
	out := map[string]string{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		key, quoted, ok := strings.Cut(line, "=")
		value, err := strconv.Unquote(quoted)
		if !ok || err != nil || key == "" {
			return nil, fmt.Errorf("read labels: %q is not key=\"value\"", line)
		}
		out[key] = value
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read labels: %w", err)
	}
	return out, nil
}

// self is the proxy as the source of a gateway's requests, named as istiod names workloads.
func (a *app) self() stats.Self {
	l := a.labels
	first := func(keys ...string) string {
		for _, k := range keys {
			if l[k] != "" {
				return l[k]
			}
		}
		return ""
	}
	workload := a.cfg.workload(l[labelTemplate])
	p := telemetry.Peer{
		Workload: workload, Namespace: a.cfg.PodNamespace, Cluster: a.cfg.ClusterID,
		CanonicalService: first(ports.LabelCanonicalName, labelName, labelApp), CanonicalRevision: first(ports.LabelCanonicalRevision, labelVersion),
		App: first(labelApp), Version: first(labelVersion),
	}
	if p.CanonicalService == "" {
		p.CanonicalService = workload
	}
	if p.CanonicalRevision == "" {
		p.CanonicalRevision = "latest"
	}
	return stats.Self{Peer: p}
}

// workload is the Deployment's name: the pod's without the template's hash and what follows it.
func (c Config) workload(templateHash string) string {
	if templateHash != "" {
		if i := strings.LastIndex(c.PodName, "-"+templateHash+"-"); i > 0 {
			return c.PodName[:i]
		}
	}
	return c.PodName
}
