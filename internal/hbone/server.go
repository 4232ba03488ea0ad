package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
)

// ServerConfig configures a Server.
type ServerConfig struct {
	// TLS holds the certificate and the verification of peers. The server clones it and adds what HBONE fixes.
	TLS *tls.Config
	// Handle is called on its own goroutine for every request, CONNECT or not. It calls Accept or Reject, once. ctx ends
	// when the peer resets the stream or the tunnel ends.
	Handle func(ctx context.Context, r *Request)
	Limits Limits
	Log    *slog.Logger // nil discards
}

// Server serves the far end of tunnels.
type Server struct {
	cfg ServerConfig
	lim Limits
	log *slog.Logger
	tls *tls.Config
	err error // of the configuration

	mu       sync.Mutex
	conns    map[*conn]struct{}
	pending  map[*net.TCPConn]struct{} // in their handshake
	draining bool
	closed   bool
	wg       sync.WaitGroup
}

// NewServer makes a server. Close ends it.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{
		cfg: cfg, lim: cfg.Limits.withDefaults(false), log: orDiscard(cfg.Log),
		conns: map[*conn]struct{}{}, pending: map[*net.TCPConn]struct{}{},
	}
	s.tls, s.err = serverTLS(cfg.TLS)
	if s.err == nil && cfg.Handle == nil {
		s.err = errors.New("hbone: server without Handle")
	}
	return s
}

func orDiscard(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelError}))
	}
	return l
}

// ServeConn owns tcp from here on and returns when the tunnel has ended: nil if either side ended it in good order.
// When ctx ends, the tunnel and its streams are reset.
func (s *Server) ServeConn(ctx context.Context, tcp *net.TCPConn) error {
	if err := s.add(tcp); err != nil {
		_ = tcp.Close()
		return err
	}
	defer s.wg.Done()
	c, err := s.accept(ctx, tcp)
	if err != nil {
		_ = tcp.Close()
		return fmt.Errorf("accept tunnel from %q: %w", tcp.RemoteAddr(), err)
	}
	c.start()
	stop := context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
	defer stop()
	if s.isDraining() {
		c.drain()
	}
	err = c.wait()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	return err
}

// add counts a connection that has come.
func (s *Server) add(tcp *net.TCPConn) error {
	if s.err != nil {
		return s.err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.wg.Add(1)
	s.pending[tcp] = struct{}{}
	return nil
}

// accept runs the handshake.
func (s *Server) accept(ctx context.Context, tcp *net.TCPConn) (*conn, error) {
	c, err := secure(ctx, tcp, s.tls, false, s.lim, s.log)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, tcp)
	if err == nil && s.closed {
		err = net.ErrClosed
	}
	if err != nil {
		return nil, err
	}
	c.onRequest = s.handle
	s.conns[c] = struct{}{}
	return c, nil
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

func (s *Server) list() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		l = append(l, c)
	}
	return l
}

// Drain sends GOAWAY on every tunnel, now and later; open streams go on, and each tunnel ends with its last stream.
func (s *Server) Drain() {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	for _, c := range s.list() {
		c.drain()
	}
}

// Stats describes every live tunnel.
func (s *Server) Stats() []ConnInfo {
	var l []ConnInfo
	for _, c := range s.list() {
		l = append(l, c.info())
	}
	return l
}

// Close resets what is still open and returns when every tunnel has ended.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed, s.draining = true, true
	for tcp := range s.pending {
		_ = tcp.Close() // ends the handshake
	}
	s.mu.Unlock()
	for _, c := range s.list() {
		c.fail(nil)
	}
	s.wg.Wait()
	return nil
}

// handle runs the handler for one request.
func (s *Server) handle(st *Stream, l fieldList) {
	c := st.c
	ctx, cancel := context.WithCancel(c.ctx)
	st.mu.Lock()
	st.cancel = cancel
	st.mu.Unlock()
	c.calls.Add(1)
	go func() {
		defer c.calls.Done()
		defer cancel()
		s.cfg.Handle(ctx, newRequest(st, l))
		c.handlerDone(st)
		if st.inPhase(phaseHandling) {
			s.log.Error("handler returned without an answer", "remote", c.remote, "authority", l.authority)
			st.Reset(CodeInternal)
		}
	}()
}
