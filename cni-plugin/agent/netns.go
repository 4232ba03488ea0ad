package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/linux"
)

const (
	// indexAge is how long one scan of /proc serves: enrolling a namespace asks for many pods at once.
	indexAge = time.Second
	// maxCgroupFile bounds one /proc/<pid>/cgroup in bytes; v1 has a dozen lines of about 200.
	maxCgroupFile = 64 << 10
)

var (
	// errHostNetNS refuses the node's own namespace: capture there would cut the node off.
	errHostNetNS = errors.New("it is the node's own network namespace")
	// errNotOwner refuses a namespace that has none of the pod's addresses.
	errNotOwner = errors.New("it has none of the pod's addresses")
	// errNoProcess means that no process of the pod was found.
	errNoProcess = errors.New("no process of the pod has a network namespace with its address")
)

// finder finds the network namespaces of pods.
type finder struct {
	// hostProc is the node's /proc; netnsDir is the node's /var/run/netns as this process sees them.
	hostProc, netnsDir string
	// host are the inodes of the node's own namespace.
	host []uint64

	mu      sync.Mutex
	scanned time.Time
	pids    map[string][]int // by the UIDs in a process's cgroup path
}

// newFinder also learns which namespace is the node's: that of the node's first process, and this process's own.
// The agent is on the node's network, so they are the same, and the first process may be hidden where nodes are
// containers themselves.
func newFinder(hostProc, netnsDir string) (*finder, error) {
	f := &finder{hostProc: hostProc, netnsDir: netnsDir}
	own, err := linux.CurrentNetNS()
	if err != nil {
		return nil, fmt.Errorf("find the node's network namespace: %w", err)
	}
	f.host = append(f.host, own.Inode())
	first, err := linux.OpenNetNS(filepath.Join(hostProc, "1", "ns", "net"))
	switch {
	case errors.Is(err, fs.ErrPermission):
		return f, own.Close()
	case err != nil:
		return nil, fmt.Errorf("find the node's network namespace: %w", errors.Join(err, own.Close()))
	}
	f.host = append(f.host, first.Inode())
	return f, errors.Join(own.Close(), first.Close())
}

// byPath opens the namespace that the runtime named when it started the pod; the path is the node's.
func (f *finder) byPath(path string) (*linux.NetNS, error) {
	local, err := f.localPath(path)
	if err != nil {
		return nil, err
	}
	n, err := linux.OpenNetNS(local)
	if err != nil {
		return nil, err
	}
	if err := f.refuseHost(n); err != nil {
		return nil, fmt.Errorf("use network namespace %q: %w", path, errors.Join(err, n.Close()))
	}
	return n, nil
}

// localPath translates the node's path to this process's.
func (f *finder) localPath(path string) (string, error) {
	clean := filepath.Clean(path)
	for _, dir := range []string{"/var/run/netns", "/run/netns"} {
		if filepath.Dir(clean) == dir {
			return filepath.Join(f.netnsDir, filepath.Base(clean)), nil
		}
	}
	if rest, ok := strings.CutPrefix(clean, "/proc/"); ok {
		return filepath.Join(f.hostProc, rest), nil
	}
	return "", fmt.Errorf("use network namespace %q: want a path under /var/run/netns, /run/netns or /proc", path)
}

// byProcess finds the namespace of a running pod: that of a process whose cgroup names the pod, and which has
// one of the pod's addresses. Both, because a process of one pod may be in another's namespace for a moment,
// and because a pod may make namespaces of its own.
func (f *finder) byProcess(uids []string, ips []netip.Addr) (*linux.NetNS, error) {
	var refused error
	for _, pid := range f.processes(uids) {
		n, err := f.ofProcess(pid, uids)
		if err != nil {
			refused = err
			continue
		}
		if err := f.accept(n, ips); err != nil {
			refused = fmt.Errorf("process %d: %w", pid, errors.Join(err, n.Close()))
			continue
		}
		return n, nil
	}
	if refused != nil {
		return nil, fmt.Errorf("%w: last one refused: %w", errNoProcess, refused)
	}
	return nil, errNoProcess
}

