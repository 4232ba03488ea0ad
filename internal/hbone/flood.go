package hbone

import "time"

// floodGauge bounds what a peer can make us do for nothing: PING, SETTINGS, RST_STREAM (CVE-2023-44487), PRIORITY, empty
// DATA, streams over the limit, frames for streams that are gone. It is a token bucket; the clock is the caller's.
type floodGauge struct {
	level float64
	last  time.Time
}

const (
	// floodBurst and floodRate let through what honest peers do: thousands of applications resetting short connections
	// per second. An attacker gets no more work out of us than that.
	floodBurst = 20000
	floodRate  = 5000 // per second
)

// add counts one such frame and reports whether the peer may go on.
func (g *floodGauge) add(now time.Time) bool {
	if !g.last.IsZero() {
		g.level = max(0, g.level-now.Sub(g.last).Seconds()*floodRate)
	}
	g.last = now
	g.level++
	return g.level <= floodBurst
}
