package hbone

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// tls13Records is our own TLS 1.3 record layer: records are opened where the socket put them and sealed where the frame
// was built, and one system call moves many. It takes over from crypto/tls right after the handshake, from the two traffic
// secrets; the next record of each direction is its first, number 0.
//
// After the handshake a peer may still send (RFC 8446 section 4.6): NewSessionTicket, which is ignored; KeyUpdate, which
// is obeyed and answered; alerts. Post-handshake authentication was not offered, and is refused with all else.
type tls13Records struct {
	raw syscall.RawConn
	mem *Memory

	// reader
	rd      *recordKey
	in      *[]byte // in[inR:inW] is ciphertext; before inR lies what open returned
	inR     int
	inW     int
	lent    bool   // what open returned is in use: the buffer must stay as it is
	partial []byte // of a handshake message that goes on in the next record
	useless int    // records in a row without application data

	// writer
	wr      *recordKey
	rekeyAt uint64   // records that one key may seal
	out     []sealed // not written yet
	iovs    []unix.Iovec
	sendErr error
	sendFn  func(fd uintptr) bool

	// both
	unwritten atomic.Int64 // bytes in out
	updateDue atomic.Bool  // the peer asked for our KeyUpdate
}

// sealed is a run of records in one buffer, b.b[from:to].
type sealed struct {
	b        *sendBuf
	from, to int
}

const (
	// maxUseless is how many records without application data may follow each other, as in crypto/tls.
	maxUseless = 16
	// maxPartial bounds a handshake message after the handshake, in bytes: a session ticket with its extensions.
	maxPartial = 64 << 10
)

// newTLS13Records takes over from the handshake; nil if what was negotiated is not for us.
func newTLS13Records(raw syscall.RawConn, mem *Memory, state *tls.ConnectionState, secrets *trafficSecrets, client bool) *tls13Records {
	read, write := secrets.take(client)
	if state.Version != tls.VersionTLS13 {
		return nil
	}
	rd, err := newRecordKey(state.CipherSuite, read)
	if err != nil {
		return nil
	}
	wr, err := newRecordKey(state.CipherSuite, write)
	if err != nil {
		return nil
	}
	r := &tls13Records{raw: raw, mem: mem, rd: rd, wr: wr, rekeyAt: rekeyAfter}
	r.sendFn = r.send
	return r
}

func (r *tls13Records) open(fd uintptr) ([]byte, error) {
	for {
		n, err := r.next()
		if err != nil {
			return nil, fmt.Errorf("read record: %w", err)
		}
		if n == 0 && r.lent {
			return nil, nil // what was at hand was no data; the reader comes again after release
		}
		if n == 0 {
			if err := r.fill(fd); err != nil {
				return nil, err
			}
			continue
		}
		record := (*r.in)[r.inR : r.inR+n]
		r.inR += n
		content, typ, err := r.rd.open(record)
		if err != nil {
			return nil, fmt.Errorf("open record: %w", err)
		}
		if typ == contentApplication && len(r.partial) == 0 && len(content) > 0 {
			r.useless, r.lent = 0, true
			return content, nil
		}
		if err := r.other(content, typ); err != nil {
			return nil, err
		}
	}
}

// next returns the length of the record at hand; 0 if it is not complete.
func (r *tls13Records) next() (int, error) {
	if r.in == nil {
		return 0, nil
	}
	n, err := recordLen((*r.in)[r.inR:r.inW])
	if err != nil || n > r.inW-r.inR {
		return 0, err
	}
	return n, nil
}

// fill reads from the socket, when nothing that open returned is in use.
func (r *tls13Records) fill(fd uintptr) error {
	if r.in == nil {
		r.in = r.mem.input.Get().(*[]byte)
	}
	r.compact()
	n, err := recvSome(fd, (*r.in)[r.inW:])
	if err == io.EOF && r.inW > 0 {
		return io.ErrUnexpectedEOF
	}
	r.inW += n
	return err
}

// compact moves the part of a record to the front of its buffer.
func (r *tls13Records) compact() {
	if r.inR > 0 {
		r.inW = copy(*r.in, (*r.in)[r.inR:r.inW])
		r.inR = 0
	}
}

func (r *tls13Records) more() bool {
	n, err := r.next()
	return n > 0 || err != nil
}

func (r *tls13Records) release() {
	r.lent = false
	if r.in != nil && r.inR == r.inW {
		r.mem.input.Put(r.in)
		r.in, r.inR, r.inW = nil, 0, 0
	}
}

// other obeys a record that is not application data.
func (r *tls13Records) other(content []byte, typ byte) error {
	if r.useless++; r.useless > maxUseless {
		return errors.New("open record: too many records without data")
	}
	switch {
	case typ == contentApplication && len(r.partial) == 0:
		return nil // empty
	case typ == contentHandshake && len(content) > 0:
		return r.handshake(content)
	case typ == contentAlert && len(content) == 2 && len(r.partial) == 0:
		return alertError(content[1])
	}
	return fmt.Errorf("open record: %w", errRecordType)
}

