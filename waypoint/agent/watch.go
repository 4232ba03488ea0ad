package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/internal/telemetry"
)

const (
	// pollStarting is how often Envoy is asked until the proxy is ready, pollRunning afterwards: one small question.
	pollStarting = 100 * time.Millisecond
	pollRunning  = time.Second
	// pollTimeout bounds one round, so that an Envoy that hangs makes the pod unready.
	pollTimeout = 2 * time.Second
	// pollDraining is how often requests are counted at the end.
	pollDraining = 250 * time.Millisecond
)

// conditions are what readiness consists of. Probes read them and ask nothing, so that they cost nothing.
type conditions struct{ certificate, envoy, configuration *telemetry.Condition }

// newConditions makes them unmet, before the first probe can ask.
func newConditions(r *telemetry.Readiness) conditions {
	return conditions{certificate: r.Condition("certificate"), envoy: r.Condition("envoy"), configuration: r.Condition("configuration")}
}

// watch keeps readiness true to life until ctx ends. It returns an error when Envoy ends before.
func (a *app) watch(ctx context.Context) error {
	var configured, announced bool
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.process.Done():
			if ctx.Err() != nil || a.stopping.Load() {
				return nil
			}
			a.conditions.envoy.Set(a.process.Err())
			return a.process.Err()
		case <-timer.C:
		}
		configured = a.poll(ctx, configured)
		next := pollStarting
		if a.ready.Ready() {
			next = pollRunning
			if !announced {
				announced = true
				a.log.Info("ready")
			}
		}
		timer.Reset(next)
	}
}

// poll asks once. What Envoy was configured with it keeps, so that is asked until it was so.
func (a *app) poll(ctx context.Context, configured bool) bool {
	c := a.conditions
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	c.certificate.Set(a.keeper.Check())
	c.envoy.Set(a.admin.Live(ctx))
	if configured {
		return true
	}
	err := a.admin.Configured(ctx)
	if err != nil {
		if upstream := a.metrics.disconnected(); upstream != nil {
			err = fmt.Errorf("%w; istiod: %w", err, upstream)
		}
	}
	c.configuration.Set(err)
	return err == nil
}

// drain makes the pod unready and lets requests and connections end. New ones are still taken for a while: not every client has
// heard yet.
func (a *app) drain(ctx context.Context) {
	a.ready.Condition("running").Set(errDraining)
	begin := time.Now()
	least, most := min(a.cfg.DrainMinimum, a.cfg.drainMaximum()), a.cfg.drainMaximum()
	a.log.Info("draining", "at_least", least, "at_most", most)
	if err := a.admin.Drain(ctx); err != nil {
		a.log.Warn("cannot drain listeners", telemetry.FieldError, err)
	}
	limit := time.NewTimer(most)
	defer limit.Stop()
	tick := time.NewTicker(pollDraining)
	defer tick.Stop()
	for {
		select {
		case <-a.process.Done():
			return
		case <-limit.C:
			n, err := a.admin.Active(ctx)
			a.log.Warn("ending what outlived the drain", "requests", n, telemetry.FieldError, err)
			return
		case <-tick.C:
		}
		if time.Since(begin) < least {
			continue
		}
		n, err := a.admin.Active(ctx)
		if err == nil && n == 0 {
			a.log.Info("drained", "took", time.Since(begin).Round(time.Millisecond))
			return
		}
	}
}
