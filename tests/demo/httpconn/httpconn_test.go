package httpconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func request(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestConnectionsAreKeptAsLongAsAsked(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
	defer server.Close()
	for _, tc := range []struct {
		uses int
		want int64 // connections for six requests
	}{{0, 6}, {1, 6}, {3, 2}, {6, 1}} {
		c := &Client{MaxAge: time.Minute, MaxUses: tc.uses, Timeout: time.Minute}
		for range 6 {
			resp, err := c.Do(context.Background(), request(t, server.URL))
			if err != nil || resp.Status != http.StatusOK || string(resp.Body) != "ok" {
				t.Fatalf("answer %+v, error %v", resp, err)
			}
		}
		if got := c.Dialed(); got != tc.want {
			t.Errorf("%d uses: %d connections, want %d", tc.uses, got, tc.want)
		}
		c.CloseIdle()
	}
}

// A kept connection that the server closed must come out as an error: net/http would hide it.
func TestDeadConnectionIsAnError(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	closed := make(chan struct{})
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 4096)
		_, _ = conn.Read(buf)
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		_ = conn.Close()
		close(closed)
	}()
	c := &Client{MaxAge: time.Minute, MaxUses: 10, Timeout: time.Minute}
	url := "http://" + ln.Addr().String()
	if _, err := c.Do(context.Background(), request(t, url)); err != nil {
		t.Fatal(err)
	}
	<-closed
	_, err = c.Do(context.Background(), request(t, url))
	if kind := Kind(err); err == nil || (kind != Closed && kind != Reset) {
		t.Errorf("error %v of kind %q, want closed or reset", err, kind)
	}
}

func TestKind(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("connect: %w", unix.ECONNREFUSED), Refused},
		{&net.OpError{Op: "read", Err: unix.ECONNRESET}, Reset},
		{fmt.Errorf("read: %w", io.ErrUnexpectedEOF), Closed},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), Timeout},
		{&net.DNSError{Err: "no such host"}, NameLookup},
		{unix.EHOSTUNREACH, Unreachable},
		{errors.New("strange"), Other},
	} {
		if got := Kind(tc.err); got != tc.want {
			t.Errorf("Kind(%v) = %q, want %q", tc.err, got, tc.want)
		}
	}
}
