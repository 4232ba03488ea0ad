package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/ambit-mesh/ambit/tests/demo/httpconn"
)

const (
	// messageInterval and messageSize make a stream a slow conversation: what breaks shows within a second.
	messageInterval = 100 * time.Millisecond
	messageSize     = 64 // bytes
	// echoTimeout is how long a stream may stand still before it counts as broken.
	echoTimeout = 10 * time.Second
	dialTimeout = 10 * time.Second
)

// errAsked ends a stream because the user wants a new one.
var errAsked = errors.New("asked to reopen")

// stream is one long-lived connection to an echo server, replaced when it ends.
type stream struct {
	id     int
	target string
	names  *httpconn.Resolver
	report *recorder
	reopen chan struct{}
}

// run keeps the stream open until the context ends.
func (s *stream) run(ctx context.Context) error {
	for {
		conn, err := s.dial(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.report.streamRefused(s.target, err)
		} else {
			opened := time.Now()
			s.report.streamOpened(s.id, opened)
			err = s.converse(ctx, conn)
			if ctx.Err() != nil {
				return nil
			}
			s.report.streamEnded(s.id, s.target, opened, err)
			if errors.Is(err, errAsked) {
				continue
			}
		}
		if wait(ctx, retryInterval) != nil {
			return nil
		}
	}
}

func (s *stream) dial(ctx context.Context) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	address, err := s.names.Resolve(ctx, s.target)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("open a stream to %q: %w", s.target, err)
	}
	return conn.(*net.TCPConn), nil
}

// converse sends numbered messages and checks that each comes back in order.
func (s *stream) converse(ctx context.Context, conn *net.TCPConn) error {
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	tick := time.NewTicker(messageInterval)
	defer tick.Stop()
	var message, answer [messageSize]byte
	for n := uint64(1); ; n++ {
		for i := 0; i < messageSize; i += 8 {
			binary.BigEndian.PutUint64(message[i:], n*uint64(i+1))
		}
		begin := time.Now()
		if err := conn.SetDeadline(begin.Add(echoTimeout)); err != nil {
			return err
		}
		if _, err := conn.Write(message[:]); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, answer[:]); err != nil {
			return err
		}
		if answer != message {
			return fmt.Errorf("message %d came back changed", n)
		}
		s.report.echoed(time.Since(begin))
		select {
		case <-s.reopen:
			return s.finish(conn)
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// finish ends the stream in order: everything sent was echoed, so the server's end follows at once.
func (s *stream) finish(conn *net.TCPConn) error {
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	var b [1]byte
	if _, err := conn.Read(b[:]); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for the end of a finished stream: %w", err)
	}
	return errAsked
}

// Reopen asks every stream to end in order and open again.
func (g *Generator) Reopen() {
	for _, s := range g.streams {
		select {
		case s.reopen <- struct{}{}:
		default: // already asked
		}
	}
}
