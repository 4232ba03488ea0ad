package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Target names the far end of a tunnel, and is the key of the pool with all of its fields: streams of two sources,
// of two expected identities or of two local addresses never share a tunnel.
type Target struct {
	Source string         // SPIFFE URI of the workload on whose behalf we dial
	Dest   []string       // acceptable SPIFFE URIs of the peer, in any order
	Addr   netip.AddrPort // where to dial
	Local  netip.Addr     // address to dial from; invalid = any
	// Spread is the number of streams on a tunnel from which on the next one gets another tunnel, up to Limits.BusyConns
	// of them; 0 = as many as there is room for. It is for peers that do real work for each stream and do all work of one
	// tunnel on one thread (Envoy), where streams should be on several tunnels before the first of them is busy.
	Spread int
}

// key is a Target that can be compared.
type key struct {
	source, dest string
	addr         netip.AddrPort
	local        netip.Addr
	spread       int
}

func (t Target) key() key {
	dest := t.Dest
	if !slices.IsSorted(dest) {
		dest = slices.Clone(dest)
		slices.Sort(dest)
	}
	// A URI has no space in it.
	return key{source: t.Source, dest: strings.Join(dest, " "), addr: t.Addr, local: t.Local, spread: t.Spread}
}

// PoolConfig configures a Pool.
type PoolConfig struct {
	// Dial makes the TCP connection; the pool owns it afterwards.
	Dial func(ctx context.Context, t Target) (*net.TCPConn, error)
	// TLS gives the configuration for one handshake: certificates, and the verification that the peer is one of t.Dest.
	// The pool clones it and adds what HBONE fixes: TLS 1.3, ALPN h2.
	TLS    func(ctx context.Context, t Target) (*tls.Config, error)
	Limits Limits
	Log    *slog.Logger // nil discards
}

// ConnInfo describes one live tunnel.
type ConnInfo struct {
	Target        Target // zero on the server side
	Local, Remote netip.AddrPort
	Peer          []string // URI names of the peer's certificate
	Since         time.Time
	Streams       int    // open now
	Opened        uint64 // streams so far
	Queued        int    // plaintext bytes waiting for the socket
	Draining      bool   // GOAWAY sent or received
}

// Pool keeps tunnels to peers and opens streams on them.
//
// For a key it dials only when no tunnel of the key has room, and then no more tunnels than the waiting callers fill; and
// one in the background when all are busy, or have as many streams as the target spreads. Callers that wait are served in
// the order they came. A tunnel that goes away (GOAWAY) gets no new streams, but keeps the old ones to their end.
type Pool struct {
	cfg    PoolConfig
	lim    Limits
	log    *slog.Logger
	ctx    context.Context // of dials; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // dials, and tunnels

	mu     sync.Mutex
	groups map[key]*group
	total  int // tunnels and dials of all groups
	closed bool
}

// group is the tunnels of one key.
type group struct {
	key     key
	target  Target
	conns   []*pooled
	dialing int
	waiters []*waiter
	perConn uint32 // streams the peer last allowed on a tunnel; 0 = not known. Tunnels assume it until they are told.
	failed  bool   // the last dial failed: nobody who could go through another tunnel waits for the next
}

// pooled is a tunnel of a pool. Its fields are under the pool's mu.
type pooled struct {
	c       *conn
	g       *group
	gone    bool
	idle    *time.Timer // runs while there are no streams
	idleGen int
}

// waiter is a caller of Open that waits for a tunnel.
type waiter struct {
	got  chan struct{} // closed when one of these is set
	conn *pooled
	err  error
}

