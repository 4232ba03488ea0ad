package cli

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress prints what is happening, each line with the seconds since the command began. Several goroutines may use it.
type progress struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
}

func newProgress(w io.Writer) *progress { return &progress{w: w, start: time.Now()} }

func (p *progress) step(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "[%5.1fs] %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

func (p *progress) elapsed() time.Duration { return time.Since(p.start) }
