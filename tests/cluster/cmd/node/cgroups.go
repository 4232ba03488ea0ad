package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/tests/cluster/nodespec"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// unifiedName is where a hybrid layout mounts cgroup2.
	unifiedName = "unified"
	// Children of a node's cgroup2. The kubelet has one of its own, so that what lets its probes past does so for
	// the kubelet only; the others exist because a cgroup with controllers may not hold processes itself.
	kubeletCgroup = "kubelet"
	systemCgroup  = "system"
	// delegateTimeout bounds the wait for the parent process to leave the node's root cgroup.
	delegateTimeout = 5 * time.Second
)

// hierarchy is one mounted cgroup tree: its controllers, empty for cgroup2, and the caller's path in it.
type hierarchy struct{ controllers, path string }

// hierarchies reads /proc/self/cgroup, see cgroups(7). It is a snapshot: moving the caller changes the file.
func hierarchies() ([]hierarchy, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read own cgroups: %w", err)
	}
	return parseHierarchies(string(b)), nil
}

func parseHierarchies(text string) []hierarchy {
	var list []hierarchy
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 {
			list = append(list, hierarchy{parts[1], parts[2]})
		}
	}
	return list
}

// unifiedOnly says whether cgroup2 is all there is.
func unifiedOnly() bool {
	var fs unix.Statfs_t
	return unix.Statfs(cgroupRoot, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// mountPoint is where the hierarchy is mounted on a machine that follows the usual layout.
func (h hierarchy) mountPoint() string {
	switch {
	case h.controllers != "":
		return filepath.Join(cgroupRoot, strings.TrimPrefix(h.controllers, "name="))
	case unifiedOnly():
		return cgroupRoot
	}
	return filepath.Join(cgroupRoot, unifiedName)
}

// parent is the directory under which the node's cgroup is made: the caller's, so that its limits hold for the
// node too. Where cgroup2 has the controllers it is the root: only there may processes and children mix.
func (h hierarchy) parent() string {
	if h.controllers == "" && unifiedOnly() {
		return h.mountPoint()
	}
	return filepath.Join(h.mountPoint(), h.path)
}

// joinNodeCgroups makes the node's child cgroup in every hierarchy and moves the caller there. It writes the list
// first, so that an interrupted run can be cleaned up.
func joinNodeCgroups(spec nodespec.Spec) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var dirs []string
	for _, h := range all {
		if _, err := os.Stat(h.parent()); err == nil {
			dirs = append(dirs, filepath.Join(h.parent(), spec.Cgroup))
		}
	}
	if err := os.WriteFile(spec.CgroupList, []byte(strings.Join(dirs, "\n")), 0o644); err != nil {
		return fmt.Errorf("list the node's cgroups: %w", err)
	}
	if unifiedOnly() {
		offerControllers()
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if err := inheritCPUs(dir); err != nil {
			return err
		}
		if err := joinCgroup(dir); err != nil {
			return err
		}
	}
	return nil
}

// offerControllers makes the machine's controllers available to children of the root, as container runtimes do. One
// that the machine withholds is missed by the kubelet's limits at most, so a refusal is no error.
func offerControllers() {
	b, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, controller := range strings.Fields(string(b)) {
		_ = os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
	}
}

// inheritCPUs fills in what a version 1 cpuset needs before it takes a process.
func inheritCPUs(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if errors.Is(err, os.ErrNotExist) || unifiedOnly() {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the machine's %s: %w", file, err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o644); err != nil {
			return fmt.Errorf("set the node's %s: %w", file, err)
		}
	}
	return nil
}

func joinCgroup(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return fmt.Errorf("join cgroup %q: %w", dir, err)
	}
	return nil
}

// leaveNodeRoot moves the parent of PID 1 out of the node's cgroup2 root, where controllers are to be enabled.
func leaveNodeRoot(spec nodespec.Spec) error {
	if !unifiedOnly() {
		return nil
	}
	dir := filepath.Join(cgroupRoot, spec.Cgroup, systemCgroup)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return joinCgroup(dir)
}

// mountCgroups gives the node a view of its own cgroups, at the usual places, and returns the cgroup2 root.
func mountCgroups(all []hierarchy, unified bool) (string, error) {
	if unified {
		if err := mount("cgroup2", cgroupRoot, "cgroup2", 0, ""); err != nil {
			return "", err
		}
		return cgroupRoot, delegate(cgroupRoot)
	}
	if err := mount("tmpfs", cgroupRoot, "tmpfs", 0, "mode=755"); err != nil {
		return "", err
	}
	root := filepath.Join(cgroupRoot, unifiedName)
	for _, h := range all {
		kind, options, dir := "cgroup", h.controllers, filepath.Join(cgroupRoot, strings.TrimPrefix(h.controllers, "name="))
		if h.controllers == "" {
			kind, dir = "cgroup2", root
		}
		if strings.HasPrefix(options, "name=") {
			options = "none," + options
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", fmt.Errorf("make cgroup mount point: %w", err)
		}
		if err := mount("cgroup", dir, kind, 0, options); err != nil {
			return "", err
		}
	}
	return root, nil
}

// delegate moves PID 1 out of the node's cgroup2 root and enables every controller for its children.
func delegate(root string) error {
	dir := filepath.Join(root, systemCgroup)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	if err := joinCgroup(dir); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("list controllers: %w", err)
	}
	for _, controller := range strings.Fields(string(b)) {
		// The parent of PID 1 leaves the root cgroup at about this time; until then the kernel says EBUSY.
		for deadline := time.Now().Add(delegateTimeout); ; time.Sleep(10 * time.Millisecond) {
			err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				return fmt.Errorf("enable controller %q: %w", controller, err)
			}
		}
	}
	return nil
}
