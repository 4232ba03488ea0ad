package plugin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

const (
	// askTimeout bounds one request. The agent answers within 25 s (its own bounds on finding the pod and on
	// ztunnel's ack); the runtime itself gives up after two minutes.
	askTimeout = 30 * time.Second
	// connectFor is how long a missing agent is tried again before the pod is refused: an agent that is being
	// replaced is back within it, and the kubelet's own retry takes 10 s and more.
	connectFor = 5 * time.Second
	// connectEvery is the pause between two tries.
	connectEvery = 100 * time.Millisecond
	// maxReply bounds the agent's answer in bytes.
	maxReply = 64 << 10
)

// errUnreachable means that no agent listens.
var errUnreachable = errors.New("node agent is not reachable")

// ask sends one question. A Reply with Error set is not an error of ask.
//
// It speaks just enough HTTP/1.0 (RFC 1945: one request, the body ends with the connection) by hand:
// net/http would bring TLS along and double the binary, which every pod start loads.
func ask(ctx context.Context, socket, path string, req *Request) (*Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	c, err := dial(ctx, socket)
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w", errUnreachable, socket, cause(err))
	}
	defer c.Close()
	until, _ := ctx.Deadline()
	if err := c.SetDeadline(until); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body); err != nil {
		return nil, fmt.Errorf("%w at %s: %w", errUnreachable, socket, cause(err))
	}
	status, b, err := readResponse(c)
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w", errUnreachable, socket, cause(err))
	}
	var r Reply
	if err := json.Unmarshal(b, &r); err != nil || (status != "200" && r.Error == "") {
		return nil, fmt.Errorf("node agent at %s answered status %q: %.200q", socket, status, b)
	}
	return &r, nil
}

// readResponse reads a whole HTTP/1.0 response.
func readResponse(c io.Reader) (status string, body []byte, err error) {
	r := bufio.NewReader(io.LimitReader(c, maxReply))
	line, err := r.ReadString('\n')
	if err != nil {
		return "", nil, fmt.Errorf("read answer: %w", err)
	}
	proto, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if !strings.HasPrefix(proto, "HTTP/1.") {
		return "", nil, fmt.Errorf("read answer: %.40q is not HTTP", line)
	}
	status, _, _ = strings.Cut(rest, " ")
	for {
		h, err := r.ReadString('\n')
		if err != nil {
			return "", nil, fmt.Errorf("read answer: %w", err)
		}
		if strings.TrimSpace(h) == "" {
			break
		}
	}
	if body, err = io.ReadAll(r); err != nil {
		return "", nil, fmt.Errorf("read answer: %w", err)
	}
	return status, body, nil
}

// dial connects to the agent, waiting a little for one that is being replaced.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	until := time.Now().Add(connectFor)
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		if err == nil || time.Now().After(until) {
			return c, err
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(connectEvery):
		}
	}
}

// cause drops the address that net repeats around a failure.
func cause(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no answer within %v", askTimeout)
	case errors.As(err, &op):
		return op.Err
	}
	return err
}
