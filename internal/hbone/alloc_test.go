//go:build !race

// The race detector makes sync.Pool forget at random.

package hbone

import (
	"runtime"
	"testing"
)

// TestMovingBytesAllocatesNothing: in a steady state what is allocated does not grow with the bytes moved. crypto/tls
// allocates a few words for a record that it reads; nothing of ours does.
func TestMovingBytesAllocatesNothing(t *testing.T) {
	w := newWorld(t, worldOptions{app: sinkApp})
	const warm, moved = 64 << 20, 512 << 20
	pushThrough(t, []*client{w.dial()}, warm)
	c := w.dial()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	pushThrough(t, []*client{c}, moved)
	runtime.ReadMemStats(&after)
	const mib = moved >> 20
	allocs := float64(after.Mallocs-before.Mallocs) / mib
	bytes := float64(after.TotalAlloc-before.TotalAlloc) / mib
	t.Logf("%.1f allocations and %.0f bytes allocated for each MiB moved", allocs, bytes)
	// 65 records in a MiB, two reads of crypto/tls for each; a buffer that was allocated for each read would be a MiB.
	if allocs > 200 || bytes > 16<<10 {
		t.Errorf("moving a MiB costs %.1f allocations and %.0f bytes", allocs, bytes)
	}
}
