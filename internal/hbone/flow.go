package hbone

import "time"

// Flow control of RFC 9113 section 5.2, as plain arithmetic: no lock, no clock, no socket. Callers lock and tell the time.

// sendWindow is what the peer lets us send, on a stream or on a connection. It may be negative: SETTINGS can shrink it.
type sendWindow int64

// grow adds the peer's credit and reports whether the window stays legal, RFC 9113 section 6.9.1.
func (w *sendWindow) grow(n int64) bool {
	if int64(*w)+n > maxWindow {
		return false
	}
	*w += sendWindow(n)
	return true
}

// recvWindow is what we let the peer send on one stream.
//
// Credit is returned when the application took the bytes, so avail plus what is queued plus unreturned is never more
// than size. size grows while the window may be what holds the sender back: what is in flight cannot be seen from here,
// so the sign is that the application takes whole windows in quick succession.
type recvWindow struct {
	size       int64 // bytes the peer may send ahead of the application
	limit      int64 // what size may grow to
	avail      int64 // what the peer may still send now
	unreturned int64 // taken by the application, credit not yet sent
	turned     int64 // credit returned since turnedAt
	turnedAt   time.Time
}

func newRecvWindow(size, limit int64) recvWindow {
	return recvWindow{size: size, limit: limit, avail: size}
}

// turnOver is how fast a whole window must be taken to grow: the round trips of a cluster, with the delays of busy
// processes, stay below it, so that a window that takes longer has time for credit to arrive.
const turnOver = 20 * time.Millisecond

// returnShare: credit is returned when this share of the window was taken, so that WINDOW_UPDATEs stay rare and the sender
// never waits for them while the application keeps up.
const returnShare = 4

// receive accounts for n bytes of DATA, padding included, and reports whether the peer was allowed to send them.
func (w *recvWindow) receive(n int64) bool {
	if n > w.avail {
		return false
	}
	w.avail -= n
	return true
}

// consume accounts for n bytes that the application took. It returns the credit to send now, which may be 0.
func (w *recvWindow) consume(n int64) (credit int64) {
	w.unreturned += n
	if w.unreturned < w.size/returnShare {
		return 0
	}
	credit = w.unreturned
	w.avail += credit
	w.unreturned = 0
	return credit
}

// wants returns by how much the window should grow, asked when credit is returned; idle says that the application has
// taken everything, so that it is not the bottleneck.
func (w *recvWindow) wants(credit int64, now time.Time, idle bool) int64 {
	if w.size >= w.limit {
		return 0
	}
	w.turned += credit
	if w.turned < w.size && !w.turnedAt.IsZero() {
		return 0
	}
	quick := now.Sub(w.turnedAt) <= turnOver
	w.turned, w.turnedAt = 0, now
	if !quick || !idle {
		return 0
	}
	return min(w.size, w.limit-w.size)
}

// grow widens the window by n bytes, which are sent as credit.
func (w *recvWindow) grow(n int64) {
	w.size += n
	w.avail += n
}

// connRecvWindow is what we let the peer have in flight on the tunnel. Credit is returned on receipt: it bounds bytes on
// the wire, not memory, and one unread stream takes nothing from it.
type connRecvWindow struct {
	size, avail, unreturned int64
}

func newConnRecvWindow(size int64) connRecvWindow {
	size = max(size, defaultWindow)
	return connRecvWindow{size: size, avail: size}
}

func (w *connRecvWindow) receive(n int64) bool {
	if n > w.avail {
		return false
	}
	w.avail -= n
	w.unreturned += n
	return true
}

// credit returns what to return to the peer now, which may be 0.
func (w *connRecvWindow) credit() int64 {
	if w.unreturned < w.size/returnShare {
		return 0
	}
	n := w.unreturned
	w.avail += n
	w.unreturned = 0
	return n
}
