package proxy

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// testDeadline ends a test that hangs.
const testDeadline = 20 * time.Second

// pair returns both ends of a TCP connection on loopback.
func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*net.TCPConn{a, b} {
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(testDeadline)); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

// spliced joins two connections and returns the outer ends.
func spliced(t *testing.T) (client, server *net.TCPConn, n *counters, done chan error) {
	t.Helper()
	client, inner := pair(t)
	outer, server := pair(t)
	for _, c := range []*net.TCPConn{inner, outer} {
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	n, done = new(counters), make(chan error, 1)
	go func() { done <- splice(inner, outer, n) }()
	return client, server, n, done
}

func TestSpliceCarriesAndCountsBothWays(t *testing.T) {
	client, server, n, done := spliced(t)
	up, down := make([]byte, 3*spliceChunk+17), make([]byte, 2*spliceChunk)
	_, _ = rand.Read(up)
	_, _ = rand.Read(down)
	go func() { _, _ = client.Write(up); _ = client.CloseWrite() }()
	go func() { _, _ = server.Write(down); _ = server.CloseWrite() }()
	back := make(chan []byte, 1)
	go func() { b, _ := io.ReadAll(client); back <- b }()
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, up) {
		t.Errorf("request: %d of %d bytes, equal %t, %v", len(got), len(up), bytes.Equal(got, up), err)
	}
	if b := <-back; !bytes.Equal(b, down) {
		t.Errorf("response: %d of %d bytes", len(b), len(down))
	}
	if err := <-done; err != nil {
		t.Errorf("splice: %v", err)
	}
	if q, p := n.load(); q != uint64(len(up)) || p != uint64(len(down)) {
		t.Errorf("counted %d and %d", q, p)
	}
}

func TestSpliceKeepsHalfCloseOpenTheOtherWay(t *testing.T) {
	client, server, _, done := spliced(t)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(server); err != nil || len(b) != 0 {
		t.Fatalf("server read %q, %v; want the end", b, err)
	}
	if _, err := server.Write([]byte("late answer")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 11)
	if _, err := io.ReadFull(client, b); err != nil || string(b) != "late answer" {
		t.Fatalf("client read %q, %v", b, err)
	}
	server.Close()
	if _, err := client.Read(b); err != io.EOF {
		t.Errorf("client read: %v, want EOF", err)
	}
	if err := <-done; err != nil {
		t.Errorf("splice: %v", err)
	}
}

func TestSplicePassesResetOn(t *testing.T) {
	for _, fromClient := range []bool{true, false} {
		client, server, _, done := spliced(t)
		from, to := client, server
		if !fromClient {
			from, to = server, client
		}
		if _, err := from.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		reset(from)
		if _, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("from client %t: other side got %v, want a reset", fromClient, err)
		}
		if err := <-done; !orderly(err) || err == nil {
			t.Errorf("splice: %v", err)
		}
	}
}
