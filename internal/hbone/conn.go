package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// conn is one tunnel.
//
// Its goroutines are: one reader; at most one writer, which is whichever goroutine has something to write and finds
// nobody writing; and per stream at most one pump and one drainer. Each of them can end at a safe point and be started
// again from the fields (see lifecycle.go); new work enters through one gate, enter.
//
// Locks: a stream's mu is taken before the conn's mu, never the other way; no callback runs with either held.
type conn struct {
	client bool
	lim    Limits
	mem    *Memory
	log    *slog.Logger
	tcp    *net.TCPConn
	raw    syscall.RawConn
	rec    recordLayer
	state  *tls.ConnectionState
	local  netip.AddrPort
	remote netip.AddrPort
	since  time.Time

	// onRequest runs a server's handler for a stream in phaseHandling.
	onRequest func(s *Stream, l fieldList)
	// onChange tells a pool that there may be room, or that the tunnel goes away.
	onChange func()

	ctx    context.Context // ends with the tunnel; handlers get children of it
	cancel context.CancelCauseFunc
	done   chan struct{}  // closed when the tunnel has ended
	wg     sync.WaitGroup // goroutines that freeze ends
	calls  sync.WaitGroup // handlers
	frozen atomic.Bool    // written under mu
	rx     atomic.Uint64
	rxRun  atomic.Int64 // bytes read since the socket was last empty
	keep   keepalive

	reader readerState // of the reader goroutine alone
	reads  chan struct{}

	mu      sync.Mutex
	thawed  chan struct{} // closed by resume
	err     error         // why the tunnel ended; nil while it lives
	streams map[uint32]*Stream
	places  int    // reserved by callers that have not opened their stream yet
	handled int    // handlers that run though their stream is gone
	opened  uint64 // streams so far
	nextID  uint32 // ours
	maxPeer uint32 // largest id of the peer's streams

	peer      peerSettings
	peerSpoke bool // SETTINGS have come: the peer accepted our certificate
	sendWin   sendWindow
	dryAt     time.Time // since when sendWin has been used up; zero if it is not
	enc       headerEncoder
	goneAway  bool // the peer sent GOAWAY
	peerDone  bool // the peer has closed the tunnel; only deliveries to applications are left
	draining  drainPhase
	lastPeer  uint32 // the last id our final GOAWAY named
	leaving   bool   // nothing comes any more: write what is queued, close_notify, end
	leaveErr  error
	lingering bool // close_notify is out, the peer's end is awaited

	ctl     []byte // control frames to write before q
	q       []*sendBuf
	spare   []*sendBuf // q's other array
	queued  int        // DATA bytes reserved or in q
	writing bool
	waiters waitList // streams that wait for sendWin or for room in q
	writeFn func()
}

// drainPhase is how far the graceful end of a server's tunnel has come, RFC 9113 section 6.8.
type drainPhase uint8

const (
	drainNo        drainPhase = iota
	drainAnnounced            // GOAWAY with the largest id, and a PING whose answer says that the peer has seen it
	drainFinal                // GOAWAY with the last id; later streams are refused
)

func newConn(ctx context.Context, tcp *net.TCPConn, raw syscall.RawConn, rec recordLayer, client bool, lim Limits, log *slog.Logger) *conn {
	c := &conn{
		client: client, lim: lim, mem: lim.Memory, log: log, tcp: tcp, raw: raw, rec: rec, since: time.Now(),
		local: addrPort(tcp.LocalAddr()), remote: addrPort(tcp.RemoteAddr()),
		done: make(chan struct{}), thawed: make(chan struct{}),
		streams: map[uint32]*Stream{}, nextID: 1,
		peer: initialPeerSettings(), sendWin: defaultWindow,
	}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.frozen.Store(true)
	c.writeFn = c.writeLoop
	c.reader = newReaderState(c)
	c.keep = keepalive{
		interval: lim.PingInterval, timeout: lim.PingTimeout, received: c.rx.Load,
		ping: func() { c.sendPing(keepalivePing) },
		dead: func() { c.fail(errDead) },
	}
	c.ctl = appendPreface(nil, client, lim)
	return c
}

// errDead is how a tunnel ends whose peer fell silent.
var errDead = &ConnError{Code: CodeNoError, Reason: "peer did not answer PING"}

// Our PINGs carry what they are for.
var (
	keepalivePing = [pingLen]byte{'k', 'e', 'e', 'p'}
	drainPing     = [pingLen]byte{'d', 'r', 'a', 'i', 'n'}
)

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}

