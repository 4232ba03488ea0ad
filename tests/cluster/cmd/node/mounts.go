package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/tests/cluster/nodespec"
)

// mountNode gives the node its own /proc, /sys, /run and state directories and returns its cgroup2 root. Everything
// is private to the node's mount namespace, and shared with the containers inside it.
func mountNode(spec nodespec.Spec) (string, error) {
	// Both before /sys is replaced.
	all, err := hierarchies()
	if err != nil {
		return "", err
	}
	unified := unifiedOnly()

	if err := remount("/", unix.MS_PRIVATE|unix.MS_REC); err != nil {
		return "", err
	}
	// Mounts under /run and /sys would keep the machine's other network namespaces alive.
	if err := unmountBelow("/run", "/sys"); err != nil {
		return "", err
	}
	for _, m := range []struct{ kind, target, options string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"tmpfs", "/run", "mode=755"}, {"bpf", "/sys/fs/bpf", ""},
	} {
		if err := mount(m.kind, m.target, m.kind, 0, m.options); err != nil {
			return "", err
		}
	}
	root, err := mountCgroups(all, unified)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return "", fmt.Errorf("make directory: %w", err)
	}
	for _, sub := range slices.Sorted(maps.Keys(spec.Binds)) {
		if err := bind(filepath.Join(spec.Dir, sub), spec.Binds[sub]); err != nil {
			return "", err
		}
	}
	if err := remount("/", unix.MS_SHARED|unix.MS_REC); err != nil {
		return "", err
	}
	return root, maskSysctls(spec)
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s on %q: %w", kind, target, err)
	}
	return nil
}

func remount(target string, propagation uintptr) error {
	if err := unix.Mount("", target, "", propagation, ""); err != nil {
		return fmt.Errorf("change propagation of %q: %w", target, err)
	}
	return nil
}

func bind(source, target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	return mount(source, target, "bind", unix.MS_BIND, "")
}

// unmountBelow detaches everything mounted at or below the directories, innermost first.
func unmountBelow(dirs ...string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	targets := mountPoints(string(b), dirs)
	slices.SortStableFunc(targets, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, t := range targets {
		if err := unix.Unmount(t, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %q: %w", t, err)
		}
	}
	return nil
}

// mountPoints reads field 5 of /proc/self/mountinfo, see proc(5). Spaces are written \040 there.
func mountPoints(mountinfo string, dirs []string) []string {
	var list []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		target := strings.ReplaceAll(fields[4], `\040`, " ")
		for _, dir := range dirs {
			if target == dir || strings.HasPrefix(target, dir+"/") {
				list = append(list, target)
			}
		}
	}
	return list
}

// maskSysctls puts files with the wanted values over values that belong to the whole machine, so that what the
// kubelet writes lands in those files.
func maskSysctls(spec nodespec.Spec) error {
	dir := filepath.Join(spec.Dir, "sysctl")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	for name, value := range spec.Sysctls {
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return fmt.Errorf("write the value of %q: %w", name, err)
		}
		if err := mount(file, "/proc/sys/"+name, "bind", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, name := range []string{"net/ipv4/ip_forward=1", "net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0"} {
		key, value, _ := strings.Cut(name, "=")
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set sysctl %q: %w", key, err)
		}
	}
	return nil
}
