package capture

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/linux"
)

// patience bounds every wait for something that must happen.
const patience = 10 * time.Second

// app greets each connection with the address it came from, then echoes.
type app struct {
	addr     netip.AddrPort // of the listener, its address unspecified
	accepted atomic.Int64
}

func startApp(t *testing.T, ns *linux.NetNS, port uint16) *app {
	t.Helper()
	f, err := ns.Listen(linux.ListenOptions{Addr: netip.AddrPortFrom(netip.IPv6Unspecified(), port), DualStack: true})
	if err != nil {
		t.Fatal(err)
	}
	l, err := linux.ListenerFromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	a := &app{addr: l.Addr().(*net.TCPAddr).AddrPort()}
	var wg sync.WaitGroup
	var conns connSet
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a.accepted.Add(1)
			conns.add(c)
			wg.Go(func() {
				defer conns.close(c)
				fmt.Fprintf(c, "%s\n", unmap(c.RemoteAddr()))
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.closeAll()
		wg.Wait()
	})
	return a
}

func (a *app) at(ip netip.Addr) netip.AddrPort { return netip.AddrPortFrom(ip, a.addr.Port()) }

func unmap(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// connSet closes what is still open when a test ends.
type connSet struct {
	mu    sync.Mutex
	conns map[net.Conn]bool
}

func (s *connSet) add(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = map[net.Conn]bool{}
	}
	s.conns[c] = true
}

func (s *connSet) close(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	c.Close()
}

func (s *connSet) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// stream is a client's connection to an app.
type stream struct {
	conn   net.Conn
	in     *bufio.Reader
	seenAs netip.AddrPort // where the app sees it come from
	sent   int
}

// connect opens a connection as an app in ns would, and reads the greeting.
func connect(ns *linux.NetNS, to netip.AddrPort) (*stream, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := ns.Dial(ctx, to, linux.DialOptions{})
	if err != nil {
		return nil, err
	}
	return greet(c)
}

func greet(c net.Conn) (*stream, error) {
	s := &stream{conn: c, in: bufio.NewReader(c)}
	c.SetReadDeadline(time.Now().Add(patience))
	line, err := s.in.ReadString('\n')
	if err == nil {
		s.seenAs, err = netip.ParseAddrPort(strings.TrimSpace(line))
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("read greeting: %w", err)
	}
	return s, nil
}

func mustConnect(t *testing.T, ns *linux.NetNS, to netip.AddrPort) *stream {
	t.Helper()
	s, err := connect(ns, to)
	if err != nil {
		t.Fatalf("connect to %s: %v", to, err)
	}
	t.Cleanup(func() { s.conn.Close() })
	if err := s.echo(); err != nil {
		t.Fatalf("echo by %s: %v", to, err)
	}
	return s
}

// echo sends a line of its own and expects it back.
func (s *stream) echo() error {
	s.sent++
	msg := fmt.Sprintf("%s message %d\n", s.conn.LocalAddr(), s.sent)
	s.conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(s.conn, msg); err != nil {
		return err
	}
	got, err := s.in.ReadString('\n')
	if err == nil && got != msg {
		err = fmt.Errorf("sent %q, got %q", msg, got)
	}
	return err
}

// finish half-closes and expects the end of what the app sends.
func (s *stream) finish() error {
	defer s.conn.Close()
	if err := s.conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	s.conn.SetDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(s.in)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("got %q more", rest)
	}
	return err
}

// once is a short connection, from start to finish.
func once(ns *linux.NetNS, to netip.AddrPort) error {
	s, err := connect(ns, to)
	if err != nil {
		return err
	}
	return errors.Join(s.echo(), s.finish())
}
