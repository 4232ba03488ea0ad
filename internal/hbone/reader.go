package hbone

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// readerState is what the reader knows. Only the reader goroutine touches it, or whoever froze the tunnel.
type readerState struct {
	dec    decoder
	hdec   *headerDecoder
	window connRecvWindow
	flood  floodGauge
	now    func() time.Time

	cur    *Stream // whose DATA frame is being read; nil if it is to be dropped
	curGot int     // bytes of it so far, without padding

	dirty []*Stream      // streams with something in this batch
	iovs  [][]unix.Iovec // spare arrays for their batches

	err   error // why readReady stopped
	ready func(fd uintptr) bool
	drop  func(fd uintptr) bool
	trash []byte
}

func newReaderState(c *conn) readerState {
	return readerState{
		dec:    newDecoder(c.client, c.lim),
		hdec:   newHeaderDecoder(c.lim.MaxHeaderList),
		window: newConnRecvWindow(c.lim.ConnWindow),
		now:    time.Now,
		ready:  c.readReady,
		drop:   c.dropReady,
	}
}

// errFrozen ends the reader at a safe point.
var errFrozen = errors.New("hbone: tunnel is frozen")

// readLoop is the reader goroutine. It never waits for anything but the tunnel's socket.
func (c *conn) readLoop(ended chan struct{}) {
	defer c.wg.Done()
	defer close(ended)
	r := &c.reader
	for {
		r.err = nil
		err := c.raw.Read(r.ready)
		if err == nil {
			err = r.err
		}
		var mistake *ConnError
		switch {
		case (errors.Is(err, errFrozen) || isDeadline(err)) && c.frozen.Load():
			return
		case errors.As(err, &mistake):
			c.log.Info("ending tunnel for a protocol error", "remote", c.remote, "code", codeName(mistake.Code), "err", mistake.Reason)
			c.abort(mistake)
			c.dropRest()
			return
		case err != nil:
			c.readEnded(err)
			return
		}
	}
}

// readReady reads until the socket is empty: only then does the poller tell of the next bytes.
func (c *conn) readReady(fd uintptr) bool {
	r := &c.reader
	for {
		p, err := c.rec.open(fd)
		if err == nil {
			c.rxRun.Add(int64(len(p)))
			err = r.dec.feed(p, c)
			if err == nil && c.rec.more() && !c.frozen.Load() {
				continue
			}
			c.rx.Add(1)
		}
		c.endBatch()
		c.rec.release()
		if c.rec.pending() {
			// crypto/tls answered a KeyUpdate.
			c.mu.Lock()
			c.kick()
			c.mu.Unlock()
		}
		if err == errWouldBlock {
			c.rxRun.Store(0)
			err = nil
			if !c.frozen.Load() {
				return false
			}
		}
		if err == nil && c.frozen.Load() {
			err = errFrozen
		}
		if err != nil {
			r.err = err
			return true
		}
	}
}

// trashSize is how much of what nobody wants is read at once, in bytes.
const trashSize = 16 << 10

// dropRest reads and forgets what still comes from a peer whose tunnel was ended for an error, until it has seen that.
func (c *conn) dropRest() {
	c.reader.trash = make([]byte, trashSize)
	err := c.raw.Read(c.reader.drop)
	if err == nil {
		err = c.reader.err
	}
	c.readEnded(err)
}

func (c *conn) dropReady(fd uintptr) bool {
	for {
		_, err := recvSome(fd, c.reader.trash)
		if err == errWouldBlock {
			return false
		}
		if err != nil {
			c.reader.err = err
			return true
		}
	}
}

// endBatch gives every stream of the batch its bytes and returns the connection's credit.
func (c *conn) endBatch() {
	r := &c.reader
	for i, s := range r.dirty {
		batch, end := s.batch, s.batchEnd
		s.batch, s.batchEnd, s.dirty = nil, false, false
		s.deliver(batch, end)
		r.iovs = append(r.iovs, batch[:0])
		r.dirty[i] = nil
	}
	r.dirty = r.dirty[:0]
	if n := r.window.credit(); n > 0 {
		c.mu.Lock()
		c.ctl = appendWindowUpdate(c.ctl, 0, n)
		c.kick()
		c.mu.Unlock()
	}
}

