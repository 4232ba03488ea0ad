package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/ambit-mesh/ambit/tests/cluster/nodespec"
	"github.com/ambit-mesh/ambit/tests/cluster/process"
)

// startNodes starts both nodes; their kubelets retry until the API server answers.
func (c *Cluster) startNodes(bin binaries) error {
	for _, n := range nodes() {
		if err := c.startNode(n, bin.archives); err != nil {
			return fmt.Errorf("start node %q: %w", n.name, err)
		}
	}
	return nil
}

func (c *Cluster) startNode(n node, archives []string) error {
	dir := filepath.Join(c.state, n.name)
	spec := nodespec.Spec{
		Name: n.name, Cgroup: c.name + "-" + n.name, CgroupList: c.cgroupFile(n), Record: c.recordFile(n.name),
		NetNS: c.NodeNetNS(n.name), Dir: dir, Bin: c.binDir(), LogDir: c.logDir(), Archives: archives,
		KubeletArgs: []string{"--kubeconfig=" + c.kubeconfig(n.kubelet()), "--node-ip=" + n.ip.String()},
		Binds: map[string]string{
			"kubelet": "/var/lib/kubelet", "containerd": "/var/lib/containerd",
			"cni-bin": "/opt/cni/bin", "cni-conf": "/etc/cni/net.d", "cni-state": "/var/lib/cni",
			"log-pods": "/var/log/pods", "log-containers": "/var/log/containers",
		},
		// The kubelet insists on these, and they are the whole machine's.
		Sysctls: map[string]string{
			"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
			"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
		},
	}
	for sub := range spec.Binds {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return fmt.Errorf("make its directories: %w", err)
		}
	}
	if err := errors.Join(c.writeNodeFiles(n, dir), installCNI(filepath.Join(dir, "cni-bin"))); err != nil {
		return err
	}
	file := filepath.Join(dir, "node.json")
	if err := spec.Write(file); err != nil {
		return err
	}
	return c.detach(n.name, "enter", "--spec", file)
}

// installCNI copies the plugins that the node's network configuration names.
func installCNI(dir string) error {
	for _, plugin := range []string{"ptp", "host-local", "loopback", "portmap"} {
		b, err := os.ReadFile(filepath.Join("/usr/lib/cni", plugin))
		if err != nil {
			return fmt.Errorf("read CNI plugin %q: %w", plugin, err)
		}
		if err := os.WriteFile(filepath.Join(dir, plugin), b, 0o755); err != nil {
			return fmt.Errorf("install CNI plugin %q: %w", plugin, err)
		}
	}
	return nil
}

// LoadImages imports image archives into every node.
func (c *Cluster) LoadImages(ctx context.Context, archives ...string) error {
	var wg sync.WaitGroup
	errs := make([]error, nodeCount)
	for i, n := range nodes() {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for _, a := range archives {
				out, err := c.nodeShell(ctx, n, "ctr", "--namespace=k8s.io", "images", "import", a)
				if err != nil {
					errs[i] = fmt.Errorf("import %q into node %q: %w\n%s", a, n.name, err, lastLines(out))
					return
				}
			}
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// nodeShell runs a program in all namespaces of a node.
func (c *Cluster) nodeShell(ctx context.Context, n node, argv ...string) ([]byte, error) {
	cmd, err := c.NodeShell(ctx, n.name, argv...)
	if err != nil {
		return nil, err
	}
	return cmd.CombinedOutput()
}

// NodeShell is a program in the namespaces of a node, as a shell on it would be.
func (c *Cluster) NodeShell(ctx context.Context, node string, argv ...string) (*exec.Cmd, error) {
	b, err := os.ReadFile(c.recordFile(node))
	if err != nil {
		return nil, fmt.Errorf("find node %q: %w", node, err)
	}
	var r process.Record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("find node %q: %w", node, err)
	}
	if r.Init == 0 || !r.Alive() {
		return nil, fmt.Errorf("find node %q: it does not run", node)
	}
	args := []string{"--target", strconv.Itoa(r.Init), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"}
	return exec.CommandContext(ctx, "nsenter", append(args, argv...)...), nil
}