// NewPool makes a pool. Close ends it.
func NewPool(cfg PoolConfig) *Pool {
	p := &Pool{cfg: cfg, lim: cfg.Limits.withDefaults(true), log: orDiscard(cfg.Log), groups: map[key]*group{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Open opens a stream to authority through a tunnel to t and returns when the peer has answered 200. Another answer is a
// *StatusError. ctx bounds the whole of it, dialling included; it has no effect on the stream afterwards.
func (p *Pool) Open(ctx context.Context, t Target, authority string, headers []Header) (*Stream, error) {
	var err error
	// A stream that was not answered may be opened again: no byte of the application is in it.
	for range p.lim.OpenAttempts {
		var s *Stream
		s, err = p.openOnce(ctx, t, authority, headers)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, errNoRoom) && !refused(err) {
			return nil, err
		}
	}
	return nil, err
}

func (p *Pool) openOnce(ctx context.Context, t Target, authority string, headers []Header) (*Stream, error) {
	pc, err := p.acquire(ctx, t)
	if err != nil {
		return nil, err
	}
	s, err := pc.c.open(authority, headers)
	if err != nil {
		p.changed(pc)
		return nil, err
	}
	select {
	case <-s.answered:
	case <-ctx.Done():
		s.Reset(CodeCancel)
		return nil, fmt.Errorf("open stream to %q: %w", authority, context.Cause(ctx))
	}
	if err := s.Err(); err != nil {
		if errors.Is(err, ErrTunnelClosed) && pc.c.greeted() {
			return nil, fmt.Errorf("open stream to %q: %w: %w", authority, errNoRoom, err)
		}
		return nil, fmt.Errorf("open stream to %q: %w", authority, err)
	}
	return s, nil
}

// acquire returns a tunnel with a place for one stream, which it reserves.
func (p *Pool) acquire(ctx context.Context, t Target) (*pooled, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrPoolClosed
	}
	g := p.group(t)
	if len(g.waiters) == 0 {
		if pc := p.pick(g); pc != nil {
			pc.reserve()
			p.mu.Unlock()
			return pc, nil
		}
	}
	w := &waiter{got: make(chan struct{})}
	g.waiters = append(g.waiters, w)
	p.dialMore(g)
	p.mu.Unlock()

	select {
	case <-w.got:
		return w.conn, w.err
	case <-ctx.Done():
		p.forget(g, w)
		return nil, fmt.Errorf("wait for tunnel to %q: %w", t.Addr, context.Cause(ctx))
	}
}

func (p *Pool) group(t Target) *group {
	k := t.key()
	g := p.groups[k]
	if g == nil {
		t.Dest = slices.Clone(t.Dest)
		g = &group{key: k, target: t}
		p.groups[k] = g
	}
	return g
}

// forget takes back a waiter whose caller has gone.
func (p *Pool) forget(g *group, w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(g.waiters, w); i >= 0 {
		g.waiters = slices.Delete(g.waiters, i, i+1)
		p.dropGroup(g)
	} else if w.conn != nil {
		w.conn.c.unreserve()
		p.settle(w.conn)
	}
}

// pick returns the tunnel for the next stream: the fullest that is not busy, so that spare ones fall idle; if all are
// busy, or the target spreads its streams, the emptiest, and another one is dialled beside it. A tunnel that is stuck is
// the last choice: while another one may be dialled, the caller waits for that. It is called with mu held, as are all
// methods below that do not lock it.
func (p *Pool) pick(g *group) *pooled {
	var best, least, stuck *pooled
	var bestLoad, leastLoad, stuckN int
	now := time.Now()
	for _, pc := range g.conns {
		load := pc.load()
		switch {
		case pc.gone || !pc.c.usable(load):
			continue
		case pc.c.stuck(now):
			stuck = pc
			stuckN++
			continue
		case !pc.c.busy() && !g.spreads(load) && (best == nil || load > bestLoad):
			best, bestLoad = pc, load
		}
		if least == nil || load < leastLoad {
			least, leastLoad = pc, load
		}
	}
	all := len(g.conns) + g.dialing
	spare := all-stuckN < p.lim.BusyConns && all < p.lim.ConnsPerKey && p.total < p.lim.MaxConns
	switch {
	case best != nil:
		return best
	case least != nil && g.target.Spread > 0 && g.dialing > 0 && len(g.waiters) > 0 && !g.failed:
		return nil // what is dialled is for who waits
	case least != nil:
		if spare && g.dialing == 0 {
			p.dial(g)
		}
		return least
	case spare || g.dialing > 0:
		return nil
	}
	return stuck
}

func (pc *pooled) load() int { return pc.c.load() }

func (pc *pooled) reserve() {
	pc.c.reservePlace()
	pc.idleGen++
	if pc.idle != nil {
		pc.idle.Stop()
	}
}

// settle brings a tunnel's group up to date after its load or its state has changed.
func (p *Pool) settle(pc *pooled) {
	g := pc.g
	if n := pc.c.peerStreams(); n < uint32(p.lim.MaxStreams) {
		g.perConn = n
	}
	switch {
	case pc.gone:
	case pc.c.ended():
		p.remove(pc)
	case pc.load() == 0:
		p.armIdle(pc)
	}
	p.grant(g)
	p.dialMore(g)
	p.dropGroup(g)
}

// grant gives waiting callers the places there are.
func (p *Pool) grant(g *group) {
	for len(g.waiters) > 0 {
		pc := p.pick(g)
		if pc == nil {
			return
		}
		w := g.waiters[0]
		g.waiters = g.waiters[1:]
		pc.reserve()
		w.conn = pc
		close(w.got)
	}
}

// spreads tells whether a tunnel with so many streams is left alone as long as there may be another one.
func (g *group) spreads(load int) bool { return g.target.Spread > 0 && load >= g.target.Spread }

// refuse fails up to n waiting callers.
func (g *group) refuse(n int, err error) {
	n = min(n, len(g.waiters))
	for _, w := range g.waiters[:n] {
		w.err = err
		close(w.got)
	}
	g.waiters = g.waiters[n:]
}

// dialMore dials as many tunnels as the waiting callers fill.
func (p *Pool) dialMore(g *group) {
	per := p.lim.MaxStreams
	if g.perConn > 0 {
		per = int(min(uint32(per), g.perConn))
	}
	for all := g.dialing + len(g.conns); all < p.lim.ConnsPerKey; all++ {
		fill := per
		if all < p.lim.BusyConns && g.target.Spread > 0 {
			fill = min(per, g.target.Spread)
		}
		if len(g.waiters) <= g.dialing*fill {
			break
		}
		if p.total >= p.lim.MaxConns && !p.evictIdle() {
			break
		}
		p.dial(g)
	}
	if len(g.waiters) > 0 && g.dialing == 0 && len(g.conns) == 0 {
		g.refuse(len(g.waiters), ErrPoolFull)
	}
}

// dial makes a tunnel in the background.
func (p *Pool) dial(g *group) {
	g.dialing++
	p.total++
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		c, err := p.connect(g.target)
		p.mu.Lock()
		g.dialing--
		if err == nil && p.closed && len(g.waiters) == 0 {
			err = ErrPoolClosed
		}
		if err != nil {
			p.total--
			g.failed = true
			p.grant(g)
			g.refuse(p.lim.MaxStreams, fmt.Errorf("open tunnel to %q: %w", g.target.Addr, err))
			p.dialMore(g)
			p.dropGroup(g)
			p.mu.Unlock()
			if c != nil {
				c.fail(ErrPoolClosed)
			}
			return
		}
		pc := &pooled{c: c, g: g}
		if g.perConn > 0 {
			c.peer.maxStreams = g.perConn
		}
		g.failed = false
		c.onChange = func() { p.changed(pc) }
		g.conns = append(g.conns, pc)
		p.wg.Add(1) // until remove
		// In the same breath as dialing--, so that nobody dials for callers who get a place here. They open when the
		// tunnel has started.
		p.settle(pc)
		p.mu.Unlock()
		c.start()
	}()
}

