package hbone

import (
	"errors"
	"io"
	"os"
	"time"
)

// A tunnel lives from resume to resume: start, freeze and the end. The rules are those of live hand-over: nothing is known
// only by a goroutine's stack, and every goroutine has safe points at which it ends when the tunnel is frozen.
//
//	goroutine  safe point                                        what it leaves behind
//	reader     between two records, all of a batch delivered     reader (decoder, windows), rec (partial record, read-ahead)
//	writer     between two records; after a write that was cut   q, ctl, rec (sealed and not written)
//	pump       nothing read that is not in q                     its stream's phase and sentEnd
//	drainer    after a write                                     its stream's chunks
//
// A handler that dials, and a caller that waits for the 200, are not of the tunnel: their stream is in phaseHandling or
// phaseWaiting, and they enter again through the gate.

// start starts a new tunnel.
func (c *conn) start() { c.resume() }

// resume starts the goroutines of a tunnel from its fields, be it new or frozen.
func (c *conn) resume() {
	c.mu.Lock()
	if c.err != nil || !c.frozen.Load() {
		c.mu.Unlock()
		return
	}
	// No deadline may be left from freeze; errors mean that the tunnel is dead, which the reader will find out.
	_ = c.tcp.SetDeadline(time.Time{})
	if c.leaving {
		_ = c.tcp.SetDeadline(time.Now().Add(leaveTimeout))
	}
	streams := c.streamList()
	c.waiters.clear()
	c.reads = make(chan struct{})
	c.frozen.Store(false)
	c.wg.Add(1)
	c.mu.Unlock()

	for _, s := range streams {
		s.resume()
	}
	c.keep.start()
	c.mu.Lock()
	c.kick()
	c.mu.Unlock()
	// The reader is last: it may start pumps itself.
	go c.readLoop(c.reads)

	c.mu.Lock()
	close(c.thawed)
	c.mu.Unlock()
}

// past is a deadline that has expired.
var past = time.Unix(1, 0)

// freeze ends every goroutine of the tunnel at a safe point and returns when they have ended. It reports false if the
// tunnel has ended or is about to; it is not frozen then.
func (c *conn) freeze() bool {
	c.mu.Lock()
	if c.err != nil || c.leaving || c.frozen.Load() {
		c.mu.Unlock()
		return false
	}
	c.thawed = make(chan struct{})
	c.frozen.Store(true)
	reads := c.reads
	c.mu.Unlock()

	c.keep.stop()
	// The reader first: after it nothing new begins.
	_ = c.tcp.SetReadDeadline(past)
	<-reads
	_ = c.tcp.SetWriteDeadline(past)
	c.mu.Lock()
	streams := c.streamList()
	c.mu.Unlock()
	for _, s := range streams {
		s.freeze()
	}
	c.wg.Wait()
	c.mu.Lock()
	alive, leaving := c.err == nil, c.leaving
	c.mu.Unlock()
	if alive && leaving {
		c.resume() // it came between; let the tunnel end in its own way
	}
	return alive && !leaving
}

// isDeadline reports whether a deadline, which only freeze and leave set, ended a call.
func isDeadline(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// drain begins the graceful end: the peer is told to open no more streams here. A server first names the largest id and
// asks for an answer, so that streams already on their way are served, RFC 9113 section 6.8; a client just leaves when
// its last stream has ended.
func (c *conn) drain() {
	c.mu.Lock()
	if c.err != nil || c.draining != drainNo || c.leaving {
		c.mu.Unlock()
		return
	}
	if c.client {
		c.draining = drainFinal
		c.leaveIfDone()
	} else {
		c.draining = drainAnnounced
		c.ctl = appendGoAway(c.ctl, streamIDMask, CodeNoError, "")
		c.ctl = appendPing(c.ctl, false, drainPing)
		c.kick()
	}
	c.mu.Unlock()
	c.changed()
}

// drainAcked says that the peer has seen our first GOAWAY.
func (c *conn) drainAcked() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining != drainAnnounced || c.leaving {
		return
	}
	c.draining, c.lastPeer = drainFinal, c.maxPeer
	c.ctl = appendGoAway(c.ctl, c.lastPeer, CodeNoError, "")
	c.kick()
	c.leaveIfDone()
}

