package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"io"

	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawPeer speaks HTTP/2 frame by frame over a real handshake.
type rawPeer struct {
	t  *testing.T
	tc *tls.Conn
	fr *http2.Framer
}

// rawClient connects to the world's server; it has sent the preface and read the server's SETTINGS.
func rawClient(t *testing.T, w *world) *rawPeer {
	t.Helper()
	p := rawDial(t, w, "h2")
	io.WriteString(p.tc, http2.ClientPreface)
	p.fr.WriteSettings()
	p.readSettings()
	return p
}

func rawDial(t *testing.T, w *world, protos ...string) *rawPeer {
	t.Helper()
	cfg := w.ca.clientTLS(t, serverID)
	cfg.NextProtos = protos
	tc, err := tls.Dial("tcp", w.ln.Addr().String(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	tc.SetDeadline(time.Now().Add(testDeadline))
	t.Cleanup(func() { tc.Close() })
	return &rawPeer{t: t, tc: tc, fr: http2.NewFramer(tc, tc)}
}

// readSettings reads SETTINGS, acknowledges them, and returns them.
func (p *rawPeer) readSettings() map[http2.SettingID]uint32 {
	p.t.Helper()
	f, err := p.fr.ReadFrame()
	if err != nil {
		p.t.Fatal(err)
	}
	sf, ok := f.(*http2.SettingsFrame)
	if !ok {
		p.t.Fatalf("first frame is %v", f)
	}
	m := map[http2.SettingID]uint32{}
	sf.ForeachSetting(func(s http2.Setting) error { m[s.ID] = s.Val; return nil })
	p.fr.WriteSettingsAck()
	return m
}

func block(fields ...string) []byte {
	var b strings.Builder
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return []byte(b.String())
}

func connectBlock() []byte { return block(":method", "CONNECT", ":authority", "10.0.0.1:80") }

func (p *rawPeer) headers(id uint32, b []byte) {
	p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b, EndHeaders: true})
}

// expect reads until a GOAWAY or RST_STREAM and returns its code, or the status of an answer.
func (p *rawPeer) expect() (what string, code uint32) {
	p.t.Helper()
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			return "error", 0
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			return "goaway", uint32(f.ErrCode)
		case *http2.RSTStreamFrame:
			return "rst", uint32(f.ErrCode)
		case *http2.HeadersFrame:
			return "headers", 0
		}
	}
}

// status reads until an answer's HEADERS.
func (p *rawPeer) status(id uint32) string {
	p.t.Helper()
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			p.t.Fatal(err)
		}
		if h, ok := f.(*http2.HeadersFrame); ok && h.StreamID == id {
			var status string
			d := hpack.NewDecoder(0, func(f hpack.HeaderField) {
				if f.Name == ":status" {
					status = f.Value
				}
			})
			if _, err := d.Write(h.HeaderBlockFragment()); err != nil {
				p.t.Fatal(err)
			}
			return status
		}
	}
}

func TestAnnouncedSettings(t *testing.T) {
	w := newWorld(t, worldOptions{})
	p := rawDial(t, w, "h2")
	io.WriteString(p.tc, http2.ClientPreface)
	p.fr.WriteSettings()
	got := p.readSettings()
	want := map[http2.SettingID]uint32{
		http2.SettingHeaderTableSize: 0, http2.SettingMaxConcurrentStreams: 200,
		http2.SettingInitialWindowSize: 256 << 10, http2.SettingMaxFrameSize: 1 << 20, http2.SettingMaxHeaderListSize: 64 << 10,
	}
	for id, v := range want {
		if g, ok := got[id]; !ok || g != v {
			t.Errorf("%v is %d (sent: %v), want %d", id, g, ok, v)
		}
	}
	f, err := p.fr.ReadFrame()
	if wu, ok := f.(*http2.WindowUpdateFrame); err != nil || !ok || wu.StreamID != 0 || wu.Increment != 16<<20-65535 {
		t.Errorf("after SETTINGS came %v, %v", f, err)
	}
}

