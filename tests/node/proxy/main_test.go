// Package proxy tests the whole node proxy on one machine: two nodes as network
// namespaces, pods behind them, one ztunnel process on each node (this test
// binary, started again), a scripted node agent that captures pods with
// cni-plugin/redirect and lends their listeners, workloads from a file, and a
// development CA. Pods are captured by BPF; the paths that depend on the kind of
// capture are also tested with nftables. It needs root, and a cgroup and a BPF
// filesystem of its own, which it makes and removes.
//
// It does not test capture itself (tests/node/capture) nor the control plane.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel"
)

// envZtunnel makes this binary a ztunnel.
const envZtunnel = "AMBIT_TEST_ZTUNNEL"

func TestMain(m *testing.M) {
	if os.Getenv(envZtunnel) != "" {
		if err := runZtunnel(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(run(m))
}

// sandbox is what the tests use of the machine.
type sandbox struct {
	cgroup  string // stands for the node's cgroup root; this process is in it
	kubelet string // stands for the kubelet's cgroup
	bpffs   string
}

// box is made by TestMain, before any test, and not changed.
var box sandbox

func run(m *testing.M) int {
	undo, err := setUp()
	defer func() {
		for _, u := range slices.Backward(undo) {
			u()
		}
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "set up:", err)
		return 1
	}
	return m.Run()
}

func setUp() (undo []func(), err error) {
	root, err := linux.FindCgroup2("/")
	if err != nil {
		return nil, err
	}
	own, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("ambit-t-proxy-%d", os.Getpid())
	self := []byte(strconv.Itoa(os.Getpid()))
	box.cgroup = filepath.Join(root, own, name)
	box.kubelet = filepath.Join(box.cgroup, "kubelet")
	if err := os.MkdirAll(box.kubelet, 0o755); err != nil {
		return nil, err
	}
	undo = append(undo, func() {
		_ = os.WriteFile(filepath.Join(root, own, "cgroup.procs"), self, 0o644)
		os.Remove(box.kubelet)
		os.Remove(box.cgroup)
	})
	if err := os.WriteFile(filepath.Join(box.cgroup, "cgroup.procs"), self, 0o644); err != nil {
		return undo, err
	}
	box.bpffs = filepath.Join(os.TempDir(), name)
	if err := os.Mkdir(box.bpffs, 0o700); err != nil {
		return undo, err
	}
	undo = append(undo, func() { os.Remove(box.bpffs) })
	if err := unix.Mount("bpf", box.bpffs, "bpf", 0, ""); err != nil {
		return undo, fmt.Errorf("mount bpffs: %w", err)
	}
	return append(undo, func() { _ = unix.Unmount(box.bpffs, unix.MNT_DETACH) }), nil
}

func ownCgroup() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return p, nil
		}
	}
	return "", errors.New("this process is in no cgroup2")
}

func runZtunnel() error {
	cfg, err := ztunnel.LoadConfig(os.LookupEnv)
	if err != nil {
		return err
	}
	logging, err := telemetry.NewLogging(os.Stdout, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return ztunnel.Run(ctx, cfg, logging)
}
