package hbone

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// phase says how far the opening of a stream has come.
type phase uint8

const (
	phaseWaiting  phase = iota // client: HEADERS sent, no answer yet
	phaseHandling              // server: the handler decides, and dials
	phaseOpen                  // 200 sent or received; no application yet
	phaseSpliced               // an application's connection is attached
	phaseClosed
)

// Stream is one CONNECT of a tunnel, after the 200. Its owner calls Splice or Reset.
type Stream struct {
	c  *conn
	id uint32

	// Of the reader alone: what the batch has brought.
	batch    []unix.Iovec
	batchEnd bool
	dirty    bool

	// Under c.mu: the sending side.
	sendWin   sendWindow
	wait      waitFor
	rstQueued bool
	handling  bool // server: the handler has not returned

	winCh    chan struct{} // one token: look again
	answered chan struct{} // client: closed with the answer, or the end
	done     chan struct{} // closed in phaseClosed

	// Of the pump alone, see pump.go.
	pumpState

	mu       sync.Mutex
	phase    phase
	app      *net.TCPConn
	raw      syscall.RawConn
	fields   []Header   // client: of the answer
	cancel   func()     // server: ends the handler's context
	err      error      // why it was reset
	recv     recvWindow // what the peer may send
	held     []*chunk   // received, not yet taken by the application
	heldN    int64      // bytes in held
	draining bool       // a drainer runs
	pumping  bool       // a pump runs
	gotEnd   bool       // END_STREAM received
	shut     bool       // and passed on
	sentEnd  bool       // the application ended, END_STREAM queued
	grown    int64      // window taken from the budget

	// Of whoever delivers: the reader, or the drainer while draining is set.
	out     []unix.Iovec
	outN    int
	outErr  error
	sendNow func(fd uintptr)
	sendAll func(fd uintptr) bool
	drainFn func()

	toApp, fromApp atomic.Uint64
}

// Result counts the bytes of a finished Splice.
type Result struct{ BytesToApp, BytesFromApp uint64 }

// newStream makes a stream; the caller puts it into c.streams.
func newStream(c *conn, id uint32, p phase) *Stream {
	s := &Stream{
		c: c, id: id, phase: p, winCh: make(chan struct{}, 1), done: make(chan struct{}),
		recv: newRecvWindow(c.lim.StreamWindow, c.lim.MaxStreamWindow),
	}
	if c.client {
		s.answered = make(chan struct{})
	}
	s.readFn = s.readReady
	s.sendNow, s.sendAll, s.drainFn = s.writeNow, s.writeReady, s.drain
	return s
}

// Splice owns app from here on, moves bytes both ways and returns when both directions have ended. A half that ends
// leaves the other open; a reset of either side resets the other. It is called once.
func (s *Stream) Splice(app *net.TCPConn) (Result, error) {
	if err := s.attach(app); err != nil {
		return Result{}, err
	}
	s.pump()
	<-s.done
	to, from := s.Bytes()
	return Result{BytesToApp: to, BytesFromApp: from}, s.Err()
}

// attach connects the stream and the application, and counts the caller as the pump.
func (s *Stream) attach(app *net.TCPConn) error {
	raw, err := app.SyscallConn()
	if err == nil {
		err = s.c.enter()
	}
	if err != nil {
		s.Reset(CodeInternal)
		closeApp(app, nil, true)
		return err
	}
	setLinger(raw, true)
	s.mu.Lock()
	if s.phase != phaseOpen {
		err := s.err
		if err == nil {
			err = ErrStreamClosed
		}
		s.mu.Unlock()
		s.c.wg.Done()
		closeApp(app, raw, true)
		return err
	}
	s.phase, s.app, s.raw, s.pumping = phaseSpliced, app, raw, true
	s.startDrain()
	s.passEnd()
	s.mu.Unlock()
	return nil
}

// closeApp closes an application's connection, with a reset or in order. An error could not help anybody.
func closeApp(app *net.TCPConn, raw syscall.RawConn, reset bool) {
	switch {
	case reset:
		_ = app.SetLinger(0)
	case raw != nil:
		setLinger(raw, false)
	}
	_ = app.Close()
}