func TestALPN(t *testing.T) {
	w := newWorld(t, worldOptions{})
	cfg := w.ca.clientTLS(t, serverID)
	cfg.NextProtos = []string{"http/1.1"}
	if c, err := tls.Dial("tcp", w.ln.Addr().String(), cfg); err == nil {
		c.Close()
		t.Error("a client that offers http/1.1 alone was let in")
	} else if !strings.Contains(err.Error(), "no application protocol") {
		t.Errorf("refused with %v", err)
	}
	cfg = w.ca.clientTLS(t, serverID)
	cfg.MaxVersion = tls.VersionTLS12
	if c, err := tls.Dial("tcp", w.ln.Addr().String(), cfg); err == nil {
		c.Close()
		t.Error("a client with TLS 1.2 was let in")
	}
	p := rawDial(t, w) // offers nothing
	io.WriteString(p.tc, http2.ClientPreface)
	p.fr.WriteSettings()
	p.readSettings()
}

// TestProtocolErrors: what a peer sends that it must not, and how we end it, RFC 9113.
func TestProtocolErrors(t *testing.T) {
	w := newWorld(t, worldOptions{handle: hold})
	open := func(p *rawPeer) {
		p.headers(1, connectBlock())
		p.status(1)
	}
	raw := func(typ http2.FrameType, flags http2.Flags, id uint32, payload ...byte) func(*rawPeer) {
		return func(p *rawPeer) { p.fr.AllowIllegalWrites = true; p.fr.WriteRawFrame(typ, flags, id, payload) }
	}
	request := func(fields ...string) func(*rawPeer) {
		return func(p *rawPeer) { p.headers(3, block(fields...)) }
	}
	for _, tc := range []struct {
		name string
		send func(p *rawPeer)
		want string
		code Code
	}{
		{"DATA on stream 0", raw(http2.FrameData, 0, 0, 1), "goaway", CodeProtocol},
		{"DATA on an idle stream", raw(http2.FrameData, 0, 99, 1), "goaway", CodeProtocol},
		{"RST_STREAM on an idle stream", raw(http2.FrameRSTStream, 0, 99, 0, 0, 0, 8), "goaway", CodeProtocol},
		{"RST_STREAM of 3 bytes", raw(http2.FrameRSTStream, 0, 1, 0, 0, 0), "goaway", CodeFrameSize},
		{"WINDOW_UPDATE of 0 on the connection", raw(http2.FrameWindowUpdate, 0, 0, 0, 0, 0, 0), "goaway", CodeProtocol},
		{"WINDOW_UPDATE of 0 on a stream", raw(http2.FrameWindowUpdate, 0, 1, 0, 0, 0, 0), "rst", CodeProtocol},
		{"WINDOW_UPDATE overflows the connection", raw(http2.FrameWindowUpdate, 0, 0, 0x7f, 0xff, 0xff, 0xff), "goaway", CodeFlowControl},
		{"WINDOW_UPDATE overflows a stream", raw(http2.FrameWindowUpdate, 0, 1, 0x7f, 0xff, 0xff, 0xff), "rst", CodeFlowControl},
		{"SETTINGS of 5 bytes", raw(http2.FrameSettings, 0, 0, 0, 0, 0, 0, 0), "goaway", CodeFrameSize},
		{"SETTINGS on a stream", raw(http2.FrameSettings, 0, 1), "goaway", CodeProtocol},
		{"SETTINGS acknowledgement with payload", raw(http2.FrameSettings, 1, 0, 0, 0, 0, 0, 0, 0), "goaway", CodeFrameSize},
		{"INITIAL_WINDOW_SIZE too large", raw(http2.FrameSettings, 0, 0, 0, 4, 0x80, 0, 0, 0), "goaway", CodeFlowControl},
		{"MAX_FRAME_SIZE too small", raw(http2.FrameSettings, 0, 0, 0, 5, 0, 0, 0, 1), "goaway", CodeProtocol},
		{"PING of 7 bytes", raw(http2.FramePing, 0, 0, 1, 2, 3, 4, 5, 6, 7), "goaway", CodeFrameSize},
		{"PING on a stream", raw(http2.FramePing, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8), "goaway", CodeProtocol},
		{"PUSH_PROMISE", raw(http2.FramePushPromise, 4, 1, 0, 0, 0, 2), "goaway", CodeProtocol},
		{"PRIORITY of 4 bytes", raw(http2.FramePriority, 0, 1, 0, 0, 0, 0), "goaway", CodeFrameSize},
		{"CONTINUATION alone", raw(http2.FrameContinuation, 4, 1), "goaway", CodeProtocol},
		{"HEADERS on an even stream", raw(http2.FrameHeaders, 4, 2, connectBlock()...), "goaway", CodeProtocol},
		{"HEADERS on an open stream", raw(http2.FrameHeaders, 5, 1, connectBlock()...), "rst", CodeProtocol},
		{"HEADERS that HPACK cannot decode", raw(http2.FrameHeaders, 4, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), "goaway", CodeCompression},
		{"padding longer than DATA", raw(http2.FrameData, 8, 1, 5, 0), "goaway", CodeProtocol},
		{"padding longer than HEADERS", raw(http2.FrameHeaders, 4|8, 3, 5, 0), "goaway", CodeProtocol},
		{"frame inside a header block", func(p *rawPeer) {
			raw(http2.FrameHeaders, 0, 3)(p)
			raw(http2.FramePing, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8)(p)
		}, "goaway", CodeProtocol},
		{"header block in too many frames", func(p *rawPeer) {
			raw(http2.FrameHeaders, 0, 3)(p)
			for range maxContinuations + 1 {
				raw(http2.FrameContinuation, 0, 3)(p)
			}
		}, "goaway", CodeEnhanceYourCalm},
		{"header block without end", func(p *rawPeer) {
			raw(http2.FrameHeaders, 0, 3)(p)
			for range 10 {
				raw(http2.FrameContinuation, 0, 3, make([]byte, 16000)...)(p)
			}
		}, "goaway", CodeEnhanceYourCalm},
		{"frame beyond MAX_FRAME_SIZE", func(p *rawPeer) {
			p.tc.Write([]byte{0x10, 0, 1, 0, 0, 0, 0, 0, 1})
		}, "goaway", CodeFrameSize},
		{"CONNECT with :path", request(":method", "CONNECT", ":authority", "a:1", ":path", "/"), "rst", CodeProtocol},
		{"CONNECT with :protocol", request(":method", "CONNECT", ":authority", "a:1", ":protocol", "websocket"), "rst", CodeProtocol},
		{"CONNECT without :authority", request(":method", "CONNECT"), "rst", CodeProtocol},
		{"request without :method", request(":authority", "a:1"), "rst", CodeProtocol},
		{"pseudo-header field after a regular one", request(":method", "CONNECT", "a", "b", ":authority", "a:1"), "rst", CodeProtocol},
		{"repeated pseudo-header field", request(":method", "CONNECT", ":authority", "a:1", ":authority", "b:1"), "rst", CodeProtocol},
		{"upper-case field name", request(":method", "CONNECT", ":authority", "a:1", "Abc", "b"), "rst", CodeProtocol},
		{"connection-specific field", request(":method", "CONNECT", ":authority", "a:1", "connection", "close"), "rst", CodeProtocol},
		{"DATA beyond the stream's window", func(p *rawPeer) {
			for range 20 { // more than 256 KiB, and nobody reads
				p.fr.WriteData(1, false, make([]byte, 16384))
			}
		}, "rst", CodeFlowControl},
		{"DATA after END_STREAM", func(p *rawPeer) {
			p.fr.WriteData(1, true, nil)
			p.fr.WriteData(1, false, []byte("x"))
		}, "rst", CodeStreamClosed},
		{"RST_STREAM flood", func(p *rawPeer) {
			go func() {
				for i := uint32(0); i < floodBurst+floodRate*20; i++ {
					p.headers(3+2*i, connectBlock())
					if p.fr.WriteRSTStream(3+2*i, http2.ErrCodeCancel) != nil {
						return
					}
				}
			}()
			for {
				f, err := p.fr.ReadFrame()
				if err != nil {
					return
				}
				if g, ok := f.(*http2.GoAwayFrame); ok {
					if Code(g.ErrCode) != CodeEnhanceYourCalm {
						t.Errorf("rapid reset: GOAWAY %v", g.ErrCode)
					}
					return
				}
			}
		}, "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := rawClient(t, w)
			open(p)
			tc.send(p)
			if tc.want == "" {
				return
			}
			what, code := p.expect()
			for what == "headers" {
				what, code = p.expect()
			}
			if what != tc.want || code != tc.code {
				t.Errorf("got %s %s, want %s %s", what, codeName(code), tc.want, codeName(tc.code))
			}
			if tc.want == "rst" { // nothing else is disturbed
				p.headers(101, connectBlock())
				if s := p.status(101); s != "200" {
					t.Errorf("the next stream was answered %s", s)
				}
			}
		})
	}
}

