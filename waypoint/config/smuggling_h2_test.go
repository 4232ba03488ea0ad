package config

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// field2 is a header of HTTP/2 as it is sent, checked by nobody.
type field2 = hpack.HeaderField

// request2 is what one stream sends.
type request2 struct {
	fields, trailers []field2
	body             string
}

// fields gives a list of names and values.
func fields(list ...string) []field2 {
	var out []field2
	for i := 0; i < len(list); i += 2 {
		out = append(out, field2{Name: list[i], Value: list[i+1]})
	}
	return out
}

// start is the pseudo headers of a method and a path.
func start(method, path string, more ...string) []field2 {
	return append(fields(":method", method, ":scheme", "http", ":path", path, ":authority", "web"), fields(more...)...)
}

// TestSmugglingHTTP2: what HTTP/2 can say and HTTP/1.1 cannot, to an application that speaks the latter.
func TestSmugglingHTTP2(t *testing.T) {
	const reset = "reset"
	cases := []struct {
		name string
		request2
		// want is the status, or that the stream or its connection ends without one.
		want  string
		heard []string
	}{
		{"plain", request2{fields: start("GET", "/a")}, "200", []string{"GET /a "}},
		{"body", request2{fields: start("POST", "/a", "content-length", "3"), body: "abc"}, "200", []string{"POST /a abc"}},
		{"length too short", request2{fields: start("POST", "/maybe", "content-length", "0"), body: hidden}, reset, nil},
		{"length too long", request2{fields: start("POST", "/maybe", "content-length", "999"), body: "abc"}, reset, nil},
		{"two lengths", request2{fields: start("POST", "/a", "content-length", "3", "content-length", "0"), body: "abc"}, reset, nil},
		{"coding", request2{fields: start("POST", "/a", "transfer-encoding", "chunked"), body: chunks("") + hidden}, reset, nil},
		{"connection", request2{fields: start("GET", "/a", "connection", "x-forwarded-client-cert")}, reset, nil},
		{"proxy-connection", request2{fields: start("GET", "/a", "proxy-connection", "keep-alive")}, reset, nil},
		{"keep-alive", request2{fields: start("GET", "/a", "keep-alive", "1")}, reset, nil},
		{"upgrade", request2{fields: start("GET", "/a", "upgrade", "h2c")}, reset, nil},
		{"te", request2{fields: start("GET", "/a", "te", "trailers, deflate")}, reset, nil},
		{"line break in a value", request2{fields: start("GET", "/a", "x", "a\r\nx-forwarded-client-cert: URI=forged")}, reset, nil},
		{"line feed in a value", request2{fields: start("GET", "/a", "x", "a\nx-forwarded-client-cert: URI=forged")}, reset, nil},
		{"NUL in a value", request2{fields: start("GET", "/a", "x", "a\x00b")}, reset, nil},
		{"line break in a name", request2{fields: start("GET", "/a", "x: y\r\nx-forwarded-client-cert", "URI=forged")}, reset, nil},
		{"colon in a name", request2{fields: start("GET", "/a", "x-forwarded-client-cert:", "URI=forged")}, reset, nil},
		{"space in a name", request2{fields: start("GET", "/a", "x-forwarded-client-cert ", "URI=forged")}, reset, nil},
		{"capitals in a name", request2{fields: start("GET", "/a", "X-Forwarded-Client-Cert", "URI=forged")}, reset, nil},
		{"no name", request2{fields: start("GET", "/a", "", "x")}, reset, nil},
		{"line break in the path", request2{fields: start("GET", "/a HTTP/1.1\r\nhost: web\r\n\r\nGET /admin")}, reset, nil},
		{"space in the path", request2{fields: start("GET", "/a HTTP/1.1")}, reset, nil},
		{"line break in the method", request2{fields: start("GET /admin HTTP/1.1\r\nhost: web\r\n\r\nGET", "/a")}, reset, nil},
		{"space in the method", request2{fields: start("GET /admin", "/a")}, reset, nil},
		{"path in the authority", request2{fields: fields(":method", "GET", ":scheme", "http", ":path", "/a", ":authority", "web/admin")}, reset, nil},
		{"line break in the authority", request2{fields: fields(":method", "GET", ":scheme", "http", ":path", "/a", ":authority", "web\r\nx: y")}, reset, nil},
		{"no authority", request2{fields: fields(":method", "GET", ":scheme", "http", ":path", "/a")}, reset, nil},
		{"host instead", request2{fields: fields(":method", "GET", ":scheme", "http", ":path", "/a", "host", "web")}, "200", []string{"GET /a "}},
		{"host beside", request2{fields: start("GET", "/a", "host", "other")}, "200", []string{"GET /a "}},
		{"no path", request2{fields: fields(":method", "GET", ":scheme", "http", ":authority", "web")}, reset, nil},
		{"empty path", request2{fields: start("GET", "")}, reset, nil},
		{"two paths", request2{fields: start("GET", "/a", ":path", "/admin")}, reset, nil},
		{"two methods", request2{fields: start("GET", "/a", ":method", "POST")}, reset, nil},
		{"unknown pseudo header", request2{fields: append(fields(":x", "y"), start("GET", "/a")...)}, reset, nil},
		{"pseudo header after others", request2{fields: append(fields("x", "y"), start("GET", "/a")...)}, reset, nil},
		{"scheme with more", request2{fields: fields(":method", "GET", ":scheme", "http://web/admin?", ":path", "/a", ":authority", "web")}, reset, nil},
		{"absolute path", request2{fields: start("GET", "http://web/admin")}, reset, nil},
		{"relative path", request2{fields: start("GET", "admin")}, reset, nil},
		{"asterisk", request2{fields: start("OPTIONS", "*")}, "404", nil},
		{"denied", request2{fields: start("GET", "/x/../admin")}, "403", nil},
		{"CONNECT", request2{fields: fields(":method", "CONNECT", ":authority", "web:80"), body: hidden}, "404", nil},
		{"extended CONNECT to another protocol", request2{fields: start("CONNECT", "/a", ":protocol", "connect-udp")}, "404", nil},
		{"websocket of what is denied", request2{fields: start("CONNECT", "/admin", ":protocol", "websocket")}, "403", nil},
		{"protocol without CONNECT", request2{fields: start("GET", "/a", ":protocol", "websocket")}, reset, nil},
		{"trailers", request2{fields: start("POST", "/a"), body: "abc", trailers: fields("x-forwarded-client-cert", "URI=forged", "x_envoy_internal", "forged", "x-own", "kept")}, "200", []string{"POST /a abc"}},
		{"pseudo header as a trailer", request2{fields: start("POST", "/a"), body: "abc", trailers: fields(":path", "/admin")}, reset, nil},
		{"length as a trailer", request2{fields: start("POST", "/a"), body: "abc", trailers: fields("content-length", "0", "transfer-encoding", "chunked")}, reset, nil},
		{"large header", request2{fields: start("GET", "/a", "x", strings.Repeat("a", maxHeadersKB<<10))}, reset, nil},
		{"many headers", request2{fields: start("GET", "/a", slices.Repeat([]string{"x", "y"}, 200)...)}, reset, nil},
	}
	both(t, func(t *testing.T, s *stage) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				got := s.say2(t, &c.request2)
				heard, garbage := s.app.take()
				checkHeard(t, heard, garbage, s.xfcc)
				var targets []string
				for _, h := range heard {
					// The head is on its way before anybody knows that the body does not fit.
					if h.target == "/maybe" && h.body == "" {
						continue
					}
					targets = append(targets, h.method+" "+h.target+" "+h.body)
				}
				if got != c.want || !slices.Equal(targets, c.heard) {
					t.Errorf("answer %s, want %s; the application got\n%q, want\n%q", got, c.want, targets, c.heard)
				}
			})
		}
	})
}