// mark puts s into the batch.
func (c *conn) mark(s *Stream) {
	if s.dirty {
		return
	}
	r := &c.reader
	s.dirty = true
	if n := len(r.iovs); n > 0 {
		s.batch, r.iovs = r.iovs[n-1], r.iovs[:n-1]
	}
	r.dirty = append(r.dirty, s)
}

// useless counts a frame that costs us work and serves nothing.
func (c *conn) useless() error {
	if c.reader.flood.add(c.reader.now()) {
		return nil
	}
	return connErrorf(CodeEnhanceYourCalm, "too many frames that serve nothing")
}

// tinyData is the payload in bytes below which a DATA frame that nobody wants counts as one that serves nothing.
const tinyData = 256

func (c *conn) dataStart(h frameHeader) error {
	r := &c.reader
	r.cur, r.curGot = nil, 0
	if !r.window.receive(int64(h.length)) {
		return connErrorf(CodeFlowControl, "DATA beyond the connection's window")
	}
	s, idle := c.lookup(h.stream)
	if idle {
		return connErrorf(CodeProtocol, "DATA on idle stream %d", h.stream)
	}
	// DATA for a stream that is gone was on its way when we reset it: a window full of it is honest.
	if s == nil && h.length < tinyData || s != nil && h.length == 0 && !h.has(flagEndStream) {
		if err := c.useless(); err != nil {
			return err
		}
	}
	if s == nil {
		return nil
	}
	if bad := s.receive(int64(h.length)); bad != nil {
		s.reset(bad)
		return nil
	}
	r.cur = s
	return nil
}

func (c *conn) data(p []byte) {
	s := c.reader.cur
	if s == nil {
		return
	}
	c.reader.curGot += len(p)
	c.mark(s)
	s.batch = append(s.batch, iovec(p))
}

func (c *conn) dataEnd(h frameHeader) error {
	s := c.reader.cur
	c.reader.cur = nil
	if s == nil {
		return nil
	}
	if padding := h.length - c.reader.curGot; padding > 0 {
		s.consumed(int64(padding))
	}
	if h.has(flagEndStream) {
		c.mark(s)
		s.batchEnd = true
	}
	return nil
}

func (c *conn) headers(h frameHeader, block []byte) error {
	l, err := c.reader.hdec.decode(block)
	if err != nil {
		return err
	}
	s, idle := c.lookup(h.stream)
	switch {
	case s != nil && c.client:
		c.response(s, h, l)
	case s != nil:
		// RFC 9113 section 8.5: no HEADERS on a connected stream.
		s.reset(streamErrorf(CodeProtocol, "HEADERS on an open stream"))
	case !idle:
		return c.useless() // an answer to a stream that we have reset
	case c.client || h.stream%2 == 0:
		return connErrorf(CodeProtocol, "HEADERS on stream %d", h.stream)
	default:
		return c.request(h, l)
	}
	return nil
}

func (c *conn) control(h frameHeader, p []byte) error {
	switch h.typ {
	case frameRSTStream:
		return c.gotRST(h, p)
	case frameSettings:
		return c.gotSettings(h, p)
	case framePing:
		return c.gotPing(h, p)
	case frameGoAway:
		return c.gotGoAway(h, p)
	case frameWindowUpdate:
		return c.gotWindowUpdate(h, p)
	case framePushPromise:
		return connErrorf(CodeProtocol, "PUSH_PROMISE")
	case framePriority:
		if h.stream == 0 {
			return connErrorf(CodeProtocol, "PRIORITY on stream 0")
		}
		if h.length != priorityLen {
			return connErrorf(CodeFrameSize, "PRIORITY of %d bytes", h.length)
		}
	}
	return c.useless() // unknown types are ignored, RFC 9113 section 5.5
}
