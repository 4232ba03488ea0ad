package hbone

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
)

// eventLog is a frameSink that writes down what it gets; DATA pieces are joined.
type eventLog struct {
	events  []string
	payload []byte
	held    int // most bytes gathered for one frame or block
}

func (l *eventLog) dataStart(h frameHeader) error {
	l.payload = nil
	l.events = append(l.events, fmt.Sprintf("data %+v", h))
	return nil
}
func (l *eventLog) data(p []byte) { l.payload = append(l.payload, p...) }
func (l *eventLog) dataEnd(frameHeader) error {
	l.events = append(l.events, fmt.Sprintf("payload %x", l.payload))
	return nil
}
func (l *eventLog) headers(h frameHeader, b []byte) error {
	l.held = max(l.held, len(b))
	l.events = append(l.events, fmt.Sprintf("headers %+v %x", h, b))
	return nil
}
func (l *eventLog) control(h frameHeader, p []byte) error {
	l.held = max(l.held, len(p))
	l.events = append(l.events, fmt.Sprintf("control %+v %x", h, p))
	return nil
}

func frames(write func(f *http2.Framer)) []byte {
	var b bytes.Buffer
	f := http2.NewFramer(&b, nil)
	f.AllowIllegalWrites = true
	write(f)
	return b.Bytes()
}

// conversations are byte streams as peers send them, for every corpus.
func conversations(client bool) [][]byte {
	connect := connectBlock()
	if client {
		connect = block(":status", "200", "baggage", "a=b")
	}
	wrap := func(b []byte) []byte {
		b = append(frames(func(f *http2.Framer) { f.WriteSettings() }), b...)
		if client {
			return b
		}
		return append([]byte(http2.ClientPreface), b...)
	}
	return [][]byte{
		wrap(nil),
		wrap(frames(func(f *http2.Framer) {
			f.WriteSettingsAck()
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connect, EndHeaders: true})
			f.WriteData(1, false, []byte("hello"))
			f.WriteDataPadded(1, false, []byte("padded"), make([]byte, 9))
			f.WriteWindowUpdate(1, 100)
			f.WriteWindowUpdate(0, 100)
			f.WritePing(false, [8]byte{1})
			f.WriteData(1, true, nil)
		})),
		wrap(frames(func(f *http2.Framer) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connect[:3], PadLength: 4})
			f.WriteContinuation(1, true, connect[3:])
			f.WriteRSTStream(1, http2.ErrCodeCancel)
			f.WriteGoAway(1, http2.ErrCodeNo, []byte("bye"))
			f.WritePriority(1, http2.PriorityParam{StreamDep: 3})
			f.WriteRawFrame(0x42, 1, 7, []byte("unknown"))
		})),
		wrap(frames(func(f *http2.Framer) {
			f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20})
			f.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		})),
	}
}

// FuzzDecoder: how the bytes are cut makes no difference, and nothing is gathered beyond the limits.
func FuzzDecoder(f *testing.F) {
	for _, c := range conversations(false) {
		f.Add(c, uint8(3))
		f.Add(c, uint8(1))
	}
	lim := Limits{}.withDefaults(false)
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		decode := func(step int) (*eventLog, error) {
			d, l := newDecoder(false, lim), &eventLog{}
			for rest := b; len(rest) > 0; {
				n := min(step, len(rest))
				if err := d.feed(rest[:n], l); err != nil {
					return l, err
				}
				rest = rest[n:]
			}
			return l, nil
		}
		whole, err1 := decode(len(b) + 1)
		parts, err2 := decode(int(cut) + 1)
		if diff := cmp.Diff(whole.events, parts.events); diff != "" {
			t.Errorf("events depend on how the bytes are cut:\n%s", diff)
		}
		if fmt.Sprint(err1) != fmt.Sprint(err2) {
			t.Errorf("errors depend on how the bytes are cut: %v, %v", err1, err2)
		}
		var ce *ConnError
		if err1 != nil && !errors.As(err1, &ce) {
			t.Errorf("error %v has no code", err1)
		}
		if whole.held > 2*lim.MaxHeaderList+headerBlockSlack {
			t.Errorf("gathered %d bytes", whole.held)
		}
	})
}

