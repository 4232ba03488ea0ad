package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/tests/bench/load"
)

// child is this program in a pod: `serve <address>` or `run <spec as JSON>`.
func child(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("run child %q: want one argument", args)
	}
	if args[0] == "serve" {
		l, err := net.Listen("tcp", args[1])
		if err != nil {
			return err
		}
		fmt.Println("listening")
		return load.Serve(l)
	}
	var s load.Spec
	if err := json.Unmarshal([]byte(args[1]), &s); err != nil {
		return fmt.Errorf("parse load spec: %w", err)
	}
	r, err := load.Run(context.Background(), s)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// in prepares c to be a process of the netns and cgroup, killed when this one dies.
func in(c *exec.Cmd, cgroup *os.File) *exec.Cmd {
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if cgroup != nil {
		c.SysProcAttr.UseCgroupFD, c.SysProcAttr.CgroupFD = true, int(cgroup.Fd())
	}
	return c
}

// start starts c in ns: a process inherits the namespace of the thread that starts it.
func start(ns *linux.NetNS, c *exec.Cmd) error {
	return ns.Do(c.Start)
}

// runLoad runs one load in a pod and returns what it measured.
func runLoad(ctx context.Context, ns *linux.NetNS, cgroup *os.File, s load.Spec) (load.Result, error) {
	spec, err := json.Marshal(s)
	if err != nil {
		return load.Result{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return load.Result{}, err
	}
	c := in(exec.CommandContext(ctx, self, "run", string(spec)), cgroup)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, os.Stderr
	if err := start(ns, c); err != nil {
		return load.Result{}, fmt.Errorf("start load: %w", err)
	}
	if err := c.Wait(); err != nil {
		return load.Result{}, fmt.Errorf("run load: %w", err)
	}
	var r load.Result
	return r, json.Unmarshal(out.Bytes(), &r)
}

// startServer starts the load's server in a pod and waits until it listens.
func startServer(ns *linux.NetNS, cgroup *os.File, addr string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := in(exec.Command(self, "serve", addr), cgroup)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := start(ns, c); err != nil {
		return nil, fmt.Errorf("start server on %q: %w", addr, err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("listening"))); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for server on %q: %w", addr, err), end(c))
	}
	return c, nil
}

// end kills a process and collects it.
func end(c *exec.Cmd) error {
	if err := c.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	c.Wait()
	return nil
}

// clockTick is the unit of times in /proc: USER_HZ is 100 on every architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// cpuOf is the user and system time of a process, from /proc/<pid>/stat (proc(5): fields 14 and 15).
func cpuOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command may contain spaces; it ends at the last parenthesis, before field 3.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("parse stat of process %d: %d fields", pid, len(f))
	}
	var ticks uint64
	for _, s := range f[11:13] {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("parse stat of process %d: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// rssOf is the resident memory of a process in bytes, from /proc/<pid>/statm.
func rssOf(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var size, resident uint64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		return 0, fmt.Errorf("parse statm of process %d: %w", pid, err)
	}
	return resident * uint64(os.Getpagesize()), nil
}

func isStream(s scenario) bool { return s.kind == load.Stream }