// connect dials and shakes hands. The callers who wait have their own deadlines; this one serves whoever is left.
func (p *Pool) connect(t Target) (*conn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.lim.HandshakeTimeout)
	defer cancel()
	tcp, err := p.cfg.Dial(ctx, t)
	if err != nil {
		return nil, err
	}
	return dialConn(ctx, tcp, p, t)
}

// changed is called by a tunnel when it may have room, when it goes away, and when it has ended.
func (p *Pool) changed(pc *pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settle(pc)
}

// remove takes a tunnel that has ended out of its group.
func (p *Pool) remove(pc *pooled) {
	pc.gone = true
	pc.idleGen++
	if pc.idle != nil {
		pc.idle.Stop()
	}
	g := pc.g
	if i := slices.Index(g.conns, pc); i >= 0 {
		g.conns = slices.Delete(g.conns, i, i+1)
	}
	p.total--
	go func() {
		defer p.wg.Done()
		if err := pc.c.wait(); err != nil {
			p.log.Debug("tunnel ended", "remote", pc.c.remote, "err", err)
		}
	}()
}

// dropGroup forgets a group that has nothing left.
func (p *Pool) dropGroup(g *group) {
	if len(g.conns) == 0 && g.dialing == 0 && len(g.waiters) == 0 && p.groups[g.key] == g {
		delete(p.groups, g.key)
	}
}