// accept tells whether n can be the namespace of a pod with these addresses.
func (f *finder) accept(n *linux.NetNS, ips []netip.Addr) error {
	if err := f.refuseHost(n); err != nil {
		return err
	}
	owns, err := ownsAny(n, ips)
	if err != nil {
		return err
	}
	if !owns {
		return errNotOwner
	}
	return nil
}

// processes lists candidates from a scan that is at most indexAge old, or new if that one has none.
func (f *finder) processes(uids []string) []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range 2 {
		if time.Since(f.scanned) < indexAge {
			for _, u := range uids {
				if p := f.pids[u]; len(p) > 0 {
					return slices.Clone(p)
				}
			}
		}
		f.scan()
	}
	return nil
}

// scan reads the cgroup paths of all processes. The caller holds f.mu.
func (f *finder) scan() {
	f.pids, f.scanned = map[string][]int{}, time.Now()
	entries, err := os.ReadDir(f.hostProc)
	if err != nil {
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		for _, uid := range f.podUIDs(pid) {
			f.pids[uid] = append(f.pids[uid], pid)
		}
	}
}

// ofProcess opens a process's namespace and makes sure, afterwards, that the process is still the pod's: its
// number may have been given to another one since the scan.
func (f *finder) ofProcess(pid int, uids []string) (*linux.NetNS, error) {
	n, err := linux.OpenNetNS(filepath.Join(f.hostProc, strconv.Itoa(pid), "ns", "net"))
	if err != nil {
		return nil, err
	}
	for _, u := range f.podUIDs(pid) {
		if slices.Contains(uids, u) {
			return n, nil
		}
	}
	return nil, fmt.Errorf("process %d: %w", pid, errors.Join(errors.New("it left the pod"), n.Close()))
}

func (f *finder) podUIDs(pid int) []string {
	file, err := os.Open(filepath.Join(f.hostProc, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return nil
	}
	defer file.Close()
	b := make([]byte, maxCgroupFile)
	n, err := file.Read(b)
	if err != nil {
		return nil
	}
	return parsePodUIDs(string(b[:n]))
}

// parsePodUIDs reads the pods that a /proc/<pid>/cgroup names, of cgroup v1 or v2, of the cgroupfs or the
// systemd driver: a path segment pod<uid>, with "_" for "-" and a slice's prefix and suffix with systemd.
//
//	11:memory:/kubepods/burstable/pod2c48913c-b29f-11e7-9350-020968147796/9bca8d63
//	0::/kubepods.slice/kubepods-pod72f7f152_440c_66ac_9084_e0fc1d8a910c.slice/cri-containerd-b2a1.scope
//	0::/../../pod72f7f152-440c-66ac-9084-e0fc1d8a910c/b2a1
//
// A pod that runs a Kubernetes inside has two in its path; the address tells them apart.
func parsePodUIDs(cgroup string) []string {
	var out []string
	for line := range strings.Lines(cgroup) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for seg := range strings.FieldsFuncSeq(parts[2], func(r rune) bool { return r == '/' || r == ':' }) {
			seg = strings.TrimSuffix(seg, ".slice")
			i := strings.LastIndex(seg, "pod")
			if i < 0 || (i > 0 && seg[i-1] != '-') {
				continue
			}
			uid := strings.ReplaceAll(seg[i+len("pod"):], "_", "-")
			if isUID(uid) && !slices.Contains(out, uid) {
				out = append(out, uid)
			}
		}
	}
	return out
}

// isUID accepts a UUID, or the 32 hexadecimal digits that the kubelet gives a pod from a file.
func isUID(s string) bool {
	if len(s) != 36 && len(s) != 32 {
		return false
	}
	return strings.Trim(s, "0123456789abcdefABCDEF-") == ""
}

// refuseHost refuses the node's own namespace.
func (f *finder) refuseHost(n *linux.NetNS) error {
	if slices.Contains(f.host, n.Inode()) {
		return errHostNetNS
	}
	return nil
}

// ownsAny tells whether one of the addresses is on an interface in n.
func ownsAny(n *linux.NetNS, ips []netip.Addr) (bool, error) {
	var have []net.Addr
	if err := n.Do(func() (err error) {
		have, err = net.InterfaceAddrs()
		return err
	}); err != nil {
		return false, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range have {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && slices.Contains(ips, p.Addr().Unmap()) {
			return true, nil
		}
	}
	return false, nil
}
