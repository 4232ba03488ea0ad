package kubelet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// processName is what the kubelet calls itself (comm); a distribution that links
// it into a larger program (k3s, for one) has to name its cgroup.
const processName = "kubelet"

// errShared says that the kubelet's cgroup has other processes too.
var errShared = errors.New("the kubelet runs in the root cgroup, together with other processes")

// Find returns the cgroup2 directories below root in which kubelets run.
func Find(hostProc, root string) ([]string, error) {
	entries, err := os.ReadDir(hostProc)
	if err != nil {
		return nil, fmt.Errorf("find kubelet: %w", err)
	}
	var dirs []string
	var errs []error
	for _, e := range entries {
		if e.Name()[0] < '1' || e.Name()[0] > '9' {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(hostProc, e.Name(), "comm"))
		if err != nil || strings.TrimSuffix(string(comm), "\n") != processName {
			continue
		}
		dir, err := cgroupDir(filepath.Join(hostProc, e.Name(), "cgroup"), root)
		if err != nil {
			errs = append(errs, err)
		} else if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) > 0 {
		return dirs, nil
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("find kubelet: no process of that name in %q", hostProc)
	}
	return nil, fmt.Errorf("find kubelet: %w", errors.Join(errs...))
}

// cgroupDir reads /proc/<pid>/cgroup and returns the directory below root.
func cgroupDir(file, root string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	p, err := parseCgroup(string(b))
	if err != nil {
		return "", fmt.Errorf("read %q: %w", file, err)
	}
	dir := filepath.Join(root, p)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("read %q: %w", file, err)
	}
	return dir, nil
}

// parseCgroup returns the cgroup2 path of /proc/<pid>/cgroup, relative to the
// hierarchy's root. From within a cgroup namespace the kernel shows what lies
// outside with leading "/.."; those that go up to the common root are cut off.
func parseCgroup(text string) (string, error) {
	for line := range strings.Lines(text) {
		p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		if !strings.HasPrefix(p, "/") {
			return "", fmt.Errorf("parse cgroup %q: not absolute", p)
		}
		for p == "/.." || strings.HasPrefix(p, "/../") {
			p = p[len("/.."):]
		}
		p = filepath.Clean("/" + p)
		if p == "/" {
			return "", errShared
		}
		return p, nil
	}
	return "", errors.New("no cgroup2 entry")
}
