package hbone

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// pumpState is what the pump keeps between two reads.
type pumpState struct {
	stop    atomic.Bool // the stream takes no more from the application
	class   sendClass
	readFn  func(fd uintptr) bool
	readBuf *sendBuf
	readN   int
	readErr error
	blocked waitFor
	readV   [bigRecords]unix.Iovec
}

// pump moves bytes from the application to the tunnel until the application ends, the stream ends, or the tunnel is
// frozen. It reads only what windows and queue have room for, so that everything it has read it can hand over at once.
func (s *Stream) pump() {
	defer s.c.wg.Done()
	for s.pumpOnce() {
	}
	s.mu.Lock()
	s.pumping = false
	s.mu.Unlock()
}

// pumpOnce is one read and its hand-over. Between two of them the pump knows nothing that is not in fields.
func (s *Stream) pumpOnce() bool {
	if s.c.frozen.Load() || s.stop.Load() {
		return false
	}
	s.readBuf, s.readN, s.readErr, s.blocked = nil, 0, nil, waitNothing
	err := s.raw.Read(s.readFn)
	switch {
	case err != nil && isDeadline(err):
		return true
	case err != nil:
		s.appFailed(err) // the socket was closed under us, with the stream
		return false
	case s.blocked != waitNothing:
		<-s.winCh
		return true
	case s.readErr != nil:
		s.appFailed(s.readErr)
		return false
	case s.readN == 0:
		s.appEnded()
		return false
	}
	b, n := s.readBuf, s.readN
	s.readBuf = nil
	s.frame(b, n)
	s.fromApp.Add(uint64(n))
	s.c.submit(s, b)
	return true
}

// stopPump makes a pump come to its end. It is called with mu held.
func (s *Stream) stopPump() {
	s.stop.Store(true)
	s.wake()
	if s.app != nil {
		_ = s.app.SetReadDeadline(past)
	}
}

// readReady is one non-blocking read of the application's socket, into records with room for their frame headers.
func (s *Stream) readReady(fd uintptr) bool {
	c := s.c
	got, wait := c.reserve(s, s.class.payload(), false)
	if wait != waitNothing {
		// Only bytes need a window; whether there are any comes first, so that an end passes through a full tunnel.
		n, err := peekOne(fd)
		if err == unix.EAGAIN {
			return false
		}
		if n == 0 {
			s.readErr = err
			return true
		}
		if got, wait = c.reserve(s, s.class.payload(), true); wait != waitNothing {
			s.blocked = wait
			return true
		}
	}
	b := c.mem.getSend(s.class)
	var n int
	var err error
	if got <= dataPerRecord {
		n, err = recvOne(fd, b.record(0)[frameHeaderLen:frameHeaderLen+got])
	} else {
		v := s.readV[:0]
		for left := got; left > 0; {
			m := min(left, dataPerRecord)
			v = append(v, iovec(b.record(len(v))[frameHeaderLen:frameHeaderLen+m]))
			left -= m
		}
		n, err = recvVec(fd, v)
	}
	c.refund(s, got-n)
	if n == 0 {
		c.mem.putSend(b)
		if err == unix.EAGAIN {
			return false
		}
		s.readErr = err
		return true
	}
	b.payload = n
	s.readBuf, s.readN = b, n
	s.class = s.class.next(n)
	return true
}

// frame puts DATA headers in front of n bytes of payload in b.
func (s *Stream) frame(b *sendBuf, n int) {
	for i := 0; n > 0; i++ {
		m := min(n, dataPerRecord)
		frameHeader{length: m, typ: frameData, stream: s.id}.put(b.record(i))
		b.plain += m + frameHeaderLen
		n -= m
	}
}

// appEnded passes the application's end on, behind its data. That END_STREAM is queued and that the stream knows it is one
// step: the peer may answer, and end the tunnel, before the write returns.
func (s *Stream) appEnded() {
	b := s.c.mem.getSend(classSmall)
	frameHeader{typ: frameData, flags: flagEndStream, stream: s.id}.put(b.record(0))
	b.plain = frameHeaderLen
	s.mu.Lock()
	s.c.mu.Lock()
	s.c.enqueue(s, b)
	s.c.mu.Unlock()
	s.sentEnd = true
	done := s.complete()
	s.mu.Unlock()
	if done {
		s.close(nil)
	}
	s.c.mu.Lock()
	s.c.flushHere()
}

// appFailed resets the stream because the application's connection failed: RFC 9113 section 8.5 names the code.
func (s *Stream) appFailed(err error) {
	s.reset(streamErrorf(CodeConnect, "application connection: %v", err))
}
