package stage

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ambit-mesh/ambit/tests/demo/probe"
)

// gatewayAPI is the module whose CRDs are installed: the version that the mesh is built with.
const gatewayAPI = "sigs.k8s.io/gateway-api"

// InstallGatewayAPI applies the standard channel's CRDs, as the Gateway API tells its users to.
func (s *Stage) InstallGatewayAPI(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", gatewayAPI)
	cmd.Dir = s.source
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("find module %q: %w", gatewayAPI, err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "config", "crd", "standard")
	_, err = s.Kubectl(ctx, "apply", "--server-side", "-f", dir)
	return err
}

// Image is the reference of one of our images.
func (s *Stage) Image(name string) string { return s.images.Hub + "/" + name + ":" + s.images.Tag }

// Ambit runs the ambit tool against the cluster and returns what it printed.
func (s *Stage) Ambit(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := s.Cluster.Command(ctx, append([]string{s.ambit}, args...)...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("ambit %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// Fetch makes requests from the first running pod that the selector names; see `tools fetch --help` for the arguments.
func (s *Stage) Fetch(ctx context.Context, namespace, selector string, args ...string) (probe.Report, error) {
	var r probe.Report
	pods, err := s.Pods(ctx, namespace, selector)
	if err != nil {
		return r, err
	}
	if len(pods) == 0 {
		return r, fmt.Errorf("fetch from a pod of %q in %q: there is none", selector, namespace)
	}
	out, err := s.Exec(ctx, namespace, pods[0].Name, append([]string{"/usr/local/bin/tools", "fetch"}, args...)...)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return r, fmt.Errorf("decode a report: %w", err)
	}
	return r, nil
}
