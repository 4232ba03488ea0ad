package capture

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/linux"
)

// prefix starts the names of all that the tests make outside their namespaces;
// the process id follows.
const prefix = "ambit-t-"

// sandbox is what the tests use of the machine.
type sandbox struct {
	cgroup  string // stands for the node's cgroup root; this process is in it
	kubelet string // stands for the kubelet's cgroup
	bpffs   string
}

// box is made by TestMain, before any test, and not changed.
var box sandbox

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	cleanup, err := setUp()
	if err != nil {
		fmt.Fprintln(os.Stderr, "set up:", err)
		cleanup()
		return 1
	}
	defer cleanup()
	return m.Run()
}

func setUp() (cleanup func(), err error) {
	var undo []func()
	cleanup = func() {
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
	}
	root, err := linux.FindCgroup2("/")
	if err != nil {
		return cleanup, err
	}
	sweep(root)
	own, err := ownCgroup()
	if err != nil {
		return cleanup, err
	}
	name := prefix + strconv.Itoa(os.Getpid())
	box.cgroup = filepath.Join(root, own, name)
	box.kubelet = filepath.Join(box.cgroup, "kubelet")
	if err := os.MkdirAll(box.kubelet, 0o755); err != nil {
		return cleanup, err
	}
	undo = append(undo, func() {
		os.WriteFile(filepath.Join(root, own, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644)
		os.Remove(box.kubelet)
		os.Remove(box.cgroup)
	})
	if err := os.WriteFile(filepath.Join(box.cgroup, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return cleanup, err
	}
	box.bpffs = filepath.Join(os.TempDir(), name)
	if err := os.Mkdir(box.bpffs, 0o700); err != nil {
		return cleanup, err
	}
	if err := unix.Mount("bpf", box.bpffs, "bpf", 0, ""); err != nil {
		return cleanup, fmt.Errorf("mount bpffs: %w", err)
	}
	undo = append(undo, func() {
		unix.Unmount(box.bpffs, unix.MNT_DETACH)
		os.Remove(box.bpffs)
	})
	return cleanup, nil
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

// sweep removes what killed runs left.
func sweep(root string) {
	dirs, _ := filepath.Glob(filepath.Join(root, prefix+"*"))
	mounts, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, d := range append(dirs, mounts...) {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(d), prefix))
		if err != nil || unix.Kill(pid, 0) == nil {
			continue
		}
		unix.Unmount(d, unix.MNT_DETACH) // fails on cgroups
		os.Remove(filepath.Join(d, "kubelet"))
		os.Remove(d)
	}
}
