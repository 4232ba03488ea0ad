package e2e

import (
	"testing"

	"github.com/ambit-mesh/ambit/tests/demo/stage"
)

// TestLabelUnderLoad takes the running shop into the mesh and out of it, twice: no request and no stream of the
// whole time is lost, no pod restarts, and after each step new connections go the new way.
func TestLabelUnderLoad(t *testing.T) {
	begin(t, false)
	pods, err := world.Pods(t.Context(), stage.Namespace, "")
	must(t, err)
	before := stage.Lives(pods)
	freshCounts(t)
	for _, step := range []struct {
		name string
		in   bool
		want func(stage.Traffic) bool
	}{{"label", true, captured}, {"unlabel", false, bare}, {"label again", true, captured}, {"unlabel again", false, bare}} {
		setMesh(t, step.in)
		tr := lookUntil(t, step.name, step.want)
		t.Logf("%s: connections between nodes by port: %v", step.name, tr.Opened)
		unharmed(t, step.name, few)
	}
	pods, err = world.Pods(t.Context(), stage.Namespace, "")
	must(t, err)
	for name, life := range stage.Lives(pods) {
		if before[name] != life {
			t.Errorf("pod %s restarted: was %q, is %q", name, before[name], life)
		}
	}
}

// TestStreamsInsideTheMesh leaves streams that were opened through the tunnel unharmed when their pods leave.
func TestStreamsInsideTheMesh(t *testing.T) {
	begin(t, true)
	must(t, world.ReopenStreams(t.Context(), stage.Namespace))
	lookUntil(t, "streams in the tunnel", func(tr stage.Traffic) bool { return captured(tr) && tr.Tunnel == tr.Bytes })
	freshCounts(t)
	setMesh(t, false)
	lookUntil(t, "new connections past the mesh", bare)
	unharmed(t, "unlabel with streams in the tunnel", many)
	setMesh(t, true)
	unharmed(t, "label with streams in the tunnel", many)
}