func TestPrefaceThatIsNotHTTP2(t *testing.T) {
	w := newWorld(t, worldOptions{})
	p := rawDial(t, w)
	io.WriteString(p.tc, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if what, code := p.expect(); what != "goaway" || code != CodeProtocol {
		t.Errorf("got %s %s", what, codeName(code))
	}
}

func TestTooLargeHeaderListIs431(t *testing.T) {
	w := newWorld(t, worldOptions{})
	p := rawClient(t, w)
	b := append(connectBlock(), block("big", strings.Repeat("x", 70<<10))...)
	p.fr.AllowIllegalWrites = true
	p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:10]})
	for b = b[10:]; len(b) > 0; {
		n := min(len(b), 16384)
		p.fr.WriteContinuation(1, n == len(b), b[:n])
		b = b[n:]
	}
	if s := p.status(1); s != "431" {
		t.Errorf("status %s", s)
	}
	p.headers(3, connectBlock())
	if s := p.status(3); s != "200" {
		t.Errorf("the next stream was answered %s", s)
	}
}

func TestStreamsBeyondTheLimitAreRefused(t *testing.T) {
	w := newWorld(t, worldOptions{handle: hold, server: Limits{MaxStreams: 2}})
	p := rawClient(t, w)
	for _, id := range []uint32{1, 3} {
		p.headers(id, connectBlock())
		p.status(id)
	}
	p.headers(5, connectBlock())
	if what, code := p.expect(); what != "rst" || code != CodeRefusedStream {
		t.Errorf("got %s %s", what, codeName(code))
	}
}

