package config

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// attempt is something that a client sends, and what has to become of it.
type attempt struct {
	name, raw string
	// want are the statuses of the answers, heard what the application got: "method target body".
	want  []int
	heard []string
}

// get is a request without body; what is in lines comes after the host.
func get(target string, lines ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: web\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n"
}

// post has a body, whose length lines have to tell.
func post(body string, lines ...string) string {
	return "POST /p HTTP/1.1\r\nHost: web\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n" + body
}

// hidden is a request that an attacker wants to be read as the next one of somebody else.
const hidden = "GET /admin HTTP/1.1\r\nHost: web\r\nX-Forwarded-Client-Cert: URI=forged\r\n\r\n"

// chunks is a chunked body of one chunk, if there is any.
func chunks(body string) string {
	if body == "" {
		return "0\r\n\r\n"
	}
	return fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
}

func length(body string) string { return fmt.Sprintf("Content-Length: %d", len(body)) }

// framing are attempts to have two readers disagree on where a message ends.
func framing() []attempt {
	const chunked = "Transfer-Encoding: chunked"
	smuggle := chunks("") + hidden
	refused := []int{400}
	out := []attempt{
		{"CL.TE", post(smuggle, length(smuggle), chunked), refused, nil},
		{"TE.CL", post(chunks(hidden), chunked, "Content-Length: 4"), refused, nil},
		{"CL.0", post(hidden, "Content-Length: 0"), []int{200, 403}, []string{"POST /p "}},
		{"two lengths", post(hidden, "Content-Length: 0", length(hidden)), refused, nil},
		{"two lengths in one", post(hidden, fmt.Sprintf("Content-Length: 0, %d", len(hidden))), refused, nil},
		{"the same length twice", post("abc", "Content-Length: 3", "Content-Length: 3"), refused, nil},
		{"length with a sign", post("abc", "Content-Length: +3"), refused, nil},
		{"negative length", post(hidden, "Content-Length: -1"), refused, nil},
		{"length in hex", post("abc", "Content-Length: 0x3"), refused, nil},
		{"length with a space", post("abc", "Content-Length: 3 0"), refused, nil},
		{"length beyond 64 bits", post("abc", "Content-Length: 18446744073709551619"), refused, nil},
		{"length with underscore", post(hidden, "Content_Length: 0", length(hidden)), []int{200}, []string{"POST /p " + hidden}},
		{"coding with underscore", post(smuggle, "Transfer_Encoding: chunked", length(smuggle)), []int{200}, []string{"POST /p " + smuggle}},
		{"bare line feeds", "GET / HTTP/1.1\nHost: web\nX: y\n\n", []int{200}, []string{"GET / "}},
		{"bare line feed in a header", get("/", "X: a\nX-Forwarded-Client-Cert: URI=forged"), []int{200}, []string{"GET / "}},
		{"bare carriage return", get("/", "X: a\rX-Forwarded-Client-Cert: URI=forged"), []int{200}, []string{"GET / "}},
		{"NUL in a value", get("/", "X: a\x00b"), refused, nil},
		{"NUL in a name", get("/", "X\x00: b"), refused, nil},
		{"vertical tab", get("/", "X: a\vb"), refused, nil},
		{"obsolete folding", get("/", "X: a", " X-Forwarded-Client-Cert: URI=forged"), []int{200}, []string{"GET / "}},
		{"folded length", post(hidden, "Content-Length:", " 0"), []int{200, 403}, []string{"POST /p "}},
		{"folded first header", "GET / HTTP/1.1\r\n X: a\r\nHost: web\r\n\r\n", refused, nil},
		{"space before the colon", post(hidden, "Content-Length : 0", length(hidden)), refused, nil},
		{"tab before the colon", post(smuggle, "Transfer-Encoding\t: chunked", length(smuggle)), refused, nil},
		{"space in a name", get("/", "X Y: z"), refused, nil},
		{"no name", get("/", ": z"), refused, nil},
		{"line without colon", get("/", "Z"), refused, nil},
		{"chunk size with a sign", post("+3\r\nabc\r\n0\r\n\r\n", chunked), refused, nil},
		{"chunk size in 0x", post("0x3\r\nabc\r\n0\r\n\r\n", chunked), refused, nil},
		{"chunk size beyond 64 bits", post("10000000000000003\r\nabc\r\n0\r\n\r\n", chunked), refused, nil},
		{"chunk ended by line feeds", post("3\nabc\n0\n\n", chunked), refused, nil},
		{"chunk longer than said", post("3\r\nabcdef\r\n0\r\n\r\n", chunked), []int{200}, []string{"POST /p abc"}},
		{"bytes before the request", "\r\n" + get("/"), []int{200}, []string{"GET / "}},
		{"no host", "GET / HTTP/1.1\r\n\r\n", refused, nil},
		{"two hosts", get("/", "Host: other"), []int{200}, []string{"GET / "}},
		{"HTTP/1.0", "GET / HTTP/1.0\r\nHost: web\r\n\r\n", []int{426}, nil},
		{"HTTP/0.9", "GET /\r\n", []int{426}, nil},
		{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: web\r\n\r\n", []int{426}, nil},
		{"HTTP/3.0", "GET / HTTP/3.0\r\nHost: web\r\n\r\n", []int{426}, nil},
		{"space in the target", "GET / x HTTP/1.1\r\nHost: web\r\n\r\n", refused, nil},
		{"two spaces", "GET  / HTTP/1.1\r\nHost: web\r\n\r\n", []int{200}, []string{"GET / "}},
		{"method with control", "GE\x01T / HTTP/1.1\r\nHost: web\r\n\r\n", refused, nil},
		{"body of a GET", get("/", length(hidden)) + hidden, []int{200}, []string{"GET / " + hidden}},
		{"two requests", get("/a") + get("/b"), []int{200, 200}, []string{"GET /a ", "GET /b "}},
		{"denied after allowed", get("/a") + get("/admin"), []int{200, 403}, []string{"GET /a "}},
		{"large header", get("/", "X: "+strings.Repeat("a", maxHeadersKB<<10)), []int{431}, nil},
		{"many headers", get("/", strings.Repeat("X: a\r\n", 200)+"Y: b"), []int{431}, nil},
		{"long target", get("/" + strings.Repeat("a", maxHeadersKB<<10)), []int{431}, nil},
	}
	for _, v := range []string{
		"xchunked", "chunkedx", "chunked, identity", "identity, chunked", "identity", "chunked, chunked", "\x0bchunked", "chunked\x0b",
		"\"chunked\"", "gzip, chunked", "gzip", "chunked;q=1", "",
	} {
		out = append(out, attempt{fmt.Sprintf("coding %q", v), post(smuggle, "Transfer-Encoding: "+v, length(smuggle)), refused, nil})
	}
	return out
}

// form are attempts by what the request asks for, instead of how it is framed.
func form() []attempt {
	const ws = "Upgrade: websocket"
	return []attempt{
		{"absolute form", get("http://web/a"), []int{200}, []string{"GET /a "}},
		{"absolute form of what is denied", get("http://web/admin"), []int{403}, nil},
		{"absolute form of another host", get("http://other/a"), []int{200}, []string{"GET /a "}},
		{"absolute form with user", get("http://user@web/admin"), []int{403}, nil},
		{"absolute form of another scheme", get("ftp://web/admin"), []int{400}, nil},
		{"absolute form without path", get("http://web"), []int{200}, []string{"GET / "}},
		{"authority form", get("web:80"), []int{400}, nil},
		{"asterisk form", "OPTIONS * HTTP/1.1\r\nHost: web\r\n\r\n", []int{404}, nil},
		{"asterisk with GET", get("*"), []int{400}, nil},
		{"relative target", get("admin"), []int{400}, nil},
		{"host with path", "GET /a HTTP/1.1\r\nHost: web/admin\r\n\r\n", []int{400}, nil},
		{"host with user", "GET /a HTTP/1.1\r\nHost: a@b\r\n\r\n", []int{200}, []string{"GET /a "}},
		{"CONNECT", "CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n" + hidden, []int{404}, nil},
		{"CONNECT to another", "CONNECT 10.96.0.99:80 HTTP/1.1\r\nHost: 10.96.0.99:80\r\n\r\n", []int{404}, nil},
		{"h2c", get("/a", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), []int{200}, []string{"GET /a "}},
		{"h2c of what is denied", get("/admin", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), []int{403}, nil},
		{"h2c beside websocket", get("/a", "Connection: Upgrade", "Upgrade: websocket, h2c"), []int{403}, nil},
		{"h2c in a second header", get("/a", "Connection: Upgrade", ws, "Upgrade: h2c"), []int{403}, nil},
		{"upgrade to TLS", get("/a", "Connection: Upgrade", "Upgrade: TLS/1.0"), []int{403}, nil},
		{"upgrade without connection", get("/a", ws), []int{200}, []string{"GET /a "}},
		{"websocket of what is denied", get("/admin", "Connection: Upgrade", ws), []int{403}, nil},
		{"preface of HTTP/2 as a request", "PRI * HTTP/2.0\r\nHost: web\r\n\r\nSM\r\n\r\n", nil, nil},
		{"trailers", post("3\r\nabc\r\n0\r\nX-Forwarded-Client-Cert: URI=forged\r\nx-envoy-original-path: forged\r\n\r\n", "Transfer-Encoding: chunked", "Trailer: x-forwarded-client-cert"),
			[]int{200}, []string{"POST /p abc"}},
		{"connection names what tells the caller", get("/a", "Connection: close, X-Forwarded-Client-Cert", "Y: z"), []int{200}, []string{"GET /a "}},
		{"connection names what chooses the route", get("/a", "Connection: x-ambit-authority, x-forwarded-client-cert"), []int{200}, []string{"GET /a "}},
		{"connection names the length", post("abc", "Connection: content-length", "Content-Length: 3"), []int{200}, []string{"POST /p abc"}},
	}
}

// TestSmugglingHTTP1 sends what the tables say and, if the connection survives, one more request, which shows that both
// sides are in step.
func TestSmugglingHTTP1(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		for _, a := range append(framing(), form()...) {
			t.Run(a.name, func(t *testing.T) {
				statuses, last := s.say(t, a.raw)
				got, garbage := s.app.take()
				checkHeard(t, got, garbage, s.xfcc)
				want := slices.Clone(a.heard)
				if last {
					want = append(want, "GET /last ")
				}
				var targets []string
				for _, h := range got {
					targets = append(targets, h.method+" "+h.target+" "+h.body)
				}
				if !slices.Equal(statuses, a.want) || !slices.Equal(targets, want) {
					t.Errorf("answers %v, want %v; the application got\n%q, want\n%q", statuses, a.want, targets, want)
				}
			})
		}
	})
}

// say sends bytes on a new connection and reads answers until there are none. Last tells whether the connection took
// another request, and answered that.
func (s *stage) say(t *testing.T, raw string) (statuses []int, last bool) {
	t.Helper()
	c := s.open(t)
	defer c.Close()
	c.SetDeadline(time.Now().Add(deadline))
	// The client closes after the last request, so that Envoy closes after the last answer.
	io.WriteString(c, raw)
	br := bufio.NewReader(c)
	io.WriteString(c, get("/last", "Connection: close"))
	for {
		resp, err := http.ReadResponse(br, nil)
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Logf("after %v: %v", statuses, err)
			break
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		statuses = append(statuses, resp.StatusCode)
		if resp.Close {
			break
		}
	}
	if n := len(statuses); n > 0 && statuses[n-1] == http.StatusOK && s.app.lastWas("/last") {
		return statuses[:n-1], true
	}
	return statuses, false
}

func (r *recorder) lastWas(target string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.heard) > 0 && r.heard[len(r.heard)-1].target == target
}
