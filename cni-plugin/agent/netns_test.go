package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/linux"
)

func TestParsePodUIDs(t *testing.T) {
	const uid = "2c48913c-b29f-11e7-9350-020968147796"
	const other = "72f7f152-440c-66ac-9084-e0fc1d8a910c"
	under := strings.ReplaceAll(uid, "-", "_")
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"cgroupfs v1", "11:memory:/kubepods/burstable/pod" + uid + "/9bca8d63\n10:cpu,cpuacct:/kubepods/burstable/pod" + uid + "/9bca8d63\n", []string{uid}},
		{"cgroupfs v2", "0::/kubepods/besteffort/pod" + uid + "/9bca8d63\n", []string{uid}},
		{"systemd v2", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-b2a1.scope\n", []string{uid}},
		{"systemd guaranteed", "0::/kubepods.slice/kubepods-pod" + under + ".slice/crio-b2a1.scope", []string{uid}},
		{"containerd with the systemd driver in cgroupfs form", "0::/system.slice/kubepods-besteffort-pod" + under + ".slice:cri-containerd:b2a1", []string{uid}},
		{"seen from another cgroup namespace", "0::/../../pod" + uid + "/b2a1", []string{uid}},
		{"pod from a file", "0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/c", []string{"0123456789abcdef0123456789abcdef"}},
		{"a Kubernetes inside a pod", "0::/kubepods/pod" + uid + "/c/kubepods/pod" + other + "/d", []string{uid, other}},
		{"no pod", "0::/system.slice/containerd.service\n1:name=systemd:/\n", nil},
		{"a name that looks alike", "0::/kubepods/podinfo/x\n0::/tripod" + uid + "/x", nil},
		{"garbage", "::::\n\x00\n12", nil},
		{"empty", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, parsePodUIDs(c.in)); d != "" {
				t.Error(d)
			}
		})
	}
}

func FuzzParsePodUIDs(f *testing.F) {
	f.Add("0::/kubepods/pod2c48913c-b29f-11e7-9350-020968147796/c\n")
	f.Fuzz(func(t *testing.T, s string) {
		for _, u := range parsePodUIDs(s) {
			if !isUID(u) {
				t.Fatalf("accepted %q", u)
			}
		}
	})
}

// testPod is a network namespace with an address, bound to a file as runtimes do, and a process in it.
type testPod struct {
	uid   string
	ip    netip.Addr
	path  string // as the runtime names it on the node
	netns *linux.NetNS
	pid   int
}

