package hbone

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
)

// ServerConfig configures a Server.
type ServerConfig struct {
	// TLS holds the certificate and the verification of peers. The server clones it and adds what HBONE fixes.
	TLS *tls.Config
	// Handle is called on its own goroutine for every request, CONNECT or not. It calls Accept or Reject, once. ctx ends
	// when the peer resets the stream or the tunnel ends.
	Handle func(ctx context.Context, r *Request)
	Limits Limits
	Log    *slog.Logger
}

// Server serves the far end of tunnels.
type Server struct{ cfg ServerConfig }

// NewServer makes a server. Close ends it.
func NewServer(cfg ServerConfig) *Server { return &Server{cfg: cfg} }

// ServeConn owns c from here on and returns when the tunnel has ended: nil if either side ended it in good order.
// When ctx ends, the tunnel and its streams are reset.
func (s *Server) ServeConn(ctx context.Context, c *net.TCPConn) error { return c.Close() }

// Drain sends GOAWAY on every tunnel, now and later; open streams go on, and each tunnel ends with its last stream.
func (s *Server) Drain() {}

// Stats describes every live tunnel.
func (s *Server) Stats() []ConnInfo { return nil }

// Close resets what is still open and returns when every tunnel has ended.
func (s *Server) Close() error { return nil }

// Request is a request that waits for Accept or Reject.
type Request struct {
	Method, Authority string
	Headers           []Header // without pseudo-header fields
	TLS               tls.ConnectionState
	Local, Remote     netip.AddrPort // of the tunnel's TCP connection
}

// Header returns the value of the named field; several lines are joined with ", " as RFC 9110 section 5.3 says.
func (r *Request) Header(name string) string { return "" }

// Reject answers with the status and ends the stream.
func (r *Request) Reject(status int) {}

// Accept answers 200 and returns the stream, on which the caller then calls Splice or Reset.
func (r *Request) Accept(headers []Header) (*Stream, error) { return nil, ErrStreamClosed }