// Alerts that are not failures, RFC 8446 section 6.1.
const (
	alertCloseNotify  = 0
	alertUserCanceled = 90
	alertWarning      = 1
)

func alertError(description byte) error {
	switch description {
	case alertCloseNotify:
		return io.EOF
	case alertUserCanceled:
		return nil
	}
	return fmt.Errorf("remote error: %w", tls.AlertError(description))
}

// Handshake messages that may come after the handshake, RFC 8446 section 4.
const (
	typeNewSessionTicket = 4
	typeKeyUpdate        = 24
	handshakeHead        = 4
)

// handshake obeys the messages that end in this record.
//
//	Handshake: type(1) | length(3) | body
func (r *tls13Records) handshake(content []byte) error {
	msgs := append(r.partial, content...)
	r.partial = nil
	for len(msgs) >= handshakeHead {
		n := handshakeHead + int(msgs[1])<<16 + int(msgs[2])<<8 + int(msgs[3])
		if n > maxPartial {
			return fmt.Errorf("open record: handshake message of %d bytes", n)
		}
		if len(msgs) < n {
			break
		}
		switch msgs[0] {
		case typeNewSessionTicket:
		case typeKeyUpdate:
			// RFC 8446 section 5.1: it ends its record, because the next is under another key.
			if len(msgs) != n || n != handshakeHead+1 || msgs[4] > 1 {
				return errors.New("open record: malformed KeyUpdate")
			}
			if msgs[4] == 1 {
				r.updateDue.Store(true)
			}
			return r.rd.update()
		default:
			return fmt.Errorf("open record: unexpected handshake message of type %d", msgs[0])
		}
		msgs = msgs[n:]
	}
	r.partial = append(r.partial, msgs...)
	return nil
}

func (r *tls13Records) seal(b *sendBuf) (bool, error) {
	if err := r.rekey(); err != nil {
		return false, err
	}
	if r.unwritten.Load() >= wireSize {
		return false, nil
	}
	end := 0
	for i := 0; b.sealed < b.plain; i++ {
		n := min(b.plain-b.sealed, recordPlain)
		end = i*recordStride + r.wr.seal(b.b[i*recordStride:], n, contentApplication)
		b.sealed += n
	}
	r.push(b, end)
	return true, nil
}

// push queues the records b.b[:end] for the socket.
func (r *tls13Records) push(b *sendBuf, end int) {
	r.out = append(r.out, sealed{b: b, to: end})
	r.unwritten.Add(int64(end))
}

// rekey sends a KeyUpdate when the peer asked for one or the key has sealed enough.
func (r *tls13Records) rekey() error {
	if !r.updateDue.Swap(false) && r.wr.seq < r.rekeyAt {
		return nil
	}
	r.sealSmall([]byte{typeKeyUpdate, 0, 0, 1, 0}, contentHandshake)
	return r.wr.update()
}

func (r *tls13Records) sealSmall(content []byte, typ byte) {
	b := r.mem.getSend(classSmall)
	n := copy(b.b[recordHead:], content)
	r.push(b, r.wr.seal(b.b, n, typ))
}

func (r *tls13Records) flush() error {
	if err := r.rekey(); err != nil {
		return err
	}
	if len(r.out) == 0 {
		return nil
	}
	r.sendErr = nil
	if err := r.raw.Write(r.sendFn); err != nil {
		return err
	}
	return r.sendErr
}

// send is flush's callback: it writes until everything is written or the socket is full.
func (r *tls13Records) send(fd uintptr) bool {
	for len(r.out) > 0 {
		r.iovs = r.iovs[:0]
		for _, s := range r.out[:min(len(r.out), maxIovecs)] {
			r.iovs = append(r.iovs, iovec(s.b.b[s.from:s.to]))
		}
		n, err := sendVec(fd, r.iovs)
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			r.sendErr = err
			return true
		}
		r.written(n)
	}
	return true
}

// written gives back the buffers of which everything is written.
func (r *tls13Records) written(n int) {
	r.unwritten.Add(-int64(n))
	done := 0
	for i := range r.out {
		s := &r.out[i]
		if left := s.to - s.from; n < left {
			s.from += n
			break
		} else {
			n -= left
		}
		r.mem.putSend(s.b)
		s.b = nil
		done++
	}
	r.out = append(r.out[:0], r.out[done:]...)
}

func (r *tls13Records) pending() bool { return r.unwritten.Load() > 0 || r.updateDue.Load() }

func (r *tls13Records) closeNotify() error {
	r.sealSmall([]byte{alertWarning, alertCloseNotify}, contentAlert)
	return nil
}
