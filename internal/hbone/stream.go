package hbone

import (
	"crypto/tls"
	"net"
)

// Stream is one CONNECT of a tunnel, after the 200.
type Stream struct{}

// Result counts the bytes of a finished Splice.
type Result struct{ BytesToApp, BytesFromApp uint64 }

// Splice owns app from here on, moves bytes both ways and returns when both directions have ended. A half that ends
// leaves the other open; a reset of either side resets the other.
func (s *Stream) Splice(app *net.TCPConn) (Result, error) { return Result{}, app.Close() }

// Bytes returns the live counters of Splice.
func (s *Stream) Bytes() (toApp, fromApp uint64) { return 0, 0 }

// Reset ends the stream with RST_STREAM and resets the application's connection.
func (s *Stream) Reset(code Code) {}

// Done is closed when the stream has ended.
func (s *Stream) Done() <-chan struct{} { return nil }

// Err returns nil while the stream is open and after both halves ended cleanly, else why it ended.
func (s *Stream) Err() error { return nil }

// ResponseHeaders returns the fields that came with the 200, on the client side.
func (s *Stream) ResponseHeaders() []Header { return nil }

// PeerTLS returns the TLS state of the tunnel.
func (s *Stream) PeerTLS() tls.ConnectionState { return tls.ConnectionState{} }
