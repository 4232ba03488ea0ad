package hbone

import (
	"time"

	"golang.org/x/sys/unix"
)

// From the tunnel to the application. The reader writes straight from the decrypted batch as long as the socket takes
// it; what it does not take is copied, and from then on a drainer writes until nothing is held any more. Stream credit
// is returned for what the socket took, so that a stalled application stalls its own sender and no other.

// receive accounts for a DATA frame that begins, n bytes with padding.
func (s *Stream) receive(n int64) *StreamError {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.phase == phaseWaiting:
		return streamErrorf(CodeProtocol, "DATA before the answer")
	case s.gotEnd || s.batchEnd:
		return streamErrorf(CodeStreamClosed, "DATA after END_STREAM")
	case !s.recv.receive(n):
		return streamErrorf(CodeFlowControl, "DATA beyond the stream's window")
	}
	return nil
}

// consumed returns credit for bytes that need not be delivered.
func (s *Stream) consumed(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credit(n)
}

// credit accounts for n bytes that are done with, and queues a WINDOW_UPDATE when it is worth one. It is called with mu
// held.
func (s *Stream) credit(n int64) {
	c := s.c
	give := s.recv.consume(n)
	if give == 0 || s.gotEnd || s.phase == phaseClosed {
		return
	}
	if more := s.recv.wants(give, time.Now(), len(s.held) == 0); c.mem.grow(more) {
		s.recv.grow(more)
		s.grown += more
		give += more
	}
	c.mu.Lock()
	if !s.rstQueued {
		c.ctl = appendWindowUpdate(c.ctl, s.id, give)
		c.kick()
	}
	c.mu.Unlock()
}

// deliver is called by the reader with what a batch brought: pieces that it owns until deliver returns, and END_STREAM.
func (s *Stream) deliver(batch []unix.Iovec, end bool) {
	s.mu.Lock()
	if s.phase == phaseClosed {
		s.mu.Unlock()
		return
	}
	var err error
	if len(batch) > 0 && s.phase == phaseSpliced && len(s.held) == 0 && !s.draining {
		batch, err = s.writeBatch(batch)
	}
	if err != nil {
		s.mu.Unlock()
		s.appFailed(err)
		return
	}
	if !s.keepRest(batch) {
		held := s.heldN
		s.mu.Unlock()
		s.c.log.Warn("resetting stalled stream, too much undelivered data in memory", "remote", s.c.remote, "bytes", held)
		s.reset(streamErrorf(CodeEnhanceYourCalm, "%d undelivered bytes are beyond the stream's share of memory", held))
		return
	}
	s.gotEnd = s.gotEnd || end
	s.startDrain()
	s.passEnd()
	done := s.complete()
	s.mu.Unlock()
	if done {
		s.close(nil)
	}
}

// writeBatch writes what the socket takes of the batch and returns the rest. It is called with mu held.
func (s *Stream) writeBatch(batch []unix.Iovec) ([]unix.Iovec, error) {
	for len(batch) > 0 {
		s.out, s.outN, s.outErr = batch, 0, nil
		err := s.raw.Control(s.sendNow)
		s.out = nil
		if err == nil {
			err = s.outErr
		}
		if err == unix.EAGAIN {
			return batch, nil
		}
		if err != nil {
			return batch, err
		}
		s.toApp.Add(uint64(s.outN))
		s.credit(int64(s.outN))
		batch = advance(batch, s.outN)
	}
	return batch, nil
}

// writeNow is writeBatch's callback.
func (s *Stream) writeNow(fd uintptr) { s.outN, s.outErr = sendVec(fd, s.out) }

