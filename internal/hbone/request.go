package hbone

import (
	"crypto/tls"
	"net/netip"
	"strings"
)

// Request is a request that waits for Accept or Reject.
type Request struct {
	Method, Authority string
	Headers           []Header // without pseudo-header fields
	TLS               tls.ConnectionState
	Local, Remote     netip.AddrPort // of the tunnel's TCP connection

	s *Stream
}

func newRequest(s *Stream, l fieldList) *Request {
	r := &Request{
		Method: l.method, Authority: l.authority, Headers: l.fields,
		TLS: s.PeerTLS(), Local: s.c.local, Remote: s.c.remote, s: s,
	}
	if r.Authority == "" {
		r.Authority = r.Header("host")
	}
	return r
}

// Header returns the value of the named field, in lower case; several lines are joined with ", " as RFC 9110 section 5.3
// says.
func (r *Request) Header(name string) string {
	v, n := "", 0
	for _, h := range r.Headers {
		if h.Name != name {
			continue
		}
		if n++; n == 1 {
			v = h.Value
		} else {
			v = strings.Join([]string{v, h.Value}, ", ")
		}
	}
	return v
}

// statusTooLarge answers a header list beyond our limit, RFC 6585 section 5.
const statusTooLarge = 431

// Reject answers with the status and ends the stream.
func (r *Request) Reject(status int) {
	c := r.s.c
	if c.enter() != nil {
		return
	}
	defer c.wg.Done()
	if !r.s.inPhase(phaseHandling) {
		return
	}
	c.mu.Lock()
	if !r.s.rstQueued && !c.leaving {
		r.s.rstQueued = true
		c.reject(r.s.id, status)
	}
	c.flushHere()
	r.s.end(&StatusError{Status: status})
}

// reject queues an answer without a body, and RST_STREAM(NO_ERROR) so that the peer sends nothing more, RFC 9113 section
// 8.1. It is called with mu held.
func (c *conn) reject(id uint32, status int) {
	block := c.enc.response(nil, status, nil)
	c.ctl = appendHeaderBlock(c.ctl, id, true, block)
	c.ctl = appendRST(c.ctl, id, CodeNoError)
}

// Accept answers 200 and returns the stream, on which the caller then calls Splice or Reset.
func (r *Request) Accept(headers []Header) (*Stream, error) {
	s, c := r.s, r.s.c
	if err := checkFields(headers); err != nil {
		return nil, err
	}
	if err := c.enter(); err != nil {
		return nil, err
	}
	defer c.wg.Done()
	s.mu.Lock()
	if s.phase != phaseHandling {
		err := s.err
		s.mu.Unlock()
		if err == nil {
			err = ErrStreamClosed
		}
		return nil, err
	}
	s.phase = phaseOpen
	c.mu.Lock()
	s.mu.Unlock()
	if !s.rstQueued && !c.leaving {
		block := c.enc.response(make([]byte, 0, 128), 200, headers)
		c.ctl = appendHeaderBlock(c.ctl, s.id, false, block)
	}
	c.flushHere()
	return s, nil
}

// request handles HEADERS that open a stream.
func (c *conn) request(h frameHeader, l fieldList) error {
	c.mu.Lock()
	c.maxPeer = h.stream
	if c.leaving || c.draining == drainFinal {
		// RFC 9113 section 6.8: above the last id that GOAWAY named; the peer opens it elsewhere.
		c.ctl = appendRST(c.ctl, h.stream, CodeRefusedStream)
		err := c.answer(c.ctl)
		c.mu.Unlock()
		return err
	}
	var code Code
	bad := l.checkRequest()
	switch {
	case len(c.streams) >= c.lim.MaxStreams || c.handled >= c.lim.MaxStreams:
		// RFC 9113 section 5.1.2. Handlers of streams that are gone count as well: a peer that opens and resets makes no
		// more work than one that keeps its streams.
		code = CodeRefusedStream
	case bad != "":
		code = CodeProtocol // RFC 9113 section 8.1.1
	}
	if code != CodeNoError || l.tooLarge {
		if code != CodeNoError {
			c.ctl = appendRST(c.ctl, h.stream, code)
		} else {
			c.reject(h.stream, statusTooLarge)
		}
		err := c.answer(c.ctl)
		c.mu.Unlock()
		c.log.Debug("refused request", "remote", c.remote, "code", codeName(code), "reason", bad, "tooLarge", l.tooLarge)
		if err == nil {
			err = c.useless()
		}
		return err
	}
	s := newStream(c, h.stream, phaseHandling)
	s.sendWin, s.handling, s.gotEnd = sendWindow(c.peer.initialWindow), true, h.has(flagEndStream)
	c.streams[s.id] = s
	c.opened++
	c.mu.Unlock()
	c.onRequest(s, l)
	return nil
}

func (s *Stream) inPhase(p phase) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase == p
}