// Bytes returns the live counters of Splice.
func (s *Stream) Bytes() (toApp, fromApp uint64) { return s.toApp.Load(), s.fromApp.Load() }

// Reset ends the stream with RST_STREAM and resets the application's connection.
func (s *Stream) Reset(code Code) {
	if s.c.enter() != nil {
		return
	}
	defer s.c.wg.Done()
	s.reset(&StreamError{Code: code})
}

// Done is closed when the stream has ended.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Err returns nil while the stream is open and after both halves ended cleanly, else why it ended.
func (s *Stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// ResponseHeaders returns the fields that came with the 200, on the client side.
func (s *Stream) ResponseHeaders() []Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fields
}

// PeerTLS returns the TLS state of the tunnel.
func (s *Stream) PeerTLS() tls.ConnectionState {
	if s.c.state == nil {
		return tls.ConnectionState{}
	}
	return *s.c.state
}

// reset ends the stream for cause and tells the peer, unless both directions have ended already.
func (s *Stream) reset(cause *StreamError) {
	s.mu.Lock()
	closed := s.phase == phaseClosed
	s.mu.Unlock()
	if closed {
		return
	}
	s.c.queueRST(s, cause.Code)
	s.end(cause)
}

// gotReset handles RST_STREAM. NO_ERROR and CANCEL are how other implementations say that they are done with a stream:
// the application sees the end after all that came before. Everything else is a reset for the application too.
func (s *Stream) gotReset(code Code) {
	s.c.mu.Lock()
	s.rstQueued = true // nothing of ours may follow, not even another RST_STREAM
	s.c.mu.Unlock()
	cause := &StreamError{Code: code, Remote: true}
	s.mu.Lock()
	if s.phase != phaseSpliced && s.phase != phaseOpen || code != CodeNoError && code != CodeCancel {
		s.mu.Unlock()
		s.end(cause)
		return
	}
	s.gotEnd = true
	if !s.sentEnd {
		// What the application still sends has nowhere to go.
		s.sentEnd = true
		s.stopPump()
	}
	s.passEnd()
	done := s.complete()
	s.mu.Unlock()
	if done {
		s.close(nil)
	}
}

// complete reports whether both directions have ended. It is called with mu held.
func (s *Stream) complete() bool { return s.sentEnd && s.shut }

// end closes the stream for cause, without telling the peer.
func (s *Stream) end(cause error) { s.close(cause) }

// close is the one way into phaseClosed.
func (s *Stream) close(cause error) {
	s.mu.Lock()
	if s.phase == phaseClosed {
		s.mu.Unlock()
		return
	}
	before := s.phase
	s.phase, s.err = phaseClosed, cause
	app, raw, cancel := s.app, s.raw, s.cancel
	if !s.draining {
		s.dropHeld()
	}
	if s.grown > 0 {
		s.c.mem.shrink(s.grown)
		s.grown = 0
	}
	s.stop.Store(true)
	s.mu.Unlock()

	s.wake()
	if cancel != nil {
		cancel()
	}
	if app != nil {
		closeApp(app, raw, cause != nil)
	}
	// Its place is free before anybody hears of the end.
	s.c.remove(s)
	if before == phaseWaiting {
		close(s.answered)
	}
	close(s.done)
}

// wake tells the pump to look again, at windows, at stop, or at whether the tunnel is frozen.
func (s *Stream) wake() {
	select {
	case s.winCh <- struct{}{}:
	default:
	}
}

// resume starts the stream's goroutines from its fields. The gate is closed, or the tunnel new.
func (s *Stream) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != phaseSpliced {
		return
	}
	_ = s.app.SetDeadline(time.Time{})
	s.startDrain()
	s.passEnd()
	if !s.sentEnd && !s.pumping {
		s.pumping = true
		s.c.wg.Add(1)
		go s.pump()
	}
}

// freeze makes the stream's goroutines come to their safe points.
func (s *Stream) freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == phaseSpliced {
		_ = s.app.SetDeadline(past)
	}
	s.wake()
}

// refused reports whether the peer said that it did not process the stream, so that it may be opened again.
func refused(err error) bool {
	var e *StreamError
	return errors.As(err, &e) && e.Remote && e.Code == CodeRefusedStream
}
