package hbone

import (
	"encoding/binary"
	"time"
)

// Control frames from the peer. All of this runs in the reader, so it queues answers and never waits.

// maxControlQueue bounds the answers that wait for a peer that does not read them, in bytes.
const maxControlQueue = 256 << 10

func (c *conn) gotRST(h frameHeader, p []byte) error {
	if h.length != rstLen {
		return connErrorf(CodeFrameSize, "RST_STREAM of %d bytes", h.length)
	}
	s, idle := c.lookup(h.stream)
	if h.stream == 0 || idle {
		return connErrorf(CodeProtocol, "RST_STREAM on idle stream %d", h.stream)
	}
	if err := c.useless(); err != nil {
		return err
	}
	if s != nil {
		if s.dirty {
			// What came before the reset in this batch still counts.
			c.endBatch()
		}
		s.gotReset(binary.BigEndian.Uint32(p))
	}
	return nil
}

func (c *conn) gotSettings(h frameHeader, p []byte) error {
	if h.stream != 0 {
		return connErrorf(CodeProtocol, "SETTINGS on stream %d", h.stream)
	}
	if h.has(flagAck) {
		if h.length != 0 {
			return connErrorf(CodeFrameSize, "SETTINGS acknowledgement of %d bytes", h.length)
		}
		c.reader.hdec.dropTable()
		return nil
	}
	if err := c.useless(); err != nil {
		return err
	}
	c.mu.Lock()
	c.peerSpoke = true
	before := c.peer.initialWindow
	if err := c.peer.apply(p, c.client); err != nil {
		c.mu.Unlock()
		return err
	}
	// RFC 9113 section 6.9.2: a changed initial window changes every stream's.
	if d := c.peer.initialWindow - before; d != 0 {
		for _, s := range c.streams {
			if !s.sendWin.grow(d) {
				c.mu.Unlock()
				return connErrorf(CodeFlowControl, "INITIAL_WINDOW_SIZE overflows a stream's window")
			}
			if s.wait == waitStream && s.sendWin > 0 {
				c.wakeStream(s)
			}
		}
	}
	err := c.answer(appendFrame(c.ctl, frameSettings, flagAck, 0, nil))
	c.mu.Unlock()
	c.changed()
	return err
}

// answer replaces the control queue by its longer self. It is called with mu held.
func (c *conn) answer(ctl []byte) error {
	c.ctl = ctl
	if len(ctl) > maxControlQueue {
		return connErrorf(CodeEnhanceYourCalm, "peer does not read our answers")
	}
	c.kick()
	return nil
}

func (c *conn) gotPing(h frameHeader, p []byte) error {
	if h.stream != 0 {
		return connErrorf(CodeProtocol, "PING on stream %d", h.stream)
	}
	if h.length != pingLen {
		return connErrorf(CodeFrameSize, "PING of %d bytes", h.length)
	}
	data := [pingLen]byte(p)
	if h.has(flagAck) {
		switch data {
		case keepalivePing:
			c.keep.acked()
		case drainPing:
			c.drainAcked()
		}
		return nil
	}
	if err := c.useless(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answer(appendPing(c.ctl, true, data))
}

func (c *conn) sendPing(data [pingLen]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.leaving || c.frozen.Load() {
		return
	}
	c.ctl = appendPing(c.ctl, false, data)
	c.kick()
}

func (c *conn) gotGoAway(h frameHeader, p []byte) error {
	if h.stream != 0 {
		return connErrorf(CodeProtocol, "GOAWAY on stream %d", h.stream)
	}
	if h.length < minGoAwayLen {
		return connErrorf(CodeFrameSize, "GOAWAY of %d bytes", h.length)
	}
	last, code := binary.BigEndian.Uint32(p)&streamIDMask, binary.BigEndian.Uint32(p[4:])
	if code != CodeNoError {
		c.log.Info("peer ends tunnel", "remote", c.remote, "code", codeName(code), "debug", string(p[minGoAwayLen:]))
	}
	if err := c.useless(); err != nil {
		return err
	}
	c.mu.Lock()
	c.goneAway = true
	var refused []*Stream
	if c.client {
		// RFC 9113 section 6.8: streams above the last id were not processed, so they can be opened again elsewhere.
		for id, s := range c.streams {
			if id > last {
				refused = append(refused, s)
			}
		}
	}
	c.mu.Unlock()
	for _, s := range refused {
		s.end(&StreamError{Code: CodeRefusedStream, Remote: true, Reason: "GOAWAY"})
	}
	c.mu.Lock()
	c.leaveIfDone()
	c.mu.Unlock()
	c.changed()
	return nil
}

func (c *conn) gotWindowUpdate(h frameHeader, p []byte) error {
	if h.length != windowLen {
		return connErrorf(CodeFrameSize, "WINDOW_UPDATE of %d bytes", h.length)
	}
	n := int64(binary.BigEndian.Uint32(p) & streamIDMask)
	if h.stream == 0 {
		if n == 0 {
			return connErrorf(CodeProtocol, "WINDOW_UPDATE of 0")
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.sendWin.grow(n) {
			return connErrorf(CodeFlowControl, "WINDOW_UPDATE overflows the connection's window")
		}
		c.dryAt = time.Time{}
		c.wakeNext()
		return nil
	}
	s, idle := c.lookup(h.stream)
	if idle {
		return connErrorf(CodeProtocol, "WINDOW_UPDATE on idle stream %d", h.stream)
	}
	if s == nil {
		return nil // the peer could not know yet
	}
	if n == 0 {
		s.reset(streamErrorf(CodeProtocol, "WINDOW_UPDATE of 0"))
		return nil
	}
	c.mu.Lock()
	ok := s.sendWin.grow(n)
	if s.wait == waitStream && s.sendWin > 0 {
		c.wakeStream(s)
	}
	c.mu.Unlock()
	if !ok {
		s.reset(streamErrorf(CodeFlowControl, "WINDOW_UPDATE overflows the stream's window"))
	}
	return nil
}
