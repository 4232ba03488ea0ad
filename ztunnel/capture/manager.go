package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/linux"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/internal/zds"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
)

const (
	// The pause between attempts to reach the agent: short, because a pod that starts waits for it, and the
	// socket is local.
	redialMin = 20 * time.Millisecond
	redialMax = time.Second
	// agentSpeaksFirst is how long Istio's agent may take to send its first message after our hello. Ambit's
	// agent stays silent until it has got back what we hold.
	agentSpeaksFirst = 250 * time.Millisecond
	// retryEvery is the pause between attempts to serve a pod that failed.
	retryEvery = time.Second
)

var (
	// ErrProtocol says that the agent sent a message in the wrong order.
	ErrProtocol = errors.New("ZDS protocol error")
	errDraining = errors.New("proxy is shutting down")
	errNoAgent  = errors.New("no snapshot from the node agent yet")
)

// Served is a pod being served; proxy.Pod is one.
type Served interface {
	Retire(linger time.Duration)
	Cut(reason error)
	Done() <-chan struct{}
}

// Config configures a Manager.
type Config struct {
	// Socket is the agent's socket.
	Socket string
	// Serve starts to serve a pod and takes over its netns and listeners, also when it fails.
	Serve func(proxy.PodConfig, proxy.Listeners) (Served, error)
	// Ready is met after the first snapshot while no pod fails.
	Ready *telemetry.Condition
	Log   *slog.Logger
}

// Manager keeps the served pods in step with the agent.
type Manager struct {
	cfg Config

	mu       sync.Mutex
	pods     map[string]*entry
	pending  map[string]*request // adds that failed, to be tried again
	retiring map[Served]struct{} // not accepting any more, with connections left
	idle     chan struct{}       // closed and renewed when a retiring pod ended
	draining bool
	synced   bool // a snapshot was complete once
	snapshot map[string]bool
	inSync   bool // the snapshot of this connection is complete
}

// entry is one pod being served.
type entry struct {
	request
	ns     *linux.NetNS    // these two are the served pod's
	open   proxy.Listeners // and closed by it
	served Served
	lent   bool // the listeners are the agent's
}

// New makes a Manager; nothing happens before Run.
func New(cfg Config) *Manager {
	m := &Manager{
		cfg: cfg, pods: map[string]*entry{}, pending: map[string]*request{},
		retiring: map[Served]struct{}{}, idle: make(chan struct{}),
	}
	cfg.Ready.Set(errNoAgent)
	return m
}

// Run stays connected to the agent until ctx ends. Pods are served beyond it:
// Drain and Cut end that.
func (m *Manager) Run(ctx context.Context) error {
	retry := make(chan struct{})
	go func() {
		defer close(retry)
		m.retryLoop(ctx)
	}()
	defer func() { <-retry }()
	pause := redialMin
	lost := false
	for ctx.Err() == nil {
		c, err := zds.Dial(ctx, m.cfg.Socket)
		if err == nil {
			pause, lost = redialMin, false
			m.cfg.Log.Info("connected to node agent", "socket", m.cfg.Socket)
			err = m.session(ctx, c)
		}
		if ctx.Err() != nil {
			return nil
		}
		if !lost {
			m.cfg.Log.Warn("no connection to the node agent, pods keep being served", telemetry.FieldError, err)
			lost = true
		}
		if !sleep(ctx, pause) {
			return nil
		}
		pause = min(2*pause, redialMax)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Drain stops accepting for every pod; live connections go on.
func (m *Manager) Drain() {
	m.mu.Lock()
	m.draining = true
	for _, uid := range slices.Collect(maps.Keys(m.pods)) {
		m.retireLocked(uid, 0)
	}
	for uid, r := range m.pending {
		r.close()
		delete(m.pending, uid)
	}
	retiring := slices.Collect(maps.Keys(m.retiring))
	m.mu.Unlock()
	for _, s := range retiring {
		s.Retire(0)
	}
}

// Wait returns when no connection of any retired pod is left, or ctx ends.
func (m *Manager) Wait(ctx context.Context) error {
	for {
		m.mu.Lock()
		left, idle := len(m.retiring), m.idle
		m.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-idle:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Cut resets every connection of retired pods.
func (m *Manager) Cut(reason error) {
	m.mu.Lock()
	retiring := slices.Collect(maps.Keys(m.retiring))
	m.mu.Unlock()
	for _, s := range retiring {
		s.Cut(reason)
	}
}

// PodInfo describes a pod to people.
type PodInfo struct {
	UID            string `json:"uid"`
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	NetNS          uint64 `json:"netns"`
	State          string `json:"state"`
	// Listeners says whose the listeners are: "agent" or "proxy".
	Listeners string `json:"listeners,omitempty"`
	Error     string `json:"error,omitempty"`
}

// Pods lists the pods, sorted by uid.
func (m *Manager) Pods() []PodInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []PodInfo
	for _, e := range m.pods {
		i := e.podInfo("Up")
		i.Listeners = "proxy"
		if e.lent {
			i.Listeners = "agent"
		}
		out = append(out, i)
	}
	for _, r := range m.pending {
		i := r.podInfo("Pending")
		i.Error = r.err.Error()
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b PodInfo) int {
		if a.UID < b.UID {
			return -1
		}
		return 1
	})
	return out
}

// retireLocked stops serving a pod.
func (m *Manager) retireLocked(uid string, linger time.Duration) {
	if r, ok := m.pending[uid]; ok {
		r.close()
		delete(m.pending, uid)
		m.readyLocked()
	}
	e, ok := m.pods[uid]
	if !ok {
		return
	}
	delete(m.pods, uid)
	m.retiring[e.served] = struct{}{}
	e.served.Retire(linger)
	go func() {
		<-e.served.Done()
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.retiring, e.served)
		close(m.idle)
		m.idle = make(chan struct{})
	}()
}

// readyLocked brings the readiness condition up to date.
func (m *Manager) readyLocked() {
	switch {
	case !m.synced:
		m.cfg.Ready.Set(errNoAgent)
	case len(m.pending) > 0:
		uid := slices.Min(slices.Collect(maps.Keys(m.pending)))
		m.cfg.Ready.Set(fmt.Errorf("%d pods cannot be served, first %q: %w", len(m.pending), uid, m.pending[uid].err))
	default:
		m.cfg.Ready.Set(nil)
	}
}

func (m *Manager) retryLoop(ctx context.Context) {
	for sleep(ctx, retryEvery) {
		m.mu.Lock()
		for uid, r := range m.pending {
			if err := m.serveLocked(r); err != nil {
				m.cfg.Log.Warn("serve pod again", "uid", uid, telemetry.FieldError, err)
			}
		}
		m.readyLocked()
		m.mu.Unlock()
	}
}
