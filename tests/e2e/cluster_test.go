package e2e

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"context"

	"github.com/ambit-mesh/ambit/tests/cluster"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

// TestKilledClusterRunIsCleanedUp kills the cluster tool in the middle of a start. The next run starts a whole
// cluster all the same, and the end of that leaves nothing on the machine.
func TestKilledClusterRunIsCleanedUp(t *testing.T) {
	ctx := t.Context()
	const name = "ambitk"
	root := t.TempDir()
	tool := filepath.Join(root, "cluster")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", tool, "../cluster/cmd/cluster").CombinedOutput(); err != nil {
		t.Fatalf("build the tool: %v\n%s", err, out)
	}
	source, err := stage.SourceRoot()
	must(t, err)
	c, err := cluster.New(cluster.Config{Name: name, StateRoot: filepath.Join(root, "state"), Source: source})
	must(t, err)
	t.Cleanup(func() {
		if err := c.Down(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
		if left := leftovers(t, name); len(left) > 0 {
			t.Errorf("left on the machine: %v", left)
		}
	})

	up := exec.CommandContext(ctx, tool, "up", "--name", name, "--state", filepath.Join(root, "state"))
	must(t, up.Start())
	// Nodes have begun, the control plane has not finished.
	must(t, stage.Poll(ctx, settleTimeout, func(context.Context) error {
		_, err := os.Stat(filepath.Join(root, "state", name, "processes", "kube-apiserver.json"))
		return err
	}))
	must(t, up.Process.Signal(syscall.SIGKILL))
	if err := up.Wait(); err == nil {
		t.Fatal("the tool ended by itself before it was killed")
	}
	if len(leftovers(t, name)) == 0 {
		t.Fatal("the killed run left nothing: there is nothing to test")
	}

	must(t, c.Up(ctx))
	out, err := c.Kubectl(ctx, "get", "nodes", "-o", "name").CombinedOutput()
	if err != nil || strings.Count(string(out), "node/") != 2 {
		t.Errorf("nodes after the second run: %s, %v", out, err)
	}
}

// leftovers are network namespaces, cgroups and processes that carry the cluster's name.
func leftovers(t *testing.T, name string) []string {
	t.Helper()
	var left []string
	namespaces, err := filepath.Glob("/run/netns/" + name + "-*")
	must(t, err)
	left = append(left, namespaces...)
	must(t, filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), name+"-n") {
			left = append(left, path)
			return fs.SkipDir
		}
		return nil // what vanishes while it is walked is not left
	}))
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, file := range commands {
		b, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(b), "/state/"+name+"/") {
			left = append(left, file+": "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return left
}