// keepRest copies what the application did not take, and reports whether the stream may hold it. It is called with mu
// held.
func (s *Stream) keepRest(batch []unix.Iovec) bool {
	ok := true
	for i, v := range batch {
		p := iovecBytes(v)
		for len(p) > 0 {
			k := s.tail(len(p))
			n := copy(k.b[k.w:], p)
			k.w += n
			p = p[n:]
			s.heldN += int64(n)
			ok = s.c.mem.hold(int64(n), s.heldN) && ok
		}
		batch[i] = unix.Iovec{}
	}
	return ok
}

// tail returns the chunk that the next n bytes go to; small pieces share one.
func (s *Stream) tail(n int) *chunk {
	if l := len(s.held); l > 0 {
		if k := s.held[l-1]; k.w < len(k.b) {
			return k
		}
	}
	k := s.c.mem.getChunk(n)
	s.held = append(s.held, k)
	return k
}

// startDrain starts a drainer if one is needed. It is called with mu held.
func (s *Stream) startDrain() {
	if len(s.held) == 0 || s.draining || s.phase != phaseSpliced {
		return
	}
	s.draining = true
	s.c.wg.Add(1)
	go s.drainFn()
}

// passEnd passes END_STREAM on when everything before it is delivered. It is called with mu held.
func (s *Stream) passEnd() {
	if !s.gotEnd || s.shut || len(s.held) > 0 || s.draining || s.phase != phaseSpliced {
		return
	}
	s.shut = true
	// An application that is gone has reset its connection, which the pump sees; it needs no end any more.
	_ = s.app.CloseWrite()
}

// drain is the drainer: it writes what is held until nothing is, waiting for the application's socket.
func (s *Stream) drain() {
	defer s.c.wg.Done()
	for {
		s.mu.Lock()
		if len(s.held) == 0 || s.c.frozen.Load() || s.phase == phaseClosed {
			s.draining = false
			if s.phase == phaseClosed {
				s.dropHeld()
			}
			s.passEnd()
			done := s.complete()
			s.mu.Unlock()
			if done {
				s.close(nil)
			}
			return
		}
		s.out = s.out[:0]
		for _, k := range s.held[:min(len(s.held), maxIovecs)] {
			s.out = append(s.out, iovec(k.b[k.r:k.w]))
		}
		s.outN, s.outErr = 0, nil
		s.mu.Unlock()

		err := s.raw.Write(s.sendAll)
		if err == nil {
			err = s.outErr
		}
		s.mu.Lock()
		s.took(s.outN)
		if err != nil {
			s.draining = false
			if s.phase == phaseClosed {
				s.dropHeld()
			}
			frozen := isDeadline(err) && s.c.frozen.Load()
			s.mu.Unlock()
			if !frozen {
				s.appFailed(err)
			}
			return
		}
		s.mu.Unlock()
	}
}

// writeReady is drain's callback: one write, when the socket takes something.
func (s *Stream) writeReady(fd uintptr) bool {
	s.outN, s.outErr = sendVec(fd, s.out)
	return s.outErr != unix.EAGAIN
}

// took accounts for n held bytes that the application took. It is called with mu held.
func (s *Stream) took(n int) {
	if n <= 0 {
		return
	}
	left, done := n, 0
	for left > 0 {
		k := s.held[done]
		m := min(left, k.w-k.r)
		k.r += m
		left -= m
		if k.r < k.w {
			break
		}
		s.c.mem.putChunk(k)
		done++
	}
	s.held = append(s.held[:0], s.held[done:]...)
	clear(s.held[len(s.held) : len(s.held)+done])
	if len(s.held) == 0 {
		s.held, s.out = nil, nil
	}
	s.heldN -= int64(n)
	s.c.mem.drop(int64(n), s.heldN)
	s.toApp.Add(uint64(n))
	s.credit(int64(n))
}

// dropHeld forgets what is held. It is called with mu held, and no drainer running.
func (s *Stream) dropHeld() {
	for _, k := range s.held {
		s.c.mem.putChunk(k)
	}
	n := s.heldN
	s.held, s.out, s.heldN = nil, nil, 0
	s.c.mem.drop(n, 0)
}
