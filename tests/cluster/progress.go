package cluster

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// Terminal colours, used on a terminal only.
const (
	colourGreen = "\x1b[32m"
	colourRed   = "\x1b[31m"
	colourDim   = "\x1b[2m"
	colourBold  = "\x1b[1m"
	colourReset = "\x1b[0m"
)

// Progress prints a line per step with the time since its making and the time that the step took.
// It is safe for concurrent use. The zero value is not usable: call NewProgress.
type Progress struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
	tty   bool
}

// NewProgress starts the clock. Colours are used if w is a terminal and NO_COLOR is not set.
func NewProgress(w io.Writer) *Progress {
	f, isFile := w.(*os.File)
	return &Progress{w: w, start: time.Now(), tty: isFile && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""}
}

// Elapsed is the time since the start.
func (p *Progress) Elapsed() time.Duration { return time.Since(p.start) }

// Note prints one line.
func (p *Progress) Note(format string, args ...any) {
	p.line("%s", fmt.Sprintf(format, args...))
}

// Heading prints a line that stands out.
func (p *Progress) Heading(format string, args ...any) {
	p.line("%s", p.colour(colourBold, fmt.Sprintf(format, args...)))
}

// Do runs one step and prints how long it took, or that it failed.
func (p *Progress) Do(name string, step func() error) error {
	begin := time.Now()
	err := step()
	took := p.colour(colourDim, fmt.Sprintf("(%.1f s)", time.Since(begin).Seconds()))
	if err != nil {
		p.line("%s %s %s", p.colour(colourRed, "failed"), name, took)
		return fmt.Errorf("%s: %w", name, err)
	}
	p.line("%s %s %s", p.colour(colourGreen, "ok"), name, took)
	return nil
}

// Good and Bad colour a word for a table.
func (p *Progress) Good(word string) string { return p.colour(colourGreen, word) }

// Bad colours a word for a table.
func (p *Progress) Bad(word string) string { return p.colour(colourRed, word) }

// Writer is where lines go, for output that is more than a line.
func (p *Progress) Writer() io.Writer { return p.w }

func (p *Progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "[%6.1fs] %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

func (p *Progress) colour(code, s string) string {
	if !p.tty {
		return s
	}
	return code + s + colourReset
}

func trimLine(b []byte) []byte { return bytes.TrimSpace(b) }
