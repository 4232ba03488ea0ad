package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// maxHeader bounds what the server reads of a request's header, in bytes: proxies add some to the client's own.
const maxHeader = 32 << 10

// path is what every request asks for.
const path = "/bench"

// requests sends one GET after the other over one connection, through net/http, as programs do: what is between may
// change headers and end the connection to the server, which raw sockets would not survive.
func requests(ctx context.Context, addr string, w *worker, h2 bool) error {
	d := net.Dialer{Timeout: dialTimeout}
	var conns atomic.Int32
	var protocols http.Protocols
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	t := &http.Transport{
		Protocols: &protocols, MaxConnsPerHost: 1, MaxIdleConnsPerHost: 1, DisableCompression: true, WriteBufferSize: bodySize, ReadBufferSize: 2 * bodySize,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conns.Add(1)
			return d.DialContext(ctx, network, addr)
		},
	}
	defer t.CloseIdleConnections()
	// The context of the run is not that of its requests: the last one is let finish, so that none fails by the end.
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), MaxDuration+dialTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(own, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "ambit-bench")
	body := make([]byte, bodySize+1)
	for ctx.Err() == nil {
		start := time.Now()
		if err := exchange(t, req, body); err != nil {
			return err
		}
		w.units++
		w.latencies = append(w.latencies, time.Since(start))
	}
	if n := conns.Load(); n != 1 {
		return fmt.Errorf("send requests: used %d connections in place of one", n)
	}
	return nil
}

// exchange makes one request and checks that the answer is the server's.
func exchange(t *http.Transport, req *http.Request, body []byte) error {
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	n, err := io.ReadFull(resp.Body, body)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("read answer: more than %d bytes, or %w", bodySize, err)
	} else {
		err = nil
	}
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || n != bodySize {
		return fmt.Errorf("read answer: status %d with %d bytes", resp.StatusCode, n)
	}
	return nil
}

// ServeHTTP answers the kinds H1 and H2 on l until l is closed.
func ServeHTTP(l net.Listener) error {
	body := make([]byte, bodySize)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{
		Protocols: &protocols, MaxHeaderBytes: maxHeader, ReadHeaderTimeout: dialTimeout,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != path {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Type", "text/plain")
			w.Write(body) // the client notices if it fails
		}),
	}
	if err := s.Serve(l); !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve requests: %w", err)
	}
	return nil
}