// FuzzFrameHeader: writing what was read gives the same bytes, but for the reserved bit.
func FuzzFrameHeader(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 1, 0, 0, 0, 1})
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < frameHeaderLen {
			return
		}
		h := parseFrameHeader(b)
		var out [frameHeaderLen]byte
		h.put(out[:])
		want := bytes.Clone(b[:frameHeaderLen])
		want[5] &= 0x7f
		if !bytes.Equal(out[:], want) {
			t.Errorf("%x became %x", b[:frameHeaderLen], out)
		}
		theirs, err := http2.ReadFrameHeader(bytes.NewReader(b))
		if err != nil || int(theirs.Length) != h.length || uint8(theirs.Type) != uint8(h.typ) || uint8(theirs.Flags) != h.flags || theirs.StreamID != h.stream {
			t.Errorf("x/net reads %v, %v; we read %+v", theirs, err, h)
		}
	})
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte{0, 4, 0, 0, 255, 255, 0, 5, 0, 0, 64, 0}, true)
	f.Add([]byte{0, 2, 0, 0, 0, 1}, true)
	f.Add([]byte{0, 3, 0, 0, 0}, false)
	f.Fuzz(func(t *testing.T, b []byte, fromServer bool) {
		s := initialPeerSettings()
		if err := s.apply(b, fromServer); err != nil {
			var ce *ConnError
			if !errors.As(err, &ce) {
				t.Errorf("error %v has no code", err)
			}
			return
		}
		if len(b)%settingLen != 0 || s.initialWindow < 0 || s.initialWindow > maxWindow || s.maxFrame < minMaxFrame || s.maxFrame > maxMaxFrame {
			t.Errorf("accepted %x as %+v", b, s)
		}
	})
}

// FuzzHeaderBlock: a block that we accept is one that x/net's decoder accepts, with the same fields; and a decoder whose
// table was dropped gives the same answer twice.
func FuzzHeaderBlock(f *testing.F) {
	f.Add(connectBlock())
	f.Add(block(":status", "200", "baggage", "a=b"))
	f.Add(block(":method", "GET", ":scheme", "https", ":path", "/", "host", "x"))
	f.Add([]byte{0x20, 0x82})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newHeaderDecoder(1 << 10)
		d.dropTable()
		l, err := d.decode(b)
		if err != nil {
			var ce *ConnError
			if !errors.As(err, &ce) {
				t.Errorf("error %v has no code", err)
			}
			return
		}
		again, err := d.decode(b)
		if err != nil {
			t.Fatalf("the same block fails the second time: %v", err)
		}
		if diff := cmp.Diff(l, again, cmp.AllowUnexported(fieldList{})); diff != "" {
			t.Errorf("the same block decodes otherwise the second time:\n%s", diff)
		}
		if l.bad != "" || l.tooLarge {
			return
		}
		// Without a table too: x/net allows a size update late in a block then, as we do.
		theirs, err := hpack.NewDecoder(0, nil).DecodeFull(b)
		if err != nil {
			t.Fatalf("x/net refuses it: %v", err)
		}
		var regular []Header
		for _, h := range theirs {
			if h.IsPseudo() {
				if p := l.pseudo(h.Name); p == nil || *p != h.Value {
					t.Errorf("%s is %q", h.Name, h.Value)
				}
			} else {
				regular = append(regular, Header{Name: h.Name, Value: h.Value})
			}
		}
		if diff := cmp.Diff(regular, l.fields); diff != "" {
			t.Error(diff)
		}
	})
}

