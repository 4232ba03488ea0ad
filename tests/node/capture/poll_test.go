package capture

import (
	"testing"
	"time"
)

// pollTries of pollEvery are as long as patience.
const (
	pollEvery = 10 * time.Millisecond
	pollTries = int(patience / pollEvery)
)

// poll waits for the next look at something that nothing announces.
func poll(t *testing.T) {
	t.Helper()
	select {
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	case <-time.After(pollEvery):
	}
}
