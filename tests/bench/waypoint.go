package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/tests/bench/load"
	"github.com/ambit-mesh/ambit/tests/envoybin"
)

// wayConns is how many connections the requests go over, as issue 4 asks.
const wayConns = 16

// wayScenarios are the requests whose cost is measured. Their numbers of connections are in their names.
var wayScenarios = []scenario{{"h1_16", load.H1, wayConns}, {"h2c_16", load.H2, wayConns}}

// waySample is one measurement.
type waySample struct {
	scenario string
	through  bool
	result   load.Result
	// cpu is what each process used, by its role.
	cpu map[string]time.Duration
}

// Roles of processes, in the order in which a request meets them.
const (
	roleClient     = "client"
	roleZtunnelOut = "ztunnel out"
	roleEnvoy      = "envoy"
	roleZtunnelIn  = "ztunnel in"
	roleServer     = "server"
)

var roles = []string{roleClient, roleZtunnelOut, roleEnvoy, roleZtunnelIn, roleServer}

// benchWaypoint is `make bench-waypoint`.
func benchWaypoint(ctx context.Context, o options) (err error) {
	begin := time.Now()
	step := func(what string) { fmt.Printf("[%6.1fs] %s\n", time.Since(begin).Seconds(), what) }
	envoy, err := envoybin.Locate()
	if err != nil {
		return err
	}
	step(fmt.Sprintf("istiod with %d services, two nodes, two ztunnels; load of the machine %s", manyServices, machineLoad()))
	m, err := newWayMesh(ctx, o, envoy)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	var r wayResult
	for i := range starts {
		step(fmt.Sprintf("full push %d of %d", i+1, starts))
		p, err := measurePush(ctx, m)
		if err != nil {
			return err
		}
		r.pushes = append(r.pushes, p)
	}
	if o.only == "" || o.only == "push" {
		step(fmt.Sprintf("%d changes of one route", changes))
		if r.changes, err = measureChanges(ctx, m); err != nil {
			return err
		}
	}
	pid, err := m.envoyPID()
	if err != nil {
		return err
	}
	if r.rss, err = rssOf(pid); err != nil {
		return err
	}
	if r.samples, err = measureRequests(ctx, m, o, step); err != nil {
		return m.explain(err)
	}
	if r.rssLoaded, err = rssOf(pid); err != nil {
		return err
	}
	step("load of the machine " + machineLoad())
	return r.report(os.Stdout)
}

// machineLoad shows how quiet the machine is (proc(5), loadavg).
func machineLoad() string {
	b, err := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	if err != nil || len(f) < 3 {
		return "unknown"
	}
	return strings.Join(f[:3], " ")
}

// measureRequests takes every scenario without and through the waypoint in turn, repeated.
func measureRequests(ctx context.Context, m *wayMesh, o options, step func(string)) ([]waySample, error) {
	var samples []waySample
	for rep := range o.repetitions {
		for _, s := range wayScenarios {
			if o.only != "" && o.only != s.name {
				continue
			}
			step(fmt.Sprintf("repetition %d of %d: %s", rep+1, o.repetitions, s.name))
			for _, through := range []bool{false, true} {
				one, err := measureRequestsOnce(ctx, m, s, through, o)
				if err != nil {
					return nil, fmt.Errorf("measure %q (through the waypoint %t): %w", s.name, through, err)
				}
				samples = append(samples, one)
			}
		}
	}
	return samples, nil
}

func measureRequestsOnce(ctx context.Context, m *wayMesh, s scenario, through bool, o options) (waySample, error) {
	service := map[bool]string{true: serviceWith, false: serviceWithout}[through]
	// One connection first: Envoy opens a tunnel for each connection that it makes to an address before it knows it, and
	// goes on with all of them. Pods begin with one request, not with sixteen in the same instant.
	for _, conns := range []int{1, s.conns} {
		if _, err := m.loadThrough(ctx, service, load.Spec{Kind: s.kind, Conns: conns, Duration: warmUp}); err != nil {
			return waySample{}, err
		}
	}
	seen, err := m.requestsSeen(ctx)
	if err != nil {
		return waySample{}, err
	}
	before, err := m.usage(service)
	if err != nil {
		return waySample{}, err
	}
	if through && o.profile != "" {
		defer m.profile(ctx, o.profile, s.name, o.duration)()
	}
	r, err := m.loadThrough(ctx, service, load.Spec{Kind: s.kind, Conns: s.conns, Duration: o.duration})
	if err != nil {
		return waySample{}, err
	}
	if r.Errors > 0 || r.Units == 0 {
		return waySample{}, fmt.Errorf("%d requests and %d failed connections, the first: %s", r.Units, r.Errors, r.FirstErr)
	}
	after, err := m.usage(service)
	if err != nil {
		return waySample{}, err
	}
	for role, d := range before {
		after[role] -= d
	}
	after[roleClient] = r.CPU
	return waySample{s.name, through, r, after}, m.checkSeen(ctx, seen, r.Units, through)
}

// checkSeen compares the requests that the waypoint has counted since with those that were made, so that what is
// measured went where it says, with telemetry.
func (m *wayMesh) checkSeen(ctx context.Context, before, made uint64, through bool) error {
	want := uint64(0)
	if through {
		want = made
	}
	return await(ctx, startTimeout, func() error {
		now, err := m.requestsSeen(ctx)
		if err == nil && now-before != want {
			err = fmt.Errorf("the waypoint has counted %d requests, want %d", now-before, want)
		}
		return err
	})
}

// usage is what the processes have used so far. Envoy's threads are listed too, by their names.
func (m *wayMesh) usage(service string) (map[string]time.Duration, error) {
	envoy, err := m.envoyPID()
	if err != nil {
		return nil, err
	}
	out := map[string]time.Duration{}
	for role, pid := range map[string]int{
		roleZtunnelOut: m.ztunnels[0].Process.Pid, roleZtunnelIn: m.ztunnels[1].Process.Pid, roleEnvoy: envoy, roleServer: m.server[service].Process.Pid,
	} {
		if out[role], err = cpuOf(pid); err != nil {
			return nil, err
		}
	}
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", envoy))
	if err != nil {
		return nil, err
	}
	for _, path := range stats {
		s, err := readStat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread has ended
		}
		if err != nil {
			return nil, err
		}
		out[threadRole(s.command)] += s.cpu
	}
	return out, nil
}

// threadRole is the role of a thread of Envoy's.
func threadRole(command string) string { return roleEnvoy + " " + command }