// leaveTimeout bounds what the peer may take to read our last words, and to answer them.
const leaveTimeout = time.Second

// startLeaving begins the end of the tunnel: what is queued is written, then GOAWAY and close_notify; then the peer's end
// is awaited, because closing a socket with unread bytes in it would reset the connection and lose what we wrote. It is
// called with mu held.
func (c *conn) startLeaving(code Code, cause error) {
	if c.leaving || c.err != nil {
		return
	}
	c.leaving, c.leaveErr = true, cause
	debug := ""
	if cause != nil {
		debug = cause.Error()
		for _, b := range c.q {
			c.mem.putSend(b)
		}
		c.q = c.q[:0]
	}
	if c.draining != drainFinal || c.client || cause != nil {
		c.ctl = appendGoAway(c.ctl, c.maxPeer, code, debug)
	}
	_ = c.tcp.SetWriteDeadline(time.Now().Add(leaveTimeout))
	c.kick()
}

// leave ends a tunnel that has no streams.
func (c *conn) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.startLeaving(CodeNoError, nil)
}

func (c *conn) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil
}

// abort ends the tunnel for a peer's mistake: every stream is reset, the peer told why.
func (c *conn) abort(cause *ConnError) {
	c.keep.stop()
	c.mu.Lock()
	c.startLeaving(cause.Code, cause)
	streams := c.streamList()
	c.mu.Unlock()
	for _, s := range streams {
		s.end(cause)
	}
}

// linger is called by the writer when our last words are written.
func (c *conn) linger() {
	c.keep.stop()
	c.mu.Lock()
	c.lingering = true
	c.mu.Unlock()
	if err := c.tcp.CloseWrite(); err != nil {
		c.fail(c.leaveCause())
		return
	}
	_ = c.tcp.SetReadDeadline(time.Now().Add(leaveTimeout))
}

func (c *conn) leaveCause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaveErr
}

// readEnded decides what the end of reading means.
func (c *conn) readEnded(err error) {
	c.mu.Lock()
	leaving, cause, streams := c.leaving, c.leaveErr, len(c.streams)
	goneAway := c.goneAway
	c.mu.Unlock()
	switch {
	case leaving:
		c.fail(cause)
	case errors.Is(err, io.EOF) && streams == 0:
		c.fail(nil)
	case errors.Is(err, io.EOF) && c.finishDelivery():
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		c.fail(&ConnError{Code: CodeNoError, Remote: true, Reason: "peer closed the tunnel with streams open"})
	case goneAway && streams == 0:
		c.fail(nil)
	default:
		c.fail(&tunnelError{err})
	}
}

// finishDelivery is called when the peer has closed the tunnel. If it had nothing more to say on any stream, nor we to it,
// what is held for slow applications is still theirs: the tunnel ends with the last stream. It reports false if a stream
// was cut.
func (c *conn) finishDelivery() bool {
	c.mu.Lock()
	streams := c.streamList()
	c.mu.Unlock()
	for _, s := range streams {
		s.mu.Lock()
		whole := s.phase == phaseSpliced && s.gotEnd && s.sentEnd || s.phase == phaseClosed
		s.mu.Unlock()
		if !whole {
			return false
		}
	}
	c.keep.stop()
	c.mu.Lock()
	c.goneAway, c.peerDone = true, true
	left := len(c.streams)
	c.mu.Unlock()
	c.changed()
	if left == 0 {
		c.fail(nil)
	}
	return true
}

// tunnelError is a failure of the connection under the tunnel.
type tunnelError struct{ err error }

func (e *tunnelError) Error() string        { return "hbone: tunnel failed: " + e.err.Error() }
func (e *tunnelError) Unwrap() error        { return e.err }
func (e *tunnelError) Is(target error) bool { return target == ErrTunnelClosed }

// wait returns when the tunnel and all its goroutines have ended: nil if it ended in good order.
func (c *conn) wait() error {
	<-c.done
	c.wg.Wait()
	c.calls.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == ErrTunnelClosed {
		return nil
	}
	return c.err
}
