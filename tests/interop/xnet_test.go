package interop

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"

	"golang.org/x/net/http2"
)

// xnetClient is x/net's Transport as HBONE client.
type xnetClient struct {
	tr   http.RoundTripper
	addr string
	wg   sync.WaitGroup
}

func newXnetClient(t testing.TB, c *ca, addr string) *xnetClient {
	cfg := c.clientTLS(t)
	x := &xnetClient{addr: addr}
	//lint:ignore SA1019 it is the other implementation that is tested against
	tr := &http2.Transport{
		TLSClientConfig: cfg,
		DialTLSContext: func(ctx context.Context, network, _ string, cfg *tls.Config) (net.Conn, error) {
			d := tls.Dialer{Config: cfg}
			return d.DialContext(ctx, network, addr)
		},
	}
	x.tr = tr
	t.Cleanup(func() {
		interface{ CloseIdleConnections() }(tr).CloseIdleConnections()
		x.wg.Wait()
	})
	return x
}

func (x *xnetClient) request(method, authority string, body io.Reader) (*http.Response, error) {
	u := &url.URL{Scheme: "https", Host: authority}
	if method != http.MethodConnect {
		u.Path = "/"
	}
	req := &http.Request{Method: method, URL: u, Host: authority, Header: http.Header{}, ContentLength: -1}
	if body != nil {
		req.Body = io.NopCloser(body)
	} else {
		req.ContentLength = 0
	}
	return x.tr.RoundTrip(req)
}

// dial returns a connection whose bytes go through a CONNECT.
func (x *xnetClient) dial(t testing.TB) *net.TCPConn {
	t.Helper()
	near, far := tcpPair(t)
	resp, err := x.request(http.MethodConnect, "app:80", far)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("CONNECT: %v, %v", resp, err)
	}
	x.wg.Add(1)
	go func() {
		defer x.wg.Done()
		defer far.Close()
		if _, err := io.Copy(far, resp.Body); err != nil {
			far.SetLinger(0)
			return
		}
		far.CloseWrite()
		io.Copy(io.Discard, resp.Body)
	}()
	return near
}

func TestXNetAsClient(t *testing.T) {
	c, a := newCA(t), newApp(t)
	s := startServer(t, c, a)
	x := newXnetClient(t, c, s.ln.Addr().String())
	p := &path{app: a, dial: x.dial}
	p.run(t)

	t.Run("status codes", func(t *testing.T) {
		for _, tc := range []struct {
			method, authority string
			want              int
		}{
			{"CONNECT", "status-401:80", 401},
			{"CONNECT", "status-503:80", 503},
			{"GET", "app:80", 400},
			{"POST", "app:80", 400},
		} {
			resp, err := x.request(tc.method, tc.authority, nil)
			if err != nil {
				t.Errorf("%s %s: %v", tc.method, tc.authority, err)
				continue
			}
			resp.Body.Close()
			if resp.StatusCode != tc.want {
				t.Errorf("%s %s: status %d, want %d", tc.method, tc.authority, resp.StatusCode, tc.want)
			}
		}
	})
	t.Run("goaway", func(t *testing.T) { p.testGoAway(t, s) })
}

// xnetServer is x/net's Server as HBONE server.
func xnetServer(t testing.TB, c *ca, a *app) (addr *net.TCPAddr, goAway func()) {
	ln := listen(t)
	cfg := c.serverTLS(t)
	var mu sync.Mutex
	var wg sync.WaitGroup
	newServer := func() *http.Server {
		hs := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { xnetHandle(a, w, r) })}
		//lint:ignore SA1019 it is the other implementation that is tested against
		if err := http2.ConfigureServer(hs, &http2.Server{
			// It returns connection credit only when the stream's bytes are read: room for all streams that may stall.
			MaxUploadBufferPerConnection: 64 << 20, MaxUploadBufferPerStream: 1 << 20,
		}); err != nil {
			t.Error(err)
		}
		return hs
	}
	cur := newServer()
	all := map[net.Conn]bool{}
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			tcp, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			hs := cur
			all[tcp] = true
			mu.Unlock()
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer tcp.Close()
				tc := tls.Server(tcp, cfg)
				if err := tc.Handshake(); err != nil {
					return
				}
				hs.TLSNextProto["h2"](hs, tc, hs.Handler)
			}()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range all {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().(*net.TCPAddr), func() {
		mu.Lock()
		old := cur
		cur = newServer()
		mu.Unlock()
		old.Shutdown(context.Background())
	}
}

func xnetHandle(a *app, w http.ResponseWriter, r *http.Request) {
	if status := statusOf(r.Host); status != 0 {
		w.WriteHeader(status)
		return
	}
	up, err := net.DialTCP("tcp", nil, a.addr())
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	defer up.Close()
	w.WriteHeader(http.StatusOK)
	http.NewResponseController(w).Flush()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(up, r.Body)
		up.CloseWrite()
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := up.Read(buf)
		if n > 0 {
			w.Write(buf[:n])
			http.NewResponseController(w).Flush()
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			panic(http.ErrAbortHandler) // RST_STREAM
		}
	}
	<-done
}

func TestXNetAsServer(t *testing.T) {
	c, a := newCA(t), newApp(t)
	addr, goAway := xnetServer(t, c, a)
	o := startClient(t, c, addr.AddrPort())
	p := &path{app: a, dial: o.dial}
	p.run(t)

	t.Run("status codes", func(t *testing.T) {
		o.wantStatus(t, "status-401:80", 401)
		o.wantStatus(t, "status-503:80", 503)
	})
	t.Run("goaway", func(t *testing.T) {
		old := p.connect(t)
		old.Write([]byte{cmdEcho})
		goAway()
		until(t, "our client knows", func() bool {
			for _, i := range o.pool.Stats() {
				if i.Draining {
					return true
				}
			}
			return false
		})
		if err := echoes(p.connect(t), 3000); err != nil {
			t.Error(err)
		}
		io.WriteString(old, "old stream")
		old.CloseWrite()
		if b, err := io.ReadAll(old); err != nil || string(b) != "old stream" {
			t.Errorf("the stream from before GOAWAY read %q, %v", b, err)
		}
	})
}
