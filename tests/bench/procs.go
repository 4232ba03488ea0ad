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

// Commands of this program in a pod.
const (
	serveRaw  = "serve"      // <address>: what load.Serve serves
	serveHTTP = "serve-http" // <address>: what load.ServeHTTP serves
	runOne    = "run"        // <spec as JSON>
)

func child(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("run child %q: want one argument", args)
	}
	if serve := map[string]func(net.Listener) error{serveRaw: load.Serve, serveHTTP: load.ServeHTTP}[args[0]]; serve != nil {
		l, err := net.Listen("tcp", args[1])
		if err != nil {
			return err
		}
		fmt.Println("listening")
		return serve(l)
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
	c := in(exec.CommandContext(ctx, self, runOne, string(spec)), cgroup)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, os.Stderr
	if err := start(ns, c); err != nil {
		return load.Result{}, fmt.Errorf("start load: %w", err)
	}
	if err := c.Wait(); err != nil {
		return load.Result{}, fmt.Errorf("run load: %w", err)
	}
	r := load.Result{CPU: c.ProcessState.UserTime() + c.ProcessState.SystemTime()}
	return r, json.Unmarshal(out.Bytes(), &r)
}

// startServer starts the load's server in a pod and waits until it listens. What is serveRaw or serveHTTP.
func startServer(ns *linux.NetNS, cgroup *os.File, what, addr string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := in(exec.Command(self, what, addr), cgroup)
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
	s, err := readStat(fmt.Sprintf("/proc/%d/stat", pid))
	return s.cpu, err
}

// stat is what of proc(5)'s stat of a process or thread is used here.
type stat struct {
	command string
	cpu     time.Duration
	// started is its start, as time since the machine's.
	started time.Duration
}

func readStat(path string) (stat, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return stat{}, err
	}
	// The command may contain spaces; it is in parentheses, the last of which ends before field 3.
	first, last := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[last+1:]))
	if first < 0 || len(f) < 20 {
		return stat{}, fmt.Errorf("parse %q: %d fields", path, len(f))
	}
	ticks := func(i int) time.Duration {
		n, e := strconv.ParseUint(f[i], 10, 64)
		if e != nil {
			err = fmt.Errorf("parse %q: %w", path, e)
		}
		return time.Duration(n) * clockTick
	}
	s := stat{command: string(b[first+1 : last]), cpu: ticks(11) + ticks(12), started: ticks(19)}
	return s, err
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
