// Package load makes live traffic and counts exactly what becomes of it: HTTP
// requests at a steady rate over many short connections, and long-lived TCP
// streams. The tools image runs it in pods; the demo and the end-to-end tests read
// its report.
//
// Nothing is repeated and nothing is forgiven: a request that does not get its
// answer counts as an error with its kind, a stream that ends counts with its
// cause and its times. It measures correctness, not speed: see tests/bench for that.
package load

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/tests/demo/httpconn"
)

const (
	// requestTimeout is far above any answer of the shop, and below the patience of a person.
	requestTimeout = 10 * time.Second
	// connectionAge bounds how long a worker keeps a connection, so that captured ones soon replace the others, and
	// a retiring proxy's drain outlasts them.
	connectionAge = 2 * time.Second
	// keptUses is how many requests every second worker sends on a connection; the others send one.
	keptUses = 20
	// retryInterval is between attempts to reach a target or reopen a stream.
	retryInterval = 200 * time.Millisecond
)

// Config says what to send where.
type Config struct {
	// Name tells reports apart, such as the pod's name.
	Name string
	// Targets are URLs, each with an optional method before it: "POST http://web/buy".
	Targets []string
	// Rate is requests per second over all targets.
	Rate int
	// Workers send concurrently; each has its own connections.
	Workers int
	// Streams are kept open to StreamTargets (host:port of an echo server) in turn.
	Streams       int
	StreamTargets []string
}

// Generator runs the load. Make it with New.
type Generator struct {
	config  Config
	report  *recorder
	names   httpconn.Resolver
	streams []*stream
}

// New checks the configuration.
func New(c Config) (*Generator, error) {
	if len(c.Targets) > 0 && (c.Rate <= 0 || c.Workers <= 0) {
		return nil, fmt.Errorf("make load: rate %d and %d workers must be positive", c.Rate, c.Workers)
	}
	if c.Streams > 0 && len(c.StreamTargets) == 0 {
		return nil, fmt.Errorf("make load: %d streams have no target", c.Streams)
	}
	g := &Generator{config: c, report: newRecorder(c.Name)}
	for i := range c.Streams {
		g.streams = append(g.streams, &stream{id: i, target: c.StreamTargets[i%len(c.StreamTargets)], names: &g.names, report: g.report, reopen: make(chan struct{}, 1)})
	}
	return g, nil
}

// Run sends until the context ends. It first waits until every target answers, which is not counted.
func (g *Generator) Run(ctx context.Context) error {
	if err := g.waitTargets(ctx); err != nil {
		return nil // the context ended
	}
	g.report.reset()
	group, ctx := errgroup.WithContext(ctx)
	for i := range g.config.Workers {
		group.Go(func() error { return g.work(ctx, i) })
	}
	for _, s := range g.streams {
		group.Go(func() error { return s.run(ctx) })
	}
	return group.Wait()
}

// waitTargets returns when every target answered well once.
func (g *Generator) waitTargets(ctx context.Context) error {
	for _, target := range g.config.StreamTargets {
		probe := &stream{target: target, names: &g.names}
		for {
			conn, err := probe.dial(ctx)
			if err == nil {
				_ = conn.Close() // nothing was sent
				break
			}
			if err := wait(ctx, retryInterval); err != nil {
				return err
			}
		}
	}
	client := &httpconn.Client{Timeout: requestTimeout}
	for _, target := range g.config.Targets {
		for {
			req, err := newRequest(ctx, target)
			if err != nil {
				return err
			}
			resp, err := client.Do(ctx, req)
			if err == nil && resp.Status < http.StatusBadRequest {
				break
			}
			if err := wait(ctx, retryInterval); err != nil {
				return err
			}
		}
	}
	return nil
}

// work sends this worker's share of the requests, one after the other.
func (g *Generator) work(ctx context.Context, index int) error {
	client := &httpconn.Client{MaxAge: connectionAge, Timeout: requestTimeout}
	if index%2 == 0 {
		client.MaxUses = keptUses
	}
	defer client.CloseIdle()
	interval := time.Second * time.Duration(g.config.Workers) / time.Duration(g.config.Rate)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := index; ; n++ {
		target := g.config.Targets[n%len(g.config.Targets)]
		req, err := newRequest(ctx, target)
		if err != nil {
			return err
		}
		begin, dialed := time.Now(), client.Dialed()
		resp, err := client.Do(ctx, req)
		if ctx.Err() != nil {
			return nil // cut off by the end of the run, not by the network
		}
		g.report.request(target, resp, err, time.Since(begin), client.Dialed()-dialed)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func newRequest(ctx context.Context, target string) (*http.Request, error) {
	method, url, found := strings.Cut(target, " ")
	if !found {
		method, url = http.MethodGet, target
	}
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, fmt.Errorf("make a request to %q: %w", target, err)
	}
	return req, nil
}

// wait returns early with the context's error.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
