package hbone

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stdRecords is crypto/tls as a recordLayer. It puts itself under the tls.Conn as the net.Conn, so that one system call
// reads or writes many records.
type stdRecords struct {
	net.Conn // the TCP connection; embedded for addresses, deadlines and Close
	tc       *tls.Conn
	raw      syscall.RawConn
	mem      *Memory
	running  bool // the handshake is over

	// handshake: the header of the record being read, and what is left of its body
	head            [recordHead]byte
	headN, bodyLeft int

	// reader
	fd     uintptr
	in     *[]byte // ciphertext read ahead, in[inR:inW]; nil if none
	inR    int
	inW    int
	plain  *[]byte // plaintext of this batch, plain[:plainN]
	plainN int

	// writer
	mu      sync.Mutex // crypto/tls answers a KeyUpdate from the reader
	wire    *[]byte    // sealed records; wire[wireR:] is not written yet
	wireR   int
	sendErr error
	sendFn  func(fd uintptr) bool
}

func newStdRecords(tcp *net.TCPConn, raw syscall.RawConn, mem *Memory) *stdRecords {
	r := &stdRecords{Conn: tcp, raw: raw, mem: mem}
	r.sendFn = r.send
	return r
}

// Read is called by crypto/tls.
func (r *stdRecords) Read(p []byte) (int, error) {
	if !r.running {
		return r.readHandshake(p)
	}
	if r.inR == r.inW {
		if r.in == nil {
			r.in = r.mem.input.Get().(*[]byte)
		}
		n, err := recvSome(r.fd, *r.in)
		if err != nil {
			return 0, err
		}
		r.inR, r.inW = 0, n
	}
	n := copy(p, (*r.in)[r.inR:r.inW])
	r.inR += n
	return n, nil
}

// readHandshake reads no further than the end of the record that crypto/tls is at, so that whoever carries the records
// after the handshake finds all of them in the socket.
func (r *stdRecords) readHandshake(p []byte) (int, error) {
	if r.headN == len(r.head) && r.bodyLeft == 0 {
		r.headN = 0
	}
	if r.headN < len(r.head) {
		n, err := r.Conn.Read(p[:min(len(p), len(r.head)-r.headN)])
		r.headN += copy(r.head[r.headN:], p[:n])
		if r.headN == len(r.head) {
			r.bodyLeft = int(binary.BigEndian.Uint16(r.head[3:]))
		}
		return n, err
	}
	n, err := r.Conn.Read(p[:min(len(p), r.bodyLeft)])
	r.bodyLeft -= n
	return n, err
}

// Write is called by crypto/tls, from both of our sides: it answers a KeyUpdate while reading.
func (r *stdRecords) Write(p []byte) (int, error) {
	if !r.running {
		return r.Conn.Write(p)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wire == nil {
		r.wire = r.mem.wire.Get().(*[]byte)
		*r.wire = (*r.wire)[:0]
	}
	*r.wire = append(*r.wire, p...)
	return len(p), nil
}

// SetWriteDeadline does nothing: crypto/tls would set a deadline in the past after close_notify, which is still to be
// written then. Whoever owns the TCP connection sets deadlines on it directly.
func (r *stdRecords) SetWriteDeadline(time.Time) error { return nil }

func (r *stdRecords) open(fd uintptr) ([]byte, error) {
	r.fd = fd
	if r.plain == nil {
		r.plain = r.mem.plain.Get().(*[]byte)
	}
	b := (*r.plain)[r.plainN:]
	n, err := r.tc.Read(b)
	r.plainN += n
	if n > 0 {
		// An error that came with data comes again.
		return b[:n:n], nil
	}
	return nil, err
}

func (r *stdRecords) more() bool {
	return r.inW-r.inR > 0 && plainSize-r.plainN >= recordPlain
}

func (r *stdRecords) release() {
	r.plainN = 0
	if r.plain != nil {
		r.mem.plain.Put(r.plain)
		r.plain = nil
	}
	if r.in != nil && r.inR == r.inW {
		r.mem.input.Put(r.in)
		r.in, r.inR, r.inW = nil, 0, 0
	}
}

// wireRoom is what must be free before another record is sealed, so that the buffer never grows: the largest record.
const wireRoom = recordStride + 256

func (r *stdRecords) full() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wire != nil && wireSize-len(*r.wire) < wireRoom
}

func (r *stdRecords) seal(b *sendBuf) (bool, error) {
	for b.sealed < b.plain {
		if r.full() {
			return false, nil
		}
		n := min(b.plain-b.sealed, recordPlain)
		if _, err := r.tc.Write(b.record(b.sealed / recordPlain)[:n]); err != nil {
			return false, fmt.Errorf("seal record: %w", err)
		}
		b.sealed += n
	}
	r.mem.putSend(b)
	return true, nil
}

func (r *stdRecords) flush() error {
	if !r.pending() {
		return nil
	}
	r.sendErr = nil
	if err := r.raw.Write(r.sendFn); err != nil {
		return err
	}
	return r.sendErr
}

// send is flush's callback: it writes until everything is written or the socket is full.
func (r *stdRecords) send(fd uintptr) bool {
	for {
		r.mu.Lock()
		if r.wire == nil || r.wireR == len(*r.wire) {
			r.dropWire()
			r.mu.Unlock()
			return true
		}
		p := (*r.wire)[r.wireR:]
		r.mu.Unlock()
		n, err := sendOne(fd, p)
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			r.sendErr = err
			return true
		}
		r.mu.Lock()
		r.wireR += n
		r.mu.Unlock()
	}
}

// dropWire gives the empty buffer back. It is called with mu held.
func (r *stdRecords) dropWire() {
	if r.wire != nil && cap(*r.wire) == wireSize {
		r.mem.wire.Put(r.wire)
	}
	r.wire, r.wireR = nil, 0
}

func (r *stdRecords) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wire != nil && r.wireR < len(*r.wire)
}

func (r *stdRecords) closeNotify() error {
	if err := r.tc.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("seal close_notify: %w", err)
	}
	return nil
}
