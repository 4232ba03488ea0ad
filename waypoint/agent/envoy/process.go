// Package envoy is Envoy as the agent sees it: a process that it starts and ends,
// and admin pages that it asks.
//
// It always holds that the process never outlives the agent, and that it writes to
// the agent's own output, so that no log line passes through a pipe that could
// fill. It restarts nothing: an Envoy that ended is for its caller to report.
package envoy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

const (
	// stopTimeout is how long Envoy may take to end after SIGTERM, upon which it closes its connections at once.
	stopTimeout = 3 * time.Second
	// flushEvery is how often access logs are written: Envoy's own 10 s look like lost requests to who tests by hand.
	flushEvery = time.Second
)

// Options say how to start Envoy.
type Options struct {
	Path string
	// Bootstrap is a file.
	Bootstrap string
	// Concurrency is the number of workers.
	Concurrency int
	LogLevel    string
	// IPv6 says that the pod has no IPv4 address.
	IPv6 bool
	// DrainTime is how long a listener that is removed or replaced, and a proxy that ends, lets its connections finish.
	DrainTime time.Duration
	// Output takes the log and everything else that Envoy prints.
	Output *os.File
}

func (o Options) args() []string {
	family := "v4"
	if o.IPv6 {
		family = "v6"
	}
	return []string{
		"--config-path", o.Bootstrap,
		"--concurrency", strconv.Itoa(o.Concurrency),
		"--log-level", o.LogLevel,
		// Deprecated fields and the like are for who writes the configuration, not for who runs it.
		"--component-log-level", "misc:error",
		"--drain-time-s", strconv.Itoa(int(o.DrainTime / time.Second)),
		// Clients are told at the next response that a connection goes, not with a chance that grows.
		"--drain-strategy", "immediate",
		"--file-flush-interval-msec", strconv.Itoa(int(flushEvery / time.Millisecond)),
		"--local-address-ip-version", family,
		"--disable-hot-restart",
	}
}

// Process is a running Envoy.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // set before done is closed
}

// Start starts Envoy.
func Start(o Options) (*Process, error) {
	cmd := exec.Command(o.Path, o.args()...)
	cmd.Stdout, cmd.Stderr = o.Output, o.Output
	// Its own process group, so that ^C at a terminal reaches the agent only, which drains; and the kernel ends it if
	// the agent is killed. In a container the agent is process 1, and its end ends all.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() { // ends with the process
		// The kernel takes the end of the thread that started Envoy for the end of the agent, so the thread stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start envoy %q: %w", o.Path, err)
	}
	return p, nil
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when Envoy has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how Envoy ended. It is for use after Done.
func (p *Process) Err() error {
	if p.err == nil {
		return errors.New("envoy ended by itself")
	}
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		return fmt.Errorf("envoy ended (hint: if nobody killed it, it was out of memory): %w", p.err)
	}
	return fmt.Errorf("envoy ended: %w", p.err)
}

// Stop ends Envoy and waits for its end: by SIGTERM, and by SIGKILL if that takes too long or ctx ends.
func (p *Process) Stop(ctx context.Context) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails only if it has ended
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-p.done:
		return
	case <-timer.C:
	case <-ctx.Done():
	}
	_ = p.cmd.Process.Kill() // fails only if it has ended
	<-p.done
}
