package kubelet

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseCgroup(t *testing.T) {
	for _, tc := range []struct {
		name, text, want, err string
	}{
		{"systemd", "0::/system.slice/kubelet.service\n", "/system.slice/kubelet.service", ""},
		{"beside old hierarchies", "3:memory:/a\n1:name=systemd:/b\n0::/kubelet\n", "/kubelet", ""},
		{"from a container", "0::/../../../system.slice/kubelet.service\n", "/system.slice/kubelet.service", ""},
		{"a name that starts with dots", "0::/..kubelet\n", "/..kubelet", ""},
		{"root", "0::/\n", "", "root cgroup"},
		{"root, from a container", "0::/../..\n", "", "root cgroup"},
		{"climbing back to the root", "0::/a/..\n", "", "root cgroup"},
		{"no cgroup2", "3:memory:/a\n", "", "no cgroup2"},
		{"relative", "0::kubelet\n", "", "not absolute"},
		{"empty", "", "", "no cgroup2"},
	} {
		got, err := parseCgroup(tc.text)
		if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: got %q, %v", tc.name, got, err)
		}
	}
}

func FuzzParseCgroup(f *testing.F) {
	f.Add("0::/system.slice/kubelet.service\n")
	f.Add("0::/../../x\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseCgroup(text)
		if err != nil {
			return
		}
		if got == "/" || !strings.HasPrefix(filepath.Join("/root", got), "/root/") {
			t.Errorf("%q leads out of the root: %q", text, got)
		}
	})
}

// fakeNode makes a /proc with one process, and a cgroup root with one cgroup.
func fakeNode(t *testing.T, comm, cgroup string) (proc, root string) {
	t.Helper()
	proc, root = t.TempDir(), t.TempDir()
	err := errors.Join(
		os.MkdirAll(filepath.Join(proc, "321"), 0o755),
		os.Mkdir(filepath.Join(proc, "self"), 0o755),
		os.WriteFile(filepath.Join(proc, "321/comm"), []byte(comm+"\n"), 0o644),
		os.WriteFile(filepath.Join(proc, "321/cgroup"), []byte("0::"+cgroup+"\n"), 0o644),
		os.MkdirAll(filepath.Join(root, "system.slice/kubelet.service"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	return proc, root
}

func TestFind(t *testing.T) {
	for _, tc := range []struct {
		name, comm, cgroup, err string
	}{
		{"own cgroup", "kubelet", "/system.slice/kubelet.service", ""},
		{"seen from a container", "kubelet", "/../../system.slice/kubelet.service", ""},
		{"root cgroup", "kubelet", "/", "together with other processes"},
		{"cgroup of another node", "kubelet", "/elsewhere", "no such file"},
		{"no kubelet", "k3s-server", "/system.slice/kubelet.service", "no process of that name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			proc, root := fakeNode(t, tc.comm, tc.cgroup)
			got, err := Find(proc, root)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}
			if want := []string{filepath.Join(root, "system.slice/kubelet.service")}; err != nil || !slices.Equal(got, want) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}
