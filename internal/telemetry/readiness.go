package telemetry

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Paths of the health pages.
const (
	PathReady  = "/healthz/ready"
	PathReadyz = "/readyz"
	PathLive   = "/healthz"
)

// errNotYet is the state of a condition that nobody has set.
var errNotYet = errors.New("not ready yet")

// Readiness collects named conditions; the process is ready when each is met.
// A condition that was created but never set counts as missing.
type Readiness struct {
	mu         sync.Mutex
	conditions map[string]error
	changed    chan struct{}
}

// NewReadiness returns a Readiness without conditions, which is ready.
func NewReadiness() *Readiness {
	return &Readiness{conditions: map[string]error{}, changed: make(chan struct{})}
}

// Condition is one named reason for not being ready.
type Condition struct {
	r    *Readiness
	name string
}

// Condition returns the condition of that name, creating it unmet.
func (r *Readiness) Condition(name string) *Condition {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.conditions[name]; !ok {
		r.conditions[name] = errNotYet
	}
	return &Condition{r: r, name: name}
}

// Set records the condition as met (nil) or why it is not.
func (c *Condition) Set(err error) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.r.conditions[c.name] = err
	close(c.r.changed)
	c.r.changed = make(chan struct{})
}

// Missing lists the unmet conditions as "name: reason", sorted.
func (r *Readiness) Missing() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for name, err := range r.conditions {
		if err != nil {
			out = append(out, fmt.Sprintf("%s: %v", name, err))
		}
	}
	slices.Sort(out)
	return out
}

// Ready says whether every condition is met.
func (r *Readiness) Ready() bool { return len(r.Missing()) == 0 }

// Changed returns a channel that is closed at the next Set of any condition.
func (r *Readiness) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// ServeHTTP answers 200 when ready, else 503 with the missing conditions.
func (r *Readiness) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	if missing := r.Missing(); len(missing) > 0 {
		http.Error(w, strings.Join(missing, "\n"), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

// Handler serves readiness on PathReady and PathReadyz, and liveness on PathLive.
func (r *Readiness) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(PathReady, r)
	mux.Handle(PathReadyz, r)
	mux.HandleFunc(PathLive, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	return mux
}
