package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/tests/cluster/process"
)

// stopTimeout bounds how long a killed process may stay: a node's namespace of processes ends with its PID 1.
const stopTimeout = 20 * time.Second

// record is one process of the cluster as its file names it.
type record struct {
	process.Record
	file string
}

func (r record) alive() bool { return r.Record.Alive() }

// records reads what the processes wrote about themselves before they began.
func (c *Cluster) records() ([]record, error) {
	files, err := filepath.Glob(filepath.Join(c.recordDir(), "*.json"))
	if err != nil {
		return nil, fmt.Errorf("list process records: %w", err)
	}
	var list []record
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("read a process record: %w", err)
		}
		r := record{file: f}
		if err := json.Unmarshal(b, &r.Record); err != nil {
			// Cut off while it was written: its process never began.
			continue
		}
		list = append(list, r)
	}
	return list, nil
}

// spawn starts a program of the cluster in a network namespace, detached, with its own log.
// The node program writes the record and then becomes the program, so nothing runs unrecorded.
func (c *Cluster) spawn(name, netns string, argv ...string) error {
	args := []string{"exec", "--record", c.recordFile(name), "--netns", c.netnsPath(netns), "--"}
	return c.detach(name, append(args, argv...)...)
}

// detach runs the node program in a session of its own and waits for its record.
func (c *Cluster) detach(name string, args ...string) error {
	log, err := os.OpenFile(c.logFile(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open the log of %q: %w", name, err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(c.nodeProgram(), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PATH="+c.binDir()+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %q: %w", name, err)
	}
	// Reap it if it ends while this program still runs; the goroutine ends with either.
	go func() { _ = cmd.Wait() }()
	return nil
}

// ended returns an error with the end of its log if one of the cluster's processes no longer runs.
func (c *Cluster) ended() error {
	records, err := c.records()
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.alive() {
			continue
		}
		name := strings.TrimSuffix(filepath.Base(r.file), ".json")
		log, err := os.ReadFile(c.logFile(name))
		return errors.Join(fmt.Errorf("process %q ended:\n%s", name, lastLines(log)), err)
	}
	return nil
}

func (c *Cluster) recordFile(name string) string { return filepath.Join(c.recordDir(), name+".json") }
func (c *Cluster) logFile(name string) string    { return filepath.Join(c.logDir(), name+".log") }

// down ends processes, then removes namespaces, cgroups and state. Each part works without the others.
func (c *Cluster) down(ctx context.Context) error {
	records, err := c.records()
	if err != nil {
		return err
	}
	errs := []error{c.stop(ctx, records)}
	for _, name := range c.netnsNames() {
		errs = append(errs, deleteNetNS(name))
	}
	errs = append(errs, c.removeCgroups(ctx), c.removeState())
	return errors.Join(errs...)
}

// removeState deletes the directory, after making sure that nothing is mounted under it any more:
// deleting must not reach through a mount.
func (c *Cluster) removeState() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	if strings.Contains(string(mounts), " "+c.state+"/") {
		return fmt.Errorf("remove %q: something is mounted under it", c.state)
	}
	if err := os.RemoveAll(c.state); err != nil {
		return fmt.Errorf("remove the state: %w", err)
	}
	return nil
}

// stop kills the recorded processes that still are what the record says, and waits for them.
func (c *Cluster) stop(ctx context.Context, records []record) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for _, r := range records {
		if err := r.Kill(); err != nil {
			return fmt.Errorf("end process %q: %w", filepath.Base(r.file), err)
		}
	}
	for _, r := range records {
		if err := poll(ctx, func(context.Context) (bool, error) { return !r.alive(), nil }); err != nil {
			return fmt.Errorf("wait for the end of process %d: %w", r.PID, err)
		}
	}
	return nil
}

// removeCgroups deletes the children that nodes recorded, deepest first. The kernel takes a moment to let go of
// the last processes of a node's PID namespace, so it tries until the time is over.
func (c *Cluster) removeCgroups(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	var dirs []string
	for _, n := range nodes() {
		b, err := os.ReadFile(c.cgroupFile(n))
		if err != nil {
			continue // this node never began
		}
		dirs = append(dirs, strings.Fields(string(b))...)
	}
	return poll(ctx, func(context.Context) (bool, error) {
		left := false
		for _, dir := range dirs {
			if !strings.Contains(filepath.Base(dir), c.name+"-") {
				return false, fmt.Errorf("remove cgroup %q: it does not carry the cluster's name", dir)
			}
			left = removeCgroupTree(dir) || left
		}
		return !left, nil
	})
}

// removeCgroupTree says whether something is left.
func removeCgroupTree(dir string) bool {
	var tree []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			tree = append(tree, path)
		}
		return nil
	})
	for i := len(tree) - 1; i >= 0; i-- {
		_ = unix.Rmdir(tree[i])
	}
	_, err := os.Stat(dir)
	return err == nil
}

func (c *Cluster) cgroupFile(n node) string { return filepath.Join(c.state, n.name, "cgroups") }

// poll calls f until it is true, it fails, or the context ends.
func poll(ctx context.Context, f func(context.Context) (bool, error)) error {
	for {
		done, err := f(ctx)
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollInterval):
		}
	}
}
