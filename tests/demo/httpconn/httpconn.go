// Package httpconn is an HTTP/1.1 client that shows every failure of a connection.
// The shop's services and the load generator call it.
//
// net/http repeats a request when a kept connection turns out to be dead, which
// hides exactly what the demo counts. This client never repeats: a request that
// fails on the wire is an error of the caller. A connection is kept for the next
// request for a bounded age and number of requests, so that new connections are
// made all the time. It does no TLS, no redirects, no proxies, no cookies.
package httpconn

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxBody bounds what is read of an answer; the shop's pages are a few KiB.
	maxBody = 1 << 20 // bytes
	// maxIdle bounds kept connections per host.
	maxIdle = 64
)

// Client keeps connections per host. It is safe for concurrent use.
type Client struct {
	// MaxAge and MaxUses bound how long a connection is kept. Zero uses means one request per connection.
	MaxAge  time.Duration
	MaxUses int
	// Timeout bounds a request with its connect.
	Timeout time.Duration

	names  Resolver
	dialed atomic.Int64
	mu     sync.Mutex
	idle   map[string][]*conn
}

// Response is an answer, read to its end.
type Response struct {
	Status int
	Body   []byte
}

type conn struct {
	net.Conn
	reader *bufio.Reader
	born   time.Time
	uses   int
}

// Dialed is the number of connections made so far.
func (c *Client) Dialed() int64 { return c.dialed.Load() }

// Do sends the request once and reads the answer.
func (c *Client) Do(ctx context.Context, req *http.Request) (Response, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	host := hostPort(req)
	cn := c.take(host)
	if cn == nil {
		var err error
		if cn, err = c.dial(ctx, host); err != nil {
			return Response{}, err
		}
	}
	resp, reusable, err := cn.roundTrip(ctx, req)
	cn.uses++
	if err != nil || !reusable || !c.put(host, cn) {
		_ = cn.Close() // the answer is complete, or the error says more
	}
	return resp, err
}

func (c *Client) dial(ctx context.Context, host string) (*conn, error) {
	address, err := c.names.Resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	c.dialed.Add(1)
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to %q: %w", host, err)
	}
	return &conn{Conn: raw, reader: bufio.NewReader(raw), born: time.Now()}, nil
}

// roundTrip reports whether the connection may serve another request.
func (cn *conn) roundTrip(ctx context.Context, req *http.Request) (Response, bool, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := cn.SetDeadline(deadline); err != nil {
			return Response{}, false, fmt.Errorf("set the deadline: %w", err)
		}
	}
	if err := req.Write(cn); err != nil {
		return Response{}, false, fmt.Errorf("send the request: %w", err)
	}
	resp, err := http.ReadResponse(cn.reader, req)
	if err != nil {
		return Response{}, false, fmt.Errorf("read the answer: %w", err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return Response{}, false, fmt.Errorf("read the answer's body: %w", err)
	}
	return Response{Status: resp.StatusCode, Body: body}, !resp.Close, nil
}

// take returns a kept connection that is young enough, or nil.
func (c *Client) take(host string) *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	for list := c.idle[host]; len(list) > 0; list = c.idle[host] {
		cn := list[len(list)-1]
		c.idle[host] = list[:len(list)-1]
		if time.Since(cn.born) < c.MaxAge {
			return cn
		}
		_ = cn.Close() // idle: nothing is lost
	}
	return nil
}

// put keeps the connection, or says that it should be closed.
func (c *Client) put(host string, cn *conn) bool {
	if cn.uses >= c.MaxUses || time.Since(cn.born) >= c.MaxAge {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.idle[host]) >= maxIdle {
		return false
	}
	if c.idle == nil {
		c.idle = map[string][]*conn{}
	}
	c.idle[host] = append(c.idle[host], cn)
	return true
}

// CloseIdle closes kept connections.
func (c *Client) CloseIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, list := range c.idle {
		for _, cn := range list {
			_ = cn.Close() // idle: nothing is lost
		}
	}
	c.idle = nil
}

func hostPort(req *http.Request) string {
	if req.URL.Port() != "" {
		return req.URL.Host
	}
	return net.JoinHostPort(req.URL.Hostname(), "80")
}