// enter is the gate through which all new work is attached to the tunnel: it waits while the tunnel is frozen, and
// counts the caller's goroutine until it calls wg.Done.
func (c *conn) enter() error {
	c.mu.Lock()
	for c.frozen.Load() && c.err == nil {
		thawed := c.thawed
		c.mu.Unlock()
		select {
		case <-thawed:
		case <-c.done:
		}
		c.mu.Lock()
	}
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.wg.Add(1)
	return nil
}

// fail ends the tunnel at once: every stream is reset, the socket closed. The first cause stays.
func (c *conn) fail(cause error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = cause
	if cause == nil {
		c.err = ErrTunnelClosed
	}
	streams := c.streamList()
	c.q, c.ctl = nil, nil // the buffers are the collector's; a writer may still hold some
	c.mu.Unlock()

	c.keep.stop()
	c.cancel(c.err)
	close(c.done)
	for _, s := range streams {
		s.end(c.err)
	}
	if err := c.tcp.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		c.log.Debug("closing tunnel failed", "remote", c.remote, "err", err)
	}
	c.changed()
}

// streamList is called with mu held.
func (c *conn) streamList() []*Stream {
	l := make([]*Stream, 0, len(c.streams))
	for _, s := range c.streams {
		l = append(l, s)
	}
	return l
}

func (c *conn) changed() {
	if c.onChange != nil {
		c.onChange()
	}
}

// lookup returns an open stream, or nil and whether id was never used, RFC 9113 section 5.1 "idle".
func (c *conn) lookup(id uint32) (s *Stream, idle bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[id]; s != nil {
		return s, false
	}
	ours := id%2 == 1 == c.client
	if ours {
		return nil, id >= c.nextID
	}
	return nil, id > c.maxPeer
}

// remove takes a stream out of the tunnel. When it was the last one of a tunnel that goes away, the tunnel ends.
func (c *conn) remove(s *Stream) {
	c.mu.Lock()
	if c.streams[s.id] == s {
		delete(c.streams, s.id)
		if s.handling {
			c.handled++
		}
	}
	c.waiters.remove(s)
	done := c.peerDone && len(c.streams) == 0
	if !done {
		c.leaveIfDone()
	}
	c.mu.Unlock()
	if done {
		c.fail(nil)
	}
	c.changed()
}

// handlerDone says that a server's handler for s has returned.
func (c *conn) handlerDone(s *Stream) {
	c.mu.Lock()
	s.handling = false
	if c.streams[s.id] != s {
		c.handled--
	}
	c.mu.Unlock()
}

// leaveIfDone is called with mu held.
func (c *conn) leaveIfDone() {
	if len(c.streams) == 0 && (c.draining == drainFinal || c.client && c.goneAway) {
		c.startLeaving(CodeNoError, nil)
	}
}

// usable reports whether a client may open one more stream when it has n already.
func (c *conn) usable(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err == nil && !c.goneAway && !c.leaving && c.draining == drainNo && c.nextID <= streamIDMask && n < c.capacity()
}

// load is how many streams the tunnel has or will have.
func (c *conn) load() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.places + len(c.streams)
}

// reservePlace keeps room for one stream, until open uses it or unreserve gives it back.
func (c *conn) reservePlace() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.places++
}

func (c *conn) unreserve() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.places--
}

// capacity is called with mu held.
func (c *conn) capacity() int {
	return int(min(int64(c.lim.MaxStreams), int64(c.peer.maxStreams)))
}

// peerStreams returns how many streams the peer allows.
func (c *conn) peerStreams() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer.maxStreams
}

// greeted reports whether the tunnel has been in working order.
func (c *conn) greeted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peerSpoke
}

// busyRun is how many bytes come from a socket without a pause before the tunnel counts as busy.
const busyRun = 8 << 20

// busy reports whether the tunnel is what holds its streams back: its socket takes less than they offer, or its reader
// does not come to an end.
func (c *conn) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queued >= c.lim.SendQueue/2 || c.rxRun.Load() >= busyRun
}

// stuckAfter is how long a connection window stays used up before new streams go elsewhere. Peers that return connection
// credit on receipt (Ambit does, Istio's window is large enough) are never that late; with others a few unread streams
// hold the window for good.
const stuckAfter = 20 * time.Millisecond

// stuck reports whether a new stream would wait for streams that nobody reads at the peer.
func (c *conn) stuck(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.dryAt.IsZero() && now.Sub(c.dryAt) >= stuckAfter
}

func (c *conn) info() ConnInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := ConnInfo{
		Local: c.local, Remote: c.remote, Since: c.since, Streams: len(c.streams), Opened: c.opened, Queued: c.queued,
		Draining: c.goneAway || c.leaving || c.draining != drainNo,
	}
	if c.state != nil && len(c.state.PeerCertificates) > 0 {
		for _, u := range c.state.PeerCertificates[0].URIs {
			i.Peer = append(i.Peer, u.String())
		}
	}
	return i
}
