package linux

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// cgroup2Dirs are where the unified hierarchy is mounted below a node's root:
// alone, or beside the old hierarchies.
var cgroup2Dirs = [...]string{"sys/fs/cgroup", "sys/fs/cgroup/unified"}

// FindCgroup2 returns the cgroup2 root of the node whose root directory, or a
// directory that shows its /sys, is one of roots. The first found wins.
func FindCgroup2(roots ...string) (string, error) {
	for _, root := range roots {
		for _, dir := range cgroup2Dirs {
			p := filepath.Join(root, dir)
			if ok, err := IsCgroup2(p); err == nil && ok {
				return p, nil
			}
		}
	}
	return "", fmt.Errorf("find cgroup2 mount below %q: %w", roots, os.ErrNotExist)
}

// IsCgroup2 tells whether path is in a mounted cgroup2 hierarchy.
func IsCgroup2(path string) (bool, error) { return isFS(path, unix.CGROUP2_SUPER_MAGIC) }

// IsBPFFS tells whether path is in a mounted BPF filesystem.
func IsBPFFS(path string) (bool, error) { return isFS(path, unix.BPF_FS_MAGIC) }

func isFS(path string, magic int64) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("stat filesystem of %q: %w", path, err)
	}
	return int64(st.Type) == magic, nil
}

// CgroupID returns the number by which the kernel knows a cgroup2 directory. A
// directory that is removed and made again gets another one.
func CgroupID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("read id of cgroup %q: %w", path, err)
	}
	return st.Ino, nil
}

// SetSysctl writes a per-namespace setting below /proc/sys/net, such as
// "ipv4/fwmark_reflect", in n.
func (n *NetNS) SetSysctl(name, value string) error {
	return n.Do(func() error {
		if err := os.WriteFile(sysctlPath(name), []byte(value), 0o644); err != nil {
			return fmt.Errorf("set sysctl %q: %w", name, err)
		}
		return nil
	})
}

// Sysctl reads what SetSysctl writes.
func (n *NetNS) Sysctl(name string) (value string, err error) {
	err = n.Do(func() error {
		b, err := os.ReadFile(sysctlPath(name))
		if err != nil {
			return fmt.Errorf("read sysctl %q: %w", name, err)
		}
		if len(b) == 0 {
			return errors.New("read sysctl: empty")
		}
		value = string(b[:len(b)-1]) // ends in a newline
		return nil
	})
	return value, err
}

// sysctlPath is resolved by the kernel for the calling thread's namespace.
func sysctlPath(name string) string { return filepath.Join("/proc/sys/net", name) }