// say2 sends a request on a connection of its own, and gives the status, or "reset" if the stream or the connection ends
// without one.
func (s *stage) say2(t *testing.T, r *request2) string {
	t.Helper()
	c := s.open(t)
	defer c.Close()
	c.SetDeadline(time.Now().Add(deadline))
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&out, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.AllowIllegalWrites = true
	f.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	write := func(list []field2, end bool) {
		block.Reset()
		for _, h := range list {
			enc.WriteField(h)
		}
		rest := block.Bytes()
		first := rest[:min(len(rest), 16<<10)]
		rest = rest[len(first):]
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndStream: end, EndHeaders: len(rest) == 0})
		for len(rest) > 0 {
			part := rest[:min(len(rest), 16<<10)]
			rest = rest[len(part):]
			f.WriteContinuation(1, len(rest) == 0, part)
		}
	}
	write(r.fields, r.body == "" && r.trailers == nil)
	if r.body != "" {
		f.WriteData(1, r.trailers == nil, []byte(r.body))
	}
	if r.trailers != nil {
		write(r.trailers, true)
	}
	if _, err := c.Write(out.Bytes()); err != nil {
		return fmt.Sprint(err)
	}
	status := ""
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			if err != io.EOF {
				t.Log(err)
			}
			return "reset"
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			status = frame.PseudoValue("status")
			if frame.StreamEnded() {
				return status
			}
		case *http2.DataFrame:
			if frame.StreamEnded() {
				return status
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			if status != "" {
				return status
			}
			return "reset"
		}
	}
}
