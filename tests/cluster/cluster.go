// Package cluster runs a real Kubernetes with two nodes on one Linux machine:
// no virtual machine, no Docker, no registry, no uplink.
//
// A node is a network namespace plus mount, UTS, IPC, PID and cgroup namespaces
// with Debian's containerd and runc, a kubelet and kube-proxy in it; the control
// plane (etcd, API server, controller manager, scheduler) runs in a network
// namespace of its own, whose bridge joins the nodes. The command
// tests/cluster/cmd/cluster, the demo and the end-to-end tests call it, as root.
//
// What always holds: all state is in one directory outside the clone; every
// process is recorded before it runs, and is ended by its record (pid and start
// time) only; Up on a running cluster changes nothing, and Up or Down after a
// killed run first removes what that run left. The machine's own network
// namespace, routes, sysctls and cgroups stay as they are, but for child cgroups
// and named network namespaces that carry the cluster's name.
//
// It is no product: no high availability, no upgrade, no storage.
package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/tests/debian"
)

// Names and limits.
const (
	// DefaultName prefixes network namespaces and cgroups unless the user says otherwise.
	DefaultName = "ambit"
	// defaultStateRoot holds a directory per cluster. It is on a disk, because overlayfs snapshots land there.
	defaultStateRoot = "/var/lib/ambit-cluster"
	// nodeCount is two: the least with which bytes cross from node to node.
	nodeCount = 2
	// controlPlaneTimeout bounds the start of etcd and the API server; 3 to 9 s on an idle machine of 2 cores.
	controlPlaneTimeout = 90 * time.Second
	// readyTimeout bounds nodes and DNS becoming ready; 5 to 15 s on an idle machine.
	readyTimeout = 120 * time.Second
	// pollInterval is how often a condition is looked at.
	pollInterval = 100 * time.Millisecond
)

// Config says which cluster is meant. The zero value means the default one.
type Config struct {
	// Name prefixes network namespaces and cgroups: at most 8 characters.
	Name string
	// StateRoot holds a directory per cluster.
	StateRoot string
	// CacheDir keeps built binaries from run to run; outside the clone.
	CacheDir string
	// Source is the root of the repository, found from the working directory if empty.
	Source string
	// Progress gets lines with elapsed time; nil means silence.
	Progress *Progress
}

// Cluster is a handle on one cluster, running or not. It is not for concurrent use.
type Cluster struct {
	name     string
	state    string
	cache    string
	source   string
	progress *Progress
}

// New returns the handle; it starts and changes nothing.
func New(c Config) (*Cluster, error) {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if len(c.Name) > 8 {
		return nil, fmt.Errorf("use cluster name %q: longer than 8 characters, which interface and cgroup names need", c.Name)
	}
	if c.StateRoot == "" {
		c.StateRoot = defaultStateRoot
	}
	if c.CacheDir == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a cache directory: %w", err)
		}
		c.CacheDir = filepath.Join(dir, "ambit")
	}
	if c.Source == "" {
		root, err := sourceRoot()
		if err != nil {
			return nil, err
		}
		c.Source = root
	}
	if c.Progress == nil {
		c.Progress = NewProgress(io.Discard)
	}
	return &Cluster{name: c.Name, state: filepath.Join(c.StateRoot, c.Name), cache: c.CacheDir, source: c.Source, progress: c.Progress}, nil
}

// sourceRoot is the directory of the main module's go.mod.
func sourceRoot() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the repository's root with go list -m: %w", err)
	}
	return string(trimLine(out)), nil
}

// Up starts the cluster unless it already runs, and returns when both nodes and DNS are ready.
func (c *Cluster) Up(ctx context.Context) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.progress.Do("Debian packages", func() error { return debian.Install(ctx, debian.Node) }); err != nil {
		return err
	}
	bin, err := c.build(ctx)
	if err != nil {
		return err
	}
	if c.running(ctx, bin) {
		c.progress.Note("the cluster runs already")
		return nil
	}
	if err := c.down(ctx); err != nil {
		return fmt.Errorf("remove what an earlier run left: %w", err)
	}
	return c.start(ctx, bin)
}

// Down ends the cluster and removes its state. It succeeds when there is none.
func (c *Cluster) Down(ctx context.Context) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return c.progress.Do("cluster down", func() error { return c.down(ctx) })
}

// start brings everything up from nothing.
func (c *Cluster) start(ctx context.Context, bin binaries) error {
	for _, dir := range []string{c.recordDir(), c.logDir(), c.pkiDir(), c.kubeconfigDir(), c.binDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the state directory: %w", err)
		}
	}
	if err := c.installBinaries(bin); err != nil {
		return err
	}
	if err := c.progress.Do("certificates", c.writePKI); err != nil {
		return err
	}
	if err := c.progress.Do("network", c.createNetwork); err != nil {
		return err
	}
	// The nodes' container runtimes import images while the API server starts.
	if err := c.progress.Do("nodes' container runtimes", func() error { return c.startNodes(bin) }); err != nil {
		return err
	}
	if err := c.progress.Do("control plane", func() error { return c.startControlPlane(ctx) }); err != nil {
		return err
	}
	if err := c.progress.Do("nodes ready", func() error { return c.waitNodes(ctx) }); err != nil {
		return err
	}
	if err := c.progress.Do("cluster DNS", func() error { return c.startDNS(ctx) }); err != nil {
		return err
	}
	return os.WriteFile(c.stampFile(), []byte(bin.stamp()), 0o644)
}

// running says whether a complete cluster made of the same binaries answers.
func (c *Cluster) running(ctx context.Context, bin binaries) bool {
	stamp, err := os.ReadFile(c.stampFile())
	if err != nil || string(stamp) != bin.stamp() {
		return false
	}
	records, err := c.records()
	if err != nil || len(records) == 0 {
		return false
	}
	for _, r := range records {
		if !r.alive() {
			return false
		}
	}
	n, err := c.readyNodes(ctx)
	return err == nil && n == nodeCount
}

// lock serialises Up and Down of one cluster between processes.
func (c *Cluster) lock() (func(), error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("run a cluster: root is needed for namespaces, cgroups and mounts")
	}
	if err := os.MkdirAll(filepath.Dir(c.state), 0o755); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	f, err := os.OpenFile(c.state+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		c.progress.Note("waiting for another run to finish")
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return nil, errors.Join(fmt.Errorf("take the lock: %w", err), f.Close())
		}
	}
	return func() { _ = f.Close() }, nil
}

func (c *Cluster) recordDir() string     { return filepath.Join(c.state, "processes") }
func (c *Cluster) logDir() string        { return filepath.Join(c.state, "logs") }
func (c *Cluster) pkiDir() string        { return filepath.Join(c.state, "pki") }
func (c *Cluster) kubeconfigDir() string { return filepath.Join(c.state, "kubeconfig") }
func (c *Cluster) binDir() string        { return filepath.Join(c.state, "bin") }
func (c *Cluster) stampFile() string     { return filepath.Join(c.state, "complete") }

// Kubeconfig is the administrator's; its server address is reachable from the cluster's network namespace only.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.kubeconfigDir(), "admin.conf") }

// LogDir holds a log file per process of the cluster.
func (c *Cluster) LogDir() string { return c.logDir() }

// hashFiles is the hex hash of names and contents.
func hashFiles(salt string, files ...string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", salt)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", fmt.Errorf("hash build inputs: %w", err)
		}
		fmt.Fprintf(h, "%s %d\n", filepath.Base(f), len(b))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}
