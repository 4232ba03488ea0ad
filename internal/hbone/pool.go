package hbone

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// Target names the far end of a tunnel, and is the key of the pool with all of its fields: streams of two sources,
// of two expected identities or of two local addresses never share a tunnel.
type Target struct {
	Source string         // SPIFFE URI of the workload on whose behalf we dial
	Dest   []string       // acceptable SPIFFE URIs of the peer, in any order
	Addr   netip.AddrPort // where to dial
	Local  netip.Addr     // address to dial from; invalid = any
}

// PoolConfig configures a Pool.
type PoolConfig struct {
	// Dial makes the TCP connection; the pool owns it afterwards.
	Dial func(ctx context.Context, t Target) (*net.TCPConn, error)
	// TLS gives the configuration for one handshake: certificates, and the verification that the peer is one of t.Dest.
	// The pool clones it and adds what HBONE fixes: TLS 1.3, ALPN h2.
	TLS    func(ctx context.Context, t Target) (*tls.Config, error)
	Limits Limits
	Log    *slog.Logger
}

// ConnInfo describes one live tunnel.
type ConnInfo struct {
	Target        Target // zero on the server side
	Local, Remote netip.AddrPort
	Peer          []string // URI names of the peer's certificate
	Since         time.Time
	Streams       int    // open now
	Opened        uint64 // streams so far
	Queued        int    // plaintext bytes waiting for the socket
	Draining      bool   // GOAWAY sent or received
}

// Pool keeps tunnels to peers and opens streams on them.
type Pool struct{ cfg PoolConfig }

// NewPool makes a pool. Close ends it.
func NewPool(cfg PoolConfig) *Pool { return &Pool{cfg: cfg} }

// Open opens a stream to authority through a tunnel to t and returns when the peer has answered 200. Another answer is a
// *StatusError. ctx bounds the whole of it, dialling included; it has no effect on the stream afterwards.
func (p *Pool) Open(ctx context.Context, t Target, authority string, headers []Header) (*Stream, error) {
	return nil, ErrPoolClosed
}

// Stats describes every live tunnel.
func (p *Pool) Stats() []ConnInfo { return nil }

// Drain makes Open fail from now on; streams go on, and each tunnel ends with its last stream.
func (p *Pool) Drain() {}

// Close resets what is still open and returns when every goroutine of the pool has ended.
func (p *Pool) Close() error { return nil }
