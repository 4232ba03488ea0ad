package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

const (
	// starts is how often the waypoint is started anew; the slowest full push counts.
	starts = 3
	// changes is how many routes are rewritten, one after the other.
	changes = 200
	// pushTimeout and changeTimeout bound what is waited for.
	pushTimeout   = 30 * time.Second
	changeTimeout = 5 * time.Second
	// fullQuiet and changeQuiet are for how long nothing must pass before all is taken to have passed.
	fullQuiet   = time.Second
	changeQuiet = 50 * time.Millisecond
)

// push is what one start came to.
type push struct {
	// full is the time from the start of Envoy's process to the acknowledgement of the last response, stream that from
	// the first response.
	full, stream time.Duration
	bytes        int
	responses    int
	resources    map[string]int
	rss          uint64
}

// wanted are the least numbers of resources that a complete push has.
var wanted = map[string]int{
	names.TypeCluster: manyServices, names.TypeEndpoints: manyServices, names.TypeScopedRoute: manyServices, names.TypeRoute: manyServices,
}

// measurePush starts the waypoint and waits until it has acknowledged everything.
func measurePush(ctx context.Context, m *wayMesh) (push, error) {
	if err := m.stopWaypoint(); err != nil {
		return push{}, err
	}
	m.relay.notes.reset()
	started, err := m.startWaypoint(ctx)
	if err != nil {
		return push{}, err
	}
	var t total
	err = await(ctx, pushTimeout, func() error {
		t = m.relay.notes.total()
		if t.refused != "" {
			return fmt.Errorf("the waypoint refused %s", t.refused)
		}
		for typeURL, n := range wanted {
			if t.resources[typeURL] < n {
				return fmt.Errorf("the waypoint was sent %d of %d resources of %s", t.resources[typeURL], n, typeURL)
			}
		}
		if t.unacked > 0 || time.Since(t.last) < fullQuiet {
			return fmt.Errorf("the push is not over: %d responses are not acknowledged", t.unacked)
		}
		return errors.Join(m.behind(ctx), m.ready(ctx))
	})
	if err != nil {
		return push{}, m.explain(err)
	}
	var first time.Time
	m.relay.notes.look(func(order []*note, _ time.Time) { first = order[0].at })
	pid, err := m.envoyPID()
	if err != nil {
		return push{}, err
	}
	rss, err := rssOf(pid)
	return push{
		full: t.lastAck.Sub(started), stream: t.lastAck.Sub(first), bytes: t.bytes, responses: t.responses, resources: t.resources, rss: rss,
	}, err
}

// change is what one rewritten route came to.
type change struct {
	// ack is the time from when the file is in its place to the acknowledgement of the new route table.
	ack   time.Duration
	bytes int
}

// measureChanges rewrites routes of different services, one after the other.
func measureChanges(ctx context.Context, m *wayMesh) ([]change, error) {
	out := make([]change, 0, changes)
	for i := range changes {
		c, err := measureChange(ctx, m, i)
		if err != nil {
			return nil, fmt.Errorf("change %d: %w", i+1, m.explain(err))
		}
		out = append(out, c)
	}
	return out, nil
}

func measureChange(ctx context.Context, m *wayMesh, i int) (change, error) {
	m.relay.notes.reset()
	before := time.Now()
	// A step that is prime to their number spreads the changes over all services.
	if err := m.state.writeRoute(i*37%manyServices, "change-"+strconv.Itoa(i)); err != nil {
		return change{}, err
	}
	var out change
	err := await(ctx, changeTimeout, func() error {
		t := m.relay.notes.total()
		switch {
		case t.refused != "":
			return fmt.Errorf("the waypoint refused %s", t.refused)
		case t.resources[names.TypeRoute] == 0:
			return errors.New("no route table was sent")
		case t.unacked > 0 || time.Since(t.last) < changeQuiet:
			return fmt.Errorf("%d responses are not acknowledged", t.unacked)
		}
		out = change{ack: t.lastAck.Sub(before), bytes: t.bytes}
		return nil
	})
	return out, err
}
