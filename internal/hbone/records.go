package hbone

import (
	"context"
	"crypto/fips140"
	"crypto/tls"
	"fmt"
	"net"
	"syscall"
)

// recordLayer carries plaintext over one TCP connection. Two kinds are behind it: tls13Records, ours, which seals and
// opens in place (hence the room that send buffers have around each record, and why opened plaintext stays where the layer
// put it), and stdRecords, which leaves records to crypto/tls. The handshake is crypto/tls's in both.
//
// open, more and release are called by the tunnel's reader alone; seal, flush and closeNotify by whoever writes, one at a
// time. Everything a layer knows between two calls is in its fields.
type recordLayer interface {
	// open returns the plaintext of the next record, or errWouldBlock when the socket has no complete one. The plaintext
	// is valid until release. It may be empty: then release and open again.
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

// startTLS runs the handshake on tcp, which it leaves open also if it fails. Our own record layer takes over after it, if
// it speaks what was negotiated; in FIPS mode crypto/tls keeps the records, because only its module is validated.
func startTLS(ctx context.Context, tcp *net.TCPConn, raw syscall.RawConn, cfg *tls.Config, client bool, mem *Memory) (
	recordLayer, tls.ConnectionState, error,
) {
	var secrets trafficSecrets
	if !fips140.Enabled() {
		cfg = secrets.tap(cfg)
	}
	r := newStdRecords(tcp, raw, mem)
	if client {
		r.tc = tls.Client(r, cfg)
	} else {
		r.tc = tls.Server(r, cfg)
	}
	if err := r.tc.HandshakeContext(ctx); err != nil {
		return nil, tls.ConnectionState{}, fmt.Errorf("TLS handshake: %w", err)
	}
	state := r.tc.ConnectionState()
	if own := newTLS13Records(raw, mem, &state, &secrets, client); own != nil {
		return own, state, nil
	}
	r.running = true
	return r, state, nil
}
