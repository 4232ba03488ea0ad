package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/tests/cluster/nodespec"
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	// containerdTimeout bounds its start, about 0.3 s on an idle machine.
	containerdTimeout = 60 * time.Second
)

// initNode sets the node up, starts its components and reaps until one of them ends, which ends the node: a node
// with half of its parts would only confuse.
func initNode(spec nodespec.Spec) error {
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	root, err := mountNode(spec)
	if err != nil {
		return err
	}
	components := map[int]string{}
	start := func(name, cgroup string, argv ...string) error {
		pid, err := startComponent(spec, name, filepath.Join(root, cgroup), argv)
		if err == nil {
			components[pid] = name
		}
		return err
	}
	if err := start("containerd", systemCgroup, "containerd", "--config", filepath.Join(spec.Dir, "containerd.toml")); err != nil {
		return err
	}
	if err := waitContainerd(); err != nil {
		return err
	}
	if err := importImages(spec); err != nil {
		return err
	}
	kubelet := append([]string{filepath.Join(spec.Bin, "kubelet"), "--config=" + filepath.Join(spec.Dir, "kubelet.yaml"),
		"--hostname-override=" + spec.Name, "--root-dir=/var/lib/kubelet"}, spec.KubeletArgs...)
	if err := start("kubelet", kubeletCgroup, kubelet...); err != nil {
		return err
	}
	proxy := []string{filepath.Join(spec.Bin, "kube-proxy"), "--config=" + filepath.Join(spec.Dir, "kube-proxy.yaml")}
	if err := start("kube-proxy", systemCgroup, proxy...); err != nil {
		return err
	}
	return reap(components)
}

// startComponent runs a program in a cgroup2 child, with a log of its own.
func startComponent(spec nodespec.Spec, name, cgroup string, argv []string) (int, error) {
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return 0, fmt.Errorf("make the cgroup of %q: %w", name, err)
	}
	log, err := os.OpenFile(filepath.Join(spec.LogDir, spec.Name+"-"+name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 0, fmt.Errorf("open the log of %q: %w", name, err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command("/proc/self/exe", append([]string{"exec", "--cgroup", cgroup, "--"}, argv...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start %q: %w", name, err)
	}
	return cmd.Process.Pid, nil
}

// waitContainerd returns when its socket accepts.
func waitContainerd() error {
	ctx, cancel := context.WithTimeout(context.Background(), containerdTimeout)
	defer cancel()
	for {
		conn, err := net.Dial("unix", containerdSocket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for containerd: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// importImages runs before the first other child exists that reap would have to tell from these.
func importImages(spec nodespec.Spec) error {
	for _, archive := range spec.Archives {
		out, err := exec.Command("ctr", "--namespace=k8s.io", "images", "import", archive).CombinedOutput()
		if err != nil {
			return fmt.Errorf("import image %q: %w\n%s", archive, err, out)
		}
	}
	return nil
}

// reap waits for every orphan of the node, until a component ends.
func reap(components map[int]string) error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for a child: %w", err)
		}
		if name := components[pid]; name != "" {
			return fmt.Errorf("component %q ended: status %d, signal %d", name, status.ExitStatus(), status.Signal())
		}
	}
}
