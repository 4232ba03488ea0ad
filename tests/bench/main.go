// Command bench measures what the mesh costs: the same load between two pods on
// two nodes, once directly and once through two ztunnel processes with real
// capture and mutual TLS, interleaved in one run so that a noisy machine hurts
// both alike. Nodes and pods are network namespaces; nothing leaves them. It
// prints a table and, as its last line, one JSON object with the medians.
//
// With -waypoint it measures layer 7: how fast istiod tells a waypoint of a thousand
// services, and of one change; and what requests cost that go through a waypoint.
//
// `make bench` and `make bench-waypoint` build what it needs and run it, as root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// innerEnv says that the process already runs in its own mount and network namespace.
const innerEnv = "AMBIT_BENCH_INNER"

type options struct {
	ztunnel     string
	repetitions int
	duration    time.Duration
	only        string
	profile     string

	waypoint      bool
	istiod, agent string
}

func main() {
	if len(os.Args) > 1 && (os.Args[1] == serveRaw || os.Args[1] == serveHTTP || os.Args[1] == runOne) {
		exitOn(child(os.Args[1:]))
		return
	}
	var o options
	flag.StringVar(&o.ztunnel, "ztunnel", "bin/ztunnel", "the ztunnel binary to measure")
	flag.IntVar(&o.repetitions, "repetitions", 3, "how often each measurement is taken, directly and meshed in turn")
	flag.DurationVar(&o.duration, "duration", 3*time.Second, "length of one measurement")
	flag.StringVar(&o.only, "only", "", "run only the scenario of this name, and its direct twin")
	flag.StringVar(&o.profile, "profile", "", "directory for a CPU profile of each ztunnel during meshed runs")
	flag.BoolVar(&o.waypoint, "waypoint", false, "measure a waypoint; -only is then push, h1_16 or h2c_16")
	flag.StringVar(&o.istiod, "istiod", "bin/istiod", "the istiod binary, with -waypoint")
	flag.StringVar(&o.agent, "agent", "bin/waypoint-agent", "the binary of the waypoint's agent, with -waypoint")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Getenv(innerEnv) == "" {
		exitOn(isolate(ctx))
		return
	}
	if o.waypoint {
		exitOn(benchWaypoint(ctx, o))
		return
	}
	exitOn(bench(ctx, o))
}

func exitOn(err error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// isolate runs this program again in namespaces of its own, so that mounts and
// links of a killed run go away by themselves.
func isolate(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := exec.CommandContext(ctx, self, os.Args[1:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.Env = append(os.Environ(), innerEnv+"=1")
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 10 * time.Second
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	return c.Run()
}

func bench(ctx context.Context, o options) (err error) {
	start := time.Now()
	step := func(what string) { fmt.Printf("[%6.1fs] %s\n", time.Since(start).Seconds(), what) }
	step("two nodes, four pods, two ztunnels")
	m, err := newMesh(ctx, o.ztunnel)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	rss, err := m.idleRSS()
	if err != nil {
		return err
	}
	samples, err := measure(ctx, m, o, step)
	if err != nil {
		return err
	}
	return report(os.Stdout, samples, rss)
}
