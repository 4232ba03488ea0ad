package hbone

import "time"

// The writer combines: whoever has something to write and finds nobody writing writes for all, one round, and then hands
// over to a goroutine if more has come meanwhile. The reader only queues, and lets such a goroutine write.

// somethingToWrite is called with mu held.
func (c *conn) somethingToWrite() bool {
	return len(c.ctl) > 0 || len(c.q) > 0 || c.leaving && !c.lingering || c.rec.pending()
}

// kick makes sure that somebody writes what is queued. It never waits. It is called with mu held.
func (c *conn) kick() {
	if c.writing || c.frozen.Load() || c.err != nil || c.lingering || !c.somethingToWrite() {
		return
	}
	c.writing = true
	c.wg.Add(1)
	go c.writeFn()
}

// flushHere writes what is queued in the caller's goroutine if nobody else does. It is called with mu held and returns
// without it.
func (c *conn) flushHere() {
	if c.writing || c.frozen.Load() || c.err != nil || c.lingering || !c.somethingToWrite() {
		c.mu.Unlock()
		return
	}
	c.writing = true
	c.mu.Unlock()
	c.writeRound()
	c.mu.Lock()
	c.writing = false
	c.kick()
	c.mu.Unlock()
}

// writeLoop is the goroutine that writes when no other can.
func (c *conn) writeLoop() {
	defer c.wg.Done()
	for {
		c.writeRound()
		c.mu.Lock()
		if c.frozen.Load() || c.err != nil || c.lingering || !c.somethingToWrite() {
			c.writing = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
}

// writeRound writes what is queued now. It is called by the one that set writing.
func (c *conn) writeRound() {
	c.mu.Lock()
	ctl, q, leaving := c.ctl, c.q, c.leaving
	c.ctl = nil
	c.q, c.spare = c.spare[:0], nil
	c.mu.Unlock()

	left, freed, err := c.sealAll(ctl, q)
	if err == nil && leaving && len(left) == 0 {
		if err = c.rec.closeNotify(); err == nil {
			err = c.rec.flush()
		}
	}
	if err != nil && isDeadline(err) && c.frozen.Load() {
		err = nil // frozen: what is sealed stays in the record layer, the rest in left
	}

	c.mu.Lock()
	if err == nil && c.ctl == nil && cap(ctl) <= keepBuf {
		c.ctl = ctl[:0]
	}
	if len(left) > 0 {
		c.q = append(append(make([]*sendBuf, 0, len(left)+len(c.q)), left...), c.q...)
	}
	clear(q)
	c.spare = q[:0]
	c.queued -= freed
	c.wakeNext()
	c.mu.Unlock()

	switch {
	case err != nil && leaving:
		c.fail(c.leaveCause())
	case err != nil:
		c.fail(&tunnelError{err})
	case leaving && !c.frozen.Load():
		c.linger()
	}
}

// sealAll seals control frames and then buffers, and writes all of it. It returns the buffers it did not seal, because a
// write was cut, and the DATA bytes of those it did.
func (c *conn) sealAll(ctl []byte, q []*sendBuf) (left []*sendBuf, freed int, err error) {
	if len(ctl) > 0 {
		// Control frames are few and small; the buffers in front of the others keep their order.
		q = append(c.controlBufs(ctl), q...)
	}
	for i := 0; i < len(q); {
		payload := q[i].payload
		all, err := c.rec.seal(q[i])
		if err != nil {
			return nil, freed, err
		}
		if all {
			freed += payload
			i++
			continue
		}
		if err := c.rec.flush(); err != nil {
			return q[i:], freed, err
		}
	}
	return nil, freed, c.rec.flush()
}

// controlBufs copies control frames into send buffers.
func (c *conn) controlBufs(ctl []byte) []*sendBuf {
	var l []*sendBuf
	for len(ctl) > 0 {
		class := classSmall
		if len(ctl) > smallSend-recordHead-recordTail {
			class = classRecord
		}
		b := c.mem.getSend(class)
		b.plain = copy(b.record(0), ctl)
		ctl = ctl[b.plain:]
		l = append(l, b)
	}
	return l
}

// submit queues a buffer with DATA of s and writes it if nobody else does.
func (c *conn) submit(s *Stream, b *sendBuf) {
	c.mu.Lock()
	c.enqueue(s, b)
	c.flushHere()
}

// enqueue queues a buffer with DATA of s. After a reset nothing of the stream may follow, RFC 9113 section 5.1; the buffer
// is dropped then. It is called with mu held.
func (c *conn) enqueue(s *Stream, b *sendBuf) {
	if c.err != nil || c.leaving || s.rstQueued {
		c.sendWin += sendWindow(b.payload)
		c.dryAt = time.Time{}
		c.queued -= b.payload
		c.mem.putSend(b)
		c.wakeNext()
		return
	}
	c.q = append(c.q, b)
}

// queueRST puts RST_STREAM behind what is queued of the stream.
func (c *conn) queueRST(s *Stream, code Code) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.leaving || s.rstQueued {
		return
	}
	s.rstQueued = true
	b := c.mem.getSend(classSmall)
	b.plain = len(appendRST(b.record(0)[:0], s.id, code))
	c.q = append(c.q, b)
	c.kick()
}

// waitFor is what a pump waits for.
type waitFor uint8

const (
	waitNothing waitFor = iota
	waitStream          // the stream's window
	waitConn            // the connection's window, or room in the queue
)

// waitList is the streams that wait for the connection, first come first served.
type waitList struct{ l []*Stream }

func (w *waitList) add(s *Stream) { w.l = append(w.l, s) }

func (w *waitList) remove(s *Stream) {
	for i, o := range w.l {
		if o == s {
			w.l = append(w.l[:i], w.l[i+1:]...)
			return
		}
	}
}

func (w *waitList) pop() *Stream {
	s := w.l[0]
	w.l = append(w.l[:0], w.l[1:]...)
	return s
}

func (w *waitList) clear() {
	for _, s := range w.l {
		s.wait = waitNothing
	}
	w.l = nil
}

// room returns how many DATA bytes may be read for the tunnel now. It is called with mu held.
func (c *conn) room() int64 {
	return min(int64(c.sendWin), int64(c.lim.SendQueue-c.queued))
}

// minRoom is how much room wakes a stream: less would make many small frames of a big stream.
const minRoom = dataPerRecord

// wakeNext wakes the stream that has waited longest, if there is room; that one wakes the next if it leaves some. It is
// called with mu held.
func (c *conn) wakeNext() {
	if len(c.waiters.l) == 0 {
		return
	}
	if r := c.room(); r <= 0 || r < minRoom && c.queued > 0 {
		return
	}
	c.wakeStream(c.waiters.pop())
}

// wakeStream is called with mu held.
func (c *conn) wakeStream(s *Stream) {
	s.wait = waitNothing
	s.wake()
}

// reserve takes up to want bytes from the windows and the queue, or says what the stream must wait for. With register the
// stream is woken when it is worth another try.
func (c *conn) reserve(s *Stream, want int, register bool) (n int, wait waitFor) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.wait == waitConn {
		c.waiters.remove(s) // woken for another reason
	}
	s.wait = waitNothing
	if s.sendWin <= 0 {
		if register {
			s.wait = waitStream
		}
		return 0, waitStream
	}
	n = int(min(int64(want), int64(s.sendWin), c.room()))
	if n <= 0 {
		if register {
			s.wait = waitConn
			c.waiters.add(s)
		}
		return 0, waitConn
	}
	s.sendWin -= sendWindow(n)
	c.sendWin -= sendWindow(n)
	c.queued += n
	if c.sendWin == 0 {
		c.dryAt = time.Now()
	}
	c.wakeNext()
	return n, waitNothing
}

// refund gives back what a read did not use.
func (c *conn) refund(s *Stream, n int) {
	if n <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.sendWin += sendWindow(n)
	c.sendWin += sendWindow(n)
	c.dryAt = time.Time{}
	c.queued -= n
	c.wakeNext()
}
