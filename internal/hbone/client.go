package hbone

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
)

// dialConn makes a tunnel on tcp, which it owns. The tunnel is not started.
func dialConn(ctx context.Context, tcp *net.TCPConn, p *Pool, t Target) (*conn, error) {
	cfg, err := p.cfg.TLS(ctx, t)
	if err == nil {
		cfg, err = clientTLS(cfg)
	}
	var c *conn
	if err == nil {
		c, err = secure(ctx, tcp, cfg, true, p.lim, p.log)
	}
	if err != nil {
		_ = tcp.Close() // the first error is the one to tell
		return nil, err
	}
	return c, nil
}

// secure runs the handshake and makes the tunnel.
func secure(ctx context.Context, tcp *net.TCPConn, cfg *tls.Config, client bool, lim Limits, log *slog.Logger) (*conn, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("take socket: %w", err)
	}
	hctx, cancel := context.WithTimeout(ctx, lim.HandshakeTimeout)
	defer cancel()
	rec, state, err := startTLS(hctx, tcp, raw, cfg, client, lim.Memory)
	if err != nil {
		return nil, err
	}
	if err := checkALPN(&state, client); err != nil {
		return nil, err
	}
	base := ctx
	if client {
		base = context.Background() // a pool's tunnel outlives the dialling
	}
	c := newConn(base, tcp, raw, rec, client, lim, log)
	c.state = &state
	return c, nil
}

// open sends a CONNECT and uses up one reserved place, also when it fails. The answer is not awaited: see
// Stream.answered.
func (c *conn) open(authority string, fields []Header) (*Stream, error) {
	if err := checkFields(append([]Header{{Name: "authority", Value: authority}}, fields...)); err != nil {
		c.unreserve()
		return nil, err
	}
	if c.enter() != nil {
		c.unreserve()
		return nil, errNoRoom // it ended since the pool chose it
	}
	defer c.wg.Done()
	s := newStream(c, 0, phaseWaiting)
	c.mu.Lock()
	c.places--
	if c.err != nil || c.goneAway || c.leaving || c.nextID > streamIDMask || len(c.streams) >= c.capacity() {
		c.mu.Unlock()
		return nil, errNoRoom
	}
	s.id, s.sendWin = c.nextID, sendWindow(c.peer.initialWindow)
	c.nextID += 2
	c.opened++
	c.streams[s.id] = s
	block := c.enc.request(make([]byte, 0, 256), authority, fields)
	c.ctl = appendHeaderBlock(c.ctl, s.id, false, block)
	c.flushHere()
	return s, nil
}

// errNoRoom says that a tunnel takes no more streams; the pool tries another one.
var errNoRoom = fmt.Errorf("tunnel takes no more streams: %w", ErrTunnelClosed)

// response handles the answer to a CONNECT.
func (c *conn) response(s *Stream, h frameHeader, l fieldList) {
	status, bad := l.checkResponse()
	if bad == "" && l.tooLarge {
		bad = "header list is too large"
	}
	s.mu.Lock()
	if s.phase != phaseWaiting {
		bad = "HEADERS on an open stream" // RFC 9113 section 8.5: no trailers either
	}
	end := h.has(flagEndStream)
	if bad == "" && status < 200 && end {
		bad = "informational answer with END_STREAM"
	}
	switch {
	case bad != "":
		s.mu.Unlock()
		s.reset(streamErrorf(CodeProtocol, "%s", bad))
	case status < 200: // RFC 9110 section 15.2: the answer is still to come
		s.mu.Unlock()
	case status < 300: // RFC 9110 section 9.3.6: any of them makes a tunnel
		s.phase, s.fields, s.gotEnd = phaseOpen, l.fields, end
		s.mu.Unlock()
		close(s.answered)
	default:
		s.mu.Unlock()
		// The peer is done with us; the stream is closed by saying so too.
		c.queueRST(s, CodeCancel)
		s.end(&StatusError{Status: status, Headers: l.fields})
	}
}