func TestGracefulDrainNamesTheLastStream(t *testing.T) {
	w := newWorld(t, worldOptions{handle: hold})
	p := rawClient(t, w)
	p.headers(1, connectBlock())
	p.status(1)
	w.server.Drain()
	var last []uint32
	answered := false
	for len(last) < 2 || !answered {
		f, err := p.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			last = append(last, f.LastStreamID)
		case *http2.HeadersFrame:
			answered = f.StreamID == 3
		case *http2.PingFrame:
			// A stream that was on its way is served, then the answer to PING closes the door.
			p.headers(3, connectBlock())
			p.fr.WritePing(true, f.Data)
		}
	}
	if last[0] != 1<<31-1 || last[1] != 3 {
		t.Errorf("GOAWAY named %v, want 2^31-1 and 3", last)
	}
	p.headers(5, connectBlock())
	if what, code := p.expect(); what != "rst" || code != CodeRefusedStream {
		t.Errorf("a stream after GOAWAY: %s %s", what, codeName(code))
	}
}

func TestHeaderTableIsUnusedAfterTheAck(t *testing.T) {
	d := newHeaderDecoder(1000)
	indexed := []byte{0x40, 1, 'a', 1, 'b'} // literal with incremental indexing
	if _, err := d.decode(indexed); err != nil {
		t.Fatal(err)
	}
	if l, err := d.decode([]byte{0x80 | 62}); err != nil || len(l.fields) != 1 {
		t.Fatalf("before the acknowledgement: %v, %v", l, err)
	}
	d.dropTable()
	var ce *ConnError
	if _, err := d.decode([]byte{0x80 | 62}); !errors.As(err, &ce) || ce.Code != CodeCompression {
		t.Errorf("a reference to the table after the acknowledgement: %v", err)
	}
	if _, err := d.decode([]byte{0x3f, 0xe1, 0x1f}); !errors.As(err, &ce) { // size update to 4096
		t.Errorf("a table that grows after the acknowledgement: %v", err)
	}
}

func TestServerWithoutTLSRefuses(t *testing.T) {
	s := NewServer(ServerConfig{Handle: hold})
	a, b := tcpPair(t)
	defer b.Close()
	if err := s.ServeConn(context.Background(), a); err == nil {
		t.Error("served without a TLS configuration")
	}
	if _, err := b.Read(make([]byte, 1)); err != io.EOF && !isReset(err) {
		t.Errorf("the connection was left open: %v", err)
	}
}
