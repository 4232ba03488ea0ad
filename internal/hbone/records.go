package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// recordLayer carries plaintext over one TCP connection. crypto/tls is behind it today; a layer of our own fits as well,
// which is why send buffers have room around each record, and why opened plaintext stays where the layer put it.
//
// open, more and release are called by the tunnel's reader alone; seal, flush and closeNotify by whoever writes, one at a
// time. Everything a layer knows between two calls is in its fields.
type recordLayer interface {
	// open returns the plaintext of the next record, or errWouldBlock when the socket has no complete one. The plaintext
	// is valid until release.
	open(fd uintptr) ([]byte, error)
	// more reports whether open is worth calling before release: another record is at hand, and there is room for it.
	more() bool
	// release ends the use of all that open returned, and gives back buffers that hold nothing.
	release()
	// seal takes plaintext from b, in order, and reports whether it took all; if not, flush comes first. When it took
	// all, b belongs to the layer.
	seal(b *sendBuf) (all bool, err error)
	// flush writes what is sealed. When the socket's write deadline ends it, it goes on with the next call: no record is
	// sealed twice.
	flush() error
	// pending reports whether something is sealed and not written, be it by the layer itself.
	pending() bool
	// closeNotify seals the end of our direction.
	closeNotify() error
}

// tlsRecords is crypto/tls as a recordLayer. It puts itself under the tls.Conn as the net.Conn, so that one system call
// reads or writes many records.
type tlsRecords struct {
	net.Conn // the TCP connection; embedded for addresses, deadlines and Close
	tc       *tls.Conn
	raw      syscall.RawConn
	mem      *Memory
	running  bool // the handshake is over

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

// startTLS runs the handshake on tcp, which it leaves open also if it fails.
func startTLS(ctx context.Context, tcp *net.TCPConn, cfg *tls.Config, client bool, mem *Memory) (*tlsRecords, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("take socket: %w", err)
	}
	r := &tlsRecords{Conn: tcp, raw: raw, mem: mem}
	r.sendFn = r.send
	if client {
		r.tc = tls.Client(r, cfg)
	} else {
		r.tc = tls.Server(r, cfg)
	}
	if err := r.tc.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	r.running = true
	return r, nil
}

// Read is called by crypto/tls.
func (r *tlsRecords) Read(p []byte) (int, error) {
	if !r.running {
		return r.Conn.Read(p)
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

// Write is called by crypto/tls, from both of our sides: it answers a KeyUpdate while reading.
func (r *tlsRecords) Write(p []byte) (int, error) {
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
func (r *tlsRecords) SetWriteDeadline(time.Time) error { return nil }

func (r *tlsRecords) open(fd uintptr) ([]byte, error) {
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

func (r *tlsRecords) more() bool {
	return r.inW-r.inR > 0 && plainSize-r.plainN >= recordPlain
}

func (r *tlsRecords) release() {
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

func (r *tlsRecords) full() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wire != nil && wireSize-len(*r.wire) < wireRoom
}

func (r *tlsRecords) seal(b *sendBuf) (bool, error) {
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

func (r *tlsRecords) flush() error {
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
func (r *tlsRecords) send(fd uintptr) bool {
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
func (r *tlsRecords) dropWire() {
	if r.wire != nil && cap(*r.wire) == wireSize {
		r.mem.wire.Put(r.wire)
	}
	r.wire, r.wireR = nil, 0
}

func (r *tlsRecords) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wire != nil && r.wireR < len(*r.wire)
}

func (r *tlsRecords) closeNotify() error {
	if err := r.tc.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("seal close_notify: %w", err)
	}
	return nil
}
