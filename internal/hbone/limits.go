package hbone

import "time"

// Defaults of Limits, and the limits that are not for callers to change.
const (
	// defaultStreamWindow is the receive window a stream starts with. It is what a stalled stream can make us hold, so it is
	// far below the 4 MiB that Istio announces; at 1 ms of round trip it still carries 2 Gbit/s, and it grows on demand.
	defaultStreamWindow = 256 << 10
	// defaultMaxStreamWindow is what a stream's window grows to while its reader keeps up (Istio's figure).
	defaultMaxStreamWindow = 4 << 20
	// defaultConnWindow is the receive window of the connection. Its credit is returned on receipt, so that an unread
	// stream cannot stall the others; the figure is Istio's.
	defaultConnWindow = 16 << 20
	// defaultMaxFrameSize is what we let peers send (Istio's figure). DATA is never gathered, so it costs no memory.
	defaultMaxFrameSize = 1 << 20
	// defaultServerStreams is SETTINGS_MAX_CONCURRENT_STREAMS of our server side (Istio's figure).
	defaultServerStreams = 200
	// defaultClientStreams is how many streams our client side puts on one tunnel (Istio's figure).
	defaultClientStreams = 100
	// defaultServerHeaderList and defaultClientHeaderList are SETTINGS_MAX_HEADER_LIST_SIZE in bytes (Istio's figures).
	defaultServerHeaderList = 64 << 10
	defaultClientHeaderList = 16 << 10
	// defaultPingInterval and defaultPingTimeout are Istio's: a dead peer is noticed after 30 s at most.
	defaultPingInterval = 10 * time.Second
	defaultPingTimeout  = 20 * time.Second
	// defaultIdleTimeout is how long a tunnel without streams is kept for the next one.
	defaultIdleTimeout = 5 * time.Minute
	// defaultHandshakeTimeout bounds dialling plus the TLS handshake, and the handshake alone on the server side.
	defaultHandshakeTimeout = 10 * time.Second
	// defaultConnsPerKey allows 6,400 streams between one source and one destination.
	defaultConnsPerKey = 64
	// defaultConns bounds the file descriptors of all tunnels of a pool.
	defaultConns = 8192
	// defaultBusyConns is how many tunnels a key gets because the others are busy rather than full: one peer worker
	// serves all streams of a tunnel (Envoy), but more tunnels than cores gain nothing.
	defaultBusyConns = 4
	// defaultSendQueue is how many plaintext bytes wait for one tunnel's socket: enough for a few rounds of the writer,
	// little enough that a slow peer holds back the applications instead of filling our memory.
	defaultSendQueue = 1 << 20
)

// Limits bounds a pool or a server. The zero value means the defaults; so does each field that is zero.
type Limits struct {
	StreamWindow    int64 // bytes a peer may send on a new stream before we say more
	MaxStreamWindow int64 // bytes a stream's window may grow to
	ConnWindow      int64 // bytes a peer may have in flight on a tunnel
	MaxFrameSize    int   // bytes of a frame's payload that a peer may send

	MaxStreams    int // concurrent streams: announced by a server, kept by a client
	MaxHeaderList int // bytes of a header list, counted as RFC 9113 section 6.5.2 says
	SendQueue     int // plaintext bytes that wait for one tunnel's socket

	PingInterval     time.Duration // quiet time before a PING; negative turns PINGs off
	PingTimeout      time.Duration // silence after a PING that ends the tunnel
	HandshakeTimeout time.Duration // for dialling and TLS

	IdleTimeout  time.Duration // pool: a tunnel without streams ends after it
	ConnsPerKey  int           // pool: tunnels per key
	BusyConns    int           // pool: tunnels per key that are opened only because the others are busy
	MaxConns     int           // pool: tunnels of all keys
	OpenAttempts int           // pool: tunnels tried for one stream when a peer refuses it unprocessed

	// Memory is shared by every pool and server that is given the same one, so that one process has one cap.
	// If it is nil, the pool or server makes its own.
	Memory *Memory
}

// defaultOpenAttempts: the first try, and tunnels that drain one after the other while a mesh is upgraded.
const defaultOpenAttempts = 5

func orDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// withDefaults fills in what is zero; the two sides differ in two figures.
func (l Limits) withDefaults(client bool) Limits {
	streams, list := defaultServerStreams, defaultServerHeaderList
	if client {
		streams, list = defaultClientStreams, defaultClientHeaderList
	}
	orDefault(&l.StreamWindow, defaultStreamWindow)
	orDefault(&l.MaxStreamWindow, max(defaultMaxStreamWindow, l.StreamWindow))
	orDefault(&l.ConnWindow, defaultConnWindow)
	orDefault(&l.MaxFrameSize, defaultMaxFrameSize)
	orDefault(&l.MaxStreams, streams)
	orDefault(&l.MaxHeaderList, list)
	orDefault(&l.SendQueue, defaultSendQueue)
	orDefault(&l.PingInterval, defaultPingInterval)
	orDefault(&l.PingTimeout, defaultPingTimeout)
	orDefault(&l.HandshakeTimeout, defaultHandshakeTimeout)
	orDefault(&l.IdleTimeout, defaultIdleTimeout)
	orDefault(&l.ConnsPerKey, defaultConnsPerKey)
	orDefault(&l.BusyConns, defaultBusyConns)
	orDefault(&l.MaxConns, defaultConns)
	orDefault(&l.OpenAttempts, defaultOpenAttempts)
	if l.Memory == nil {
		l.Memory = NewMemory(0, 0)
	}
	return l
}