func mustFinder(t *testing.T, dir string) *finder {
	t.Helper()
	f, err := newFinder("/proc", dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// onNewThread runs fn on a thread that ends afterwards. Never on the process's first one, which cannot end.
func onNewThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			err := onNewThread(fn)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// newUID makes a UID as the API server does.
func newUID(t *testing.T) string {
	t.Helper()
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// newNetNS makes a network namespace with the address on lo and binds it to a file in dir.
func newNetNS(t *testing.T, dir string, ip netip.Addr) (name string, n *linux.NetNS) {
	t.Helper()
	name = "ambit-t-" + newUID(t)
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := onNewThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		if ip.IsValid() {
			a, err := netlink.ParseAddr(netip.PrefixFrom(ip, ip.BitLen()).String())
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(lo, a); err != nil {
				return err
			}
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	n, err := linux.OpenNetNS(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return name, n
}

// podCgroup makes a child cgroup whose path names the pod.
func podCgroup(t *testing.T, uid string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		before, after, _ := strings.Cut(line, " - ")
		if f := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(f) > 4 {
			base := filepath.Join(f[4], "ambit-t-"+newUID(t))
			dirs := []string{base, filepath.Join(base, "pod"+uid), filepath.Join(base, "pod"+uid, "c1")}
			for _, d := range dirs {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					// A cgroup may be removed a moment after its last process was waited for.
					waitFor(t, "empty cgroup", func() bool { return os.Remove(d) == nil })
				})
			}
			return dirs[2]
		}
	}
	t.Fatal("no cgroup2 mount")
	return ""
}

// runIn starts a process in the namespace and the cgroup; it ends with the test.
func runIn(t *testing.T, n *linux.NetNS, cgroup string) int {
	t.Helper()
	cg, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer cg.Close()
	cmd := exec.Command("sleep", "600")
	if err := linux.WithFD(cg, func(fd int) error {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
		return n.Do(cmd.Start)
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid
}

// newTestPod makes a pod that runs.
func newTestPod(t *testing.T, dir, ip string) *testPod {
	t.Helper()
	p := &testPod{uid: newUID(t), ip: netip.MustParseAddr(ip)}
	name, n := newNetNS(t, dir, p.ip)
	p.path, p.netns = "/var/run/netns/"+name, n
	p.pid = runIn(t, n, podCgroup(t, p.uid))
	return p
}

func TestFinderFindsARunningPod(t *testing.T) {
	dir := t.TempDir()
	p := newTestPod(t, dir, "10.244.7.2")
	f := mustFinder(t, dir)

	n, err := f.byProcess([]string{p.uid}, []netip.Addr{netip.MustParseAddr("10.244.7.2")})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if n.Inode() != p.netns.Inode() {
		t.Errorf("found inode %d, want %d", n.Inode(), p.netns.Inode())
	}
	m, err := f.byPath(p.path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Inode() != p.netns.Inode() {
		t.Errorf("by path: inode %d, want %d", m.Inode(), p.netns.Inode())
	}
	if m, err := f.byPath(fmt.Sprintf("/proc/%d/ns/net", p.pid)); err != nil || m.Inode() != p.netns.Inode() {
		t.Errorf("by process path: %v", err)
	} else {
		m.Close()
	}
}

func TestFinderRefusesWhatIsNotThePods(t *testing.T) {
	dir := t.TempDir()
	ip := netip.MustParseAddr("10.244.7.3")
	p := newTestPod(t, dir, ip.String())
	f := mustFinder(t, dir)
	before := len(openFDs(t))

	if _, err := f.byProcess([]string{p.uid}, []netip.Addr{netip.MustParseAddr("10.244.7.99")}); !errors.Is(err, errNotOwner) {
		t.Errorf("another address: %v, want errNotOwner", err)
	}
	if _, err := f.byProcess([]string{newUID(t)}, []netip.Addr{ip}); !errors.Is(err, errNoProcess) {
		t.Errorf("another pod: %v, want errNoProcess", err)
	}

	// A process of the pod that is in the node's own namespace (istio#55139).
	host, err := linux.CurrentNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	uid := newUID(t)
	pid := runIn(t, host, podCgroup(t, uid))
	if _, err := f.byProcess([]string{uid}, []netip.Addr{netip.MustParseAddr("127.0.0.1")}); !errors.Is(err, errHostNetNS) {
		t.Errorf("host namespace: %v, want errHostNetNS", err)
	}
	for _, path := range []string{"/proc/self/ns/net", "/proc/" + strconv.Itoa(pid) + "/ns/net"} {
		if _, err := f.byPath(path); !errors.Is(err, errHostNetNS) {
			t.Errorf("%s: %v, want errHostNetNS", path, err)
		}
	}
	for _, path := range []string{"", "/", "/etc/passwd", "/var/run/netns/../../etc/passwd", "/var/run/netns/a/b"} {
		if n, err := f.byPath(path); err == nil {
			n.Close()
			t.Errorf("%q accepted", path)
		}
	}
	host.Close()
	if n := len(openFDs(t)); n > before {
		t.Errorf("%d file descriptors open, %d before: %v", n, before, openFDs(t))
	}
}

// TestFinderPicksTheProcessWithTheAddress: a process of the pod that made a namespace of its own, as docker in a
// pod does, comes first in /proc and is passed over.
func TestFinderPicksTheProcessWithTheAddress(t *testing.T) {
	dir := t.TempDir()
	ip := netip.MustParseAddr("fd00:7::4")
	uid := newUID(t)
	cg := podCgroup(t, uid)
	_, inner := newNetNS(t, dir, netip.Addr{})
	_, outer := newNetNS(t, dir, ip)
	runIn(t, inner, cg)
	runIn(t, outer, cg)
	f := mustFinder(t, dir)
	n, err := f.byProcess([]string{uid}, []netip.Addr{ip})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if n.Inode() != outer.Inode() {
		t.Error("took the namespace that the pod made, not the pod's")
	}
}
