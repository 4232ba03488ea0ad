package main

import (
	"context"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/tests/bench/load"
)

// scenario is one line of the table.
type scenario struct {
	name  string
	kind  load.Kind
	conns int
}

var scenarios = []scenario{
	{"stream1", load.Stream, 1},
	{"stream8", load.Stream, 8},
	{"http1", load.HTTP, 1},
	{"http16", load.HTTP, 16},
	{"http128", load.HTTP, 128},
	{"conns1", load.Conns, 1},
	{"conns128", load.Conns, 128},
}

// warmUp is what runs before each measurement and is not counted: the first
// connections of a pair of pods make its tunnels.
const warmUp = 300 * time.Millisecond

// sample is one measurement of one scenario.
type sample struct {
	scenario string
	meshed   bool
	result   load.Result
	// cpu is the time that both proxies spent on a processor.
	cpu time.Duration
}

// measure takes every scenario directly and meshed in turn, repeated, so that
// what else the machine does falls on both.
func measure(ctx context.Context, m *mesh, o options, step func(string)) ([]sample, error) {
	var samples []sample
	for rep := range o.repetitions {
		for _, s := range scenarios {
			if o.only != "" && o.only != s.name {
				continue
			}
			step(fmt.Sprintf("repetition %d of %d: %s", rep+1, o.repetitions, s.name))
			for _, meshed := range []bool{false, true} {
				one, err := measureOne(ctx, m, s, meshed, o)
				if err != nil {
					return nil, fmt.Errorf("measure %q (meshed %t): %w", s.name, meshed, err)
				}
				samples = append(samples, one)
			}
		}
	}
	return samples, nil
}

func measureOne(ctx context.Context, m *mesh, s scenario, meshed bool, o options) (sample, error) {
	spec := load.Spec{Kind: s.kind, Conns: s.conns, Duration: warmUp}
	if _, err := m.load(ctx, meshed, spec); err != nil {
		return sample{}, err
	}
	before, err := m.cpu()
	if err != nil {
		return sample{}, err
	}
	spec.Duration = o.duration
	if meshed && o.profile != "" {
		defer m.profile(ctx, o.profile, s.name, o.duration)()
	}
	r, err := m.load(ctx, meshed, spec)
	if err != nil {
		return sample{}, err
	}
	if r.Errors > 0 || r.Units == 0 {
		return sample{}, fmt.Errorf("%d units and %d failed connections, the first: %s", r.Units, r.Errors, r.FirstErr)
	}
	after, err := m.cpu()
	return sample{scenario: s.name, meshed: meshed, result: r, cpu: after - before}, err
}
