package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect/choose"
	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/internal/zds"
	"github.com/ambit-mesh/ambit/tests/bench/load"
	"github.com/ambit-mesh/ambit/tests/node/topology"
)

const (
	namespace = "bench"
	loadPort  = 8080
	// startTimeout bounds how long a ztunnel may take to become ready.
	startTimeout = 20 * time.Second
)

// mesh is everything that runs while measuring. On each of two nodes there are a
// pod of the mesh and a pod outside it, with the same network between them.
type mesh struct {
	dir      string
	cgroup   *os.File
	fabric   *topology.Fabric
	redirect redirect.Redirector
	// client and server pods, by whether they are in the mesh.
	client, server map[bool]*topology.Pod
	ztunnels       []*exec.Cmd
	onClose        []func() error
}

func newMesh(ctx context.Context, ztunnel string) (_ *mesh, err error) {
	m := &mesh{client: map[bool]*topology.Pod{}, server: map[bool]*topology.Pod{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	steps := []func() error{
		func() error { return m.makeGround(ctx, ztunnel) }, m.makePods, m.writeState,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	for i, node := range m.fabric.Nodes {
		if err := m.startNode(ctx, ztunnel, node, []string{"LOCAL_XDS_PATH=" + m.stateFile()}, []*topology.Pod{m.client[true], m.server[true]}[i]); err != nil {
			return nil, fmt.Errorf("start node %q: %w", node.Name, err)
		}
	}
	return m, m.startServers()
}

// makeGround makes what every mesh stands on: directories, the cgroup, capture, the
// nodes and a development CA.
func (m *mesh) makeGround(ctx context.Context, ztunnel string) (err error) {
	for _, step := range []func() error{m.makeDir, m.makeCgroup} {
		if err := step(); err != nil {
			return err
		}
	}
	m.redirect, err = choose.Probe(ctx, redirect.Config{
		BPFDir: filepath.Join(m.dir, "bpf", "ambit"), StateDir: filepath.Join(m.dir, "state"), CgroupRoot: m.cgroup.Name(),
		KubeletCgroups: []string{}, HostProc: "/proc", Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		return err
	}
	m.onClose = append(m.onClose, m.redirect.Close)
	if m.fabric, err = topology.New(2); err != nil {
		return err
	}
	m.onClose = append(m.onClose, m.fabric.Close)
	out, err := exec.CommandContext(ctx, ztunnel, "dev-ca", m.caDir()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make development CA: %w: %s", err, out)
	}
	return nil
}

func (m *mesh) makeDir() (err error) {
	if m.dir, err = os.MkdirTemp("", "ambit-bench-"); err != nil {
		return err
	}
	m.onClose = append(m.onClose, func() error { return os.RemoveAll(m.dir) })
	// Mounts of this process stay its own.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	bpf := filepath.Join(m.dir, "bpf")
	if err := os.Mkdir(bpf, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", bpf, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpf filesystem: %w", err)
	}
	m.onClose = append(m.onClose, func() error { return unix.Unmount(bpf, unix.MNT_DETACH) })
	return nil
}

// makeCgroup makes the cgroup that the pods' processes run in: capture marks
// sockets by cgroup, and must not see the rest of the machine.
func (m *mesh) makeCgroup() error {
	for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue
		}
		var st unix.Statfs_t
		if err := unix.Statfs(root, &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir := filepath.Join(root, "ambit-bench-"+strconv.Itoa(os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		m.onClose = append(m.onClose, func() error { return os.Remove(dir) })
		f, err := os.Open(dir)
		m.cgroup = f
		return err
	}
	return errors.New("make cgroup: no cgroup2 hierarchy is mounted")
}

func (m *mesh) makePods() (err error) {
	for _, meshed := range []bool{true, false} {
		suffix := map[bool]string{true: "", false: "-outside"}[meshed]
		if m.client[meshed], err = m.fabric.Nodes[0].AddPod("client" + suffix); err != nil {
			return err
		}
		if m.server[meshed], err = m.fabric.Nodes[1].AddPod("server" + suffix); err != nil {
			return err
		}
	}
	return nil
}

// writeState writes what istiod would tell the ztunnels.
func (m *mesh) writeState() error {
	var b strings.Builder
	b.WriteString("workloads:\n")
	for _, p := range []*topology.Pod{m.client[true], m.server[true]} {
		fmt.Fprintf(&b, "- uid: %s//Pod/%s/%s\n  name: %s\n  namespace: %s\n  serviceAccount: %s\n  workloadIps: [%q, %q]\n  protocol: HBONE\n  node: %s\n",
			ports.DefaultClusterID, namespace, p.Name, p.Name, namespace, p.Name, p.IP, p.IP6, p.Node.Name)
	}
	return os.WriteFile(m.stateFile(), []byte(b.String()), 0o600)
}

func (m *mesh) stateFile() string { return filepath.Join(m.dir, "state.yaml") }
func (m *mesh) caDir() string     { return filepath.Join(m.dir, "ca") }

// startNode starts a ztunnel on the node, with env beside its own, and gives it the pods.
func (m *mesh) startNode(ctx context.Context, ztunnel string, n *topology.Node, env []string, pods ...*topology.Pod) error {
	socket := filepath.Join(m.dir, n.Name+".sock")
	l, err := zds.Listen(socket)
	if err != nil {
		return err
	}
	m.onClose = append(m.onClose, l.Close)
	log, err := os.Create(filepath.Join(m.dir, n.Name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c := in(exec.Command(ztunnel, "proxy", "ztunnel"), nil)
	c.Stdout, c.Stderr = log, log
	c.Env = append(os.Environ(), "INPOD_UDS="+socket, "AMBIT_CA_DIR="+m.caDir(),
		"NODE_NAME="+n.Name, "POD_NAME=ztunnel-"+n.Name, "POD_NAMESPACE="+ports.SystemNamespace, "INSTANCE_IP="+n.IP.String(),
		"CLUSTER_ID="+ports.DefaultClusterID, "PROXY_MODE=shared", "XDS_ADDRESS=", "LOCAL_XDS_PATH=", "LOG_LEVEL=warn")
	c.Env = append(c.Env, env...)
	if err := start(n.NetNS, c); err != nil {
		return fmt.Errorf("start ztunnel: %w", err)
	}
	m.ztunnels = append(m.ztunnels, c)
	m.onClose = append(m.onClose, func() error { return end(c) })
	undo, err := enrol(ctx, l, m.redirect, pods...)
	if err != nil {
		return errors.Join(err, copyLog(log.Name()))
	}
	m.onClose = append(m.onClose, undo)
	return m.awaitReady(ctx, n)
}

// copyLog shows a ztunnel's log when it did not do what it should.
func copyLog(name string) error {
	b, err := os.ReadFile(name)
	os.Stderr.Write(b)
	return err
}

// get asks an HTTP server in the node's netns.
func get(ctx context.Context, ns *linux.NetNS, url string) ([]byte, error) {
	t := &http.Transport{DisableKeepAlives: true, DialContext: dialIn(ns)}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("get %q: status %d: %s", url, resp.StatusCode, body)
	}
	return body, err
}

func (m *mesh) awaitReady(ctx context.Context, n *topology.Node) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	url := fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", ports.Readiness)
	for {
		_, err := get(ctx, n.NetNS, url)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait for ztunnel on node %q: %w", n.Name, err), copyLog(filepath.Join(m.dir, n.Name+".log")))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (m *mesh) startServers() error {
	for _, p := range m.server {
		c, err := startServer(p.NetNS, m.cgroup, serveRaw, fmt.Sprintf("%s:%d", p.IP, loadPort))
		if err != nil {
			return err
		}
		m.onClose = append(m.onClose, func() error { return end(c) })
	}
	return nil
}

// load runs one load from the client pod to the server pod, both in the mesh or both outside.
func (m *mesh) load(ctx context.Context, meshed bool, s load.Spec) (load.Result, error) {
	s.Addr = fmt.Sprintf("%s:%d", m.server[meshed].IP, loadPort)
	return runLoad(ctx, m.client[meshed].NetNS, m.cgroup, s)
}

// cpu is what both proxies have used so far.
func (m *mesh) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, z := range m.ztunnels {
		d, err := cpuOf(z.Process.Pid)
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// idleRSS is the larger of the proxies' resident memories.
func (m *mesh) idleRSS() (uint64, error) {
	var most uint64
	for _, z := range m.ztunnels {
		b, err := rssOf(z.Process.Pid)
		if err != nil {
			return 0, err
		}
		most = max(most, b)
	}
	return most, nil
}

// close ends everything in reverse order of its start.
func (m *mesh) close() error {
	var errs []error
	for i := len(m.onClose) - 1; i >= 0; i-- {
		errs = append(errs, m.onClose[i]())
	}
	m.onClose = nil
	return errors.Join(errs...)
}
