package e2e

import (
	"testing"

	"github.com/ambit-mesh/ambit/tests/demo/show"
)

// TestDemo plays the demo's acts on this cluster.
func TestDemo(t *testing.T) {
	begin(t, false)
	// The demo starts with streams and counts of its own.
	must(t, world.ReopenStreams(t.Context(), "shop"))
	freshCounts(t)
	checks, err := show.Play(t.Context(), world)
	for _, c := range checks {
		if !c.Passed {
			t.Errorf("%s: %s", c.What, c.Detail)
		}
	}
	must(t, err)
}