// FuzzHeaderEncoder: what we write, x/net reads back.
func FuzzHeaderEncoder(f *testing.F) {
	f.Add("10.0.0.1:80", "baggage", "a=b", uint16(200))
	f.Add("[fd00::1]:443", "traceparent", string(bytes.Repeat([]byte("x"), 5000)), uint16(503))
	f.Fuzz(func(t *testing.T, authority, name, value string, status uint16) {
		fields := []Header{{Name: name, Value: value}}
		if checkFields(fields) != nil || status < 100 || status > 999 {
			return
		}
		var e headerEncoder
		req := e.request(nil, authority, fields)
		resp := e.response(nil, int(status), fields)
		d := hpack.NewDecoder(0, nil)
		for _, c := range []struct {
			block []byte
			want  []hpack.HeaderField
		}{
			{req, []hpack.HeaderField{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: authority}, {Name: name, Value: value}}},
			{resp, []hpack.HeaderField{{Name: ":status", Value: fmt.Sprint(status)}, {Name: name, Value: value}}},
		} {
			got, err := d.DecodeFull(c.block)
			if err != nil {
				t.Fatalf("x/net refuses %x: %v", c.block, err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		}
	})
}

// plainRecords is a recordLayer without TLS, so that a fuzzer reaches what is behind it.
type plainRecords struct {
	raw  syscall.RawConn
	buf  []byte
	wire []byte
}

func (r *plainRecords) open(fd uintptr) ([]byte, error) {
	n, err := recvSome(fd, r.buf)
	return r.buf[:n], err
}
func (r *plainRecords) more() bool { return false }
func (r *plainRecords) release()   {}
func (r *plainRecords) seal(b *sendBuf) (bool, error) {
	for ; b.sealed < b.plain; b.sealed += min(recordPlain, b.plain-b.sealed) {
		r.wire = append(r.wire, b.record(b.sealed / recordPlain)[:min(recordPlain, b.plain-b.sealed)]...)
	}
	return true, nil
}
func (r *plainRecords) flush() error {
	var ferr error
	err := r.raw.Write(func(fd uintptr) bool {
		for len(r.wire) > 0 {
			n, err := sendOne(fd, r.wire)
			if err == unix.EAGAIN {
				return false
			}
			if err != nil {
				ferr = err
				return true
			}
			r.wire = r.wire[n:]
		}
		return true
	})
	return errors.Join(err, ferr)
}
func (r *plainRecords) pending() bool      { return false }
func (r *plainRecords) closeNotify() error { return nil }

// plainConn returns a tunnel without TLS and its peer's socket.
func plainConn(t testing.TB, client bool) (*conn, *net.TCPConn) {
	t.Helper()
	a, b := tcpPair(t)
	raw, err := a.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	lim := Limits{}.withDefaults(client)
	rec := &plainRecords{raw: raw, buf: make([]byte, 64<<10)}
	return newConn(context.Background(), a, raw, rec, client, lim, slog.New(slog.NewTextHandler(io.Discard, nil))), b
}

// fuzzConn sends b to a tunnel and waits for its end.
func fuzzConn(t *testing.T, c *conn, peer *net.TCPConn, b []byte) {
	t.Helper()
	peer.SetDeadline(time.Now().Add(testDeadline))
	go func() {
		peer.Write(b)
		peer.CloseWrite()
	}()
	io.Copy(io.Discard, peer)
	peer.SetLinger(0) // leave no port behind
	peer.Close()
	ended := make(chan struct{})
	go func() {
		c.wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(testDeadline):
		t.Fatal("the tunnel did not end with its peer")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.streams) != 0 {
		t.Errorf("%d streams left in a tunnel that has ended", len(c.streams))
	}
	if n := c.mem.Buffered(); n != 0 {
		t.Errorf("%d bytes are still accounted for", n)
	}
}

// FuzzServerConn: whatever a client sends, the server's end comes to its end and keeps nothing.
func FuzzServerConn(f *testing.F) {
	for _, c := range conversations(false) {
		f.Add(c)
	}
	f.Add(bytes.Repeat(binary.BigEndian.AppendUint64(nil, 0x0000080600000000), 20))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, peer := plainConn(t, false)
		c.onRequest = (&Server{log: c.log, cfg: ServerConfig{Handle: func(ctx context.Context, r *Request) {
			if len(r.Authority)%2 == 0 {
				r.Reject(401)
			} else if s, err := r.Accept(nil); err == nil {
				<-s.Done()
			}
		}}}).handle
		c.start()
		fuzzConn(t, c, peer, b)
	})
}

// FuzzClientConn: whatever a server sends, the client's end comes to its end, and so do its streams.
func FuzzClientConn(f *testing.F) {
	for _, c := range conversations(true) {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, peer := plainConn(t, true)
		c.start()
		var streams []*Stream
		for range 2 {
			c.reservePlace()
			s, err := c.open("10.0.0.1:80", nil)
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, s)
		}
		fuzzConn(t, c, peer, b)
		for _, s := range streams {
			<-s.answered
			<-s.Done()
		}
	})
}
