package zds

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"google.golang.org/protobuf/proto"

	zdspb "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/internal/linux"
)

const (
	// network is Go's name for SOCK_SEQPACKET on a unix socket.
	network = "unixpacket"
	// MaxMessage bounds one packet in bytes. The longest honest message is an Add (names of at most 253 bytes
	// each) or an Ack with a cause in words; both stay far under it.
	MaxMessage = 16 << 10
	// MaxFiles bounds the file descriptors beside one packet: a netns and three listeners today, as many again to spare.
	MaxFiles = 8
	// maxAckError cuts the cause in an Ack, so that an Ack always fits a packet.
	maxAckError = 4 << 10
	// socketMode keeps the socket to root: whoever connects is handed network namespaces.
	socketMode = 0o600
)

// ErrInvalid marks a packet that is refused as a whole. Its file descriptors are closed, the connection
// stays usable: a proxy answers with an Ack that carries the error, an agent drops the connection or goes on.
var ErrInvalid = errors.New("invalid ZDS message")

// Conn is one connection between an agent and a proxy. One goroutine may send while another receives.
type Conn struct {
	c *net.UnixConn
}

// Dial connects to the agent's socket.
func Dial(ctx context.Context, path string) (*Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, path)
	if err != nil {
		return nil, fmt.Errorf("connect to node agent at %q: %w", path, err)
	}
	return &Conn{c: c.(*net.UnixConn)}, nil
}

// Listener is the agent's socket.
type Listener struct {
	l *net.UnixListener
}

// Listen makes the agent's socket at path. A socket that an earlier agent left there is replaced.
func Listen(path string) (*Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket %q: %w", path, err)
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, fmt.Errorf("restrict socket %q: %w", path, errors.Join(err, l.Close()))
	}
	// An agent that starts while its predecessor ends has already put its own socket at path: closing
	// the old listener must not remove the new socket.
	l.SetUnlinkOnClose(false)
	return &Listener{l: l}, nil
}

// Accept waits for the next proxy.
func (l *Listener) Accept() (*Conn, error) {
	c, err := l.l.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("accept node proxy: %w", err)
	}
	return &Conn{c: c}, nil
}

// Close stops Accept. The socket file stays: the next Listen replaces it.
func (l *Listener) Close() error { return l.l.Close() }

// SetDeadline bounds the sends and receives that follow, and those under way.
func (c *Conn) SetDeadline(t time.Time) error { return c.c.SetDeadline(t) }

// Close ends the connection; a blocked Send or Recv returns.
func (c *Conn) Close() error { return c.c.Close() }

// SendHello opens the proxy's side.
func (c *Conn) SendHello(m *zdspb.ZdsHello) error { return c.send(m, nil) }

// RecvHello waits for the proxy's first message.
func (c *Conn) RecvHello() (*zdspb.ZdsHello, error) {
	m := &zdspb.ZdsHello{}
	files, err := c.recv(m)
	if err != nil {
		return nil, err
	}
	if len(files) > 0 {
		CloseFiles(files)
		return nil, fmt.Errorf("%w: hello with %d file descriptors", ErrInvalid, len(files))
	}
	return m, nil
}

// SendRequest sends to the proxy; files stay the caller's.
func (c *Conn) SendRequest(m *zdspb.WorkloadRequest, files []*os.File) error {
	return c.send(m, files)
}

// RecvRequest waits for the agent's next message. The files belong to the caller. They are as many as the
// message needs: the netns and one per listener with an Add, none otherwise.
func (c *Conn) RecvRequest() (*zdspb.WorkloadRequest, []*os.File, error) {
	m := &zdspb.WorkloadRequest{}
	files, err := c.recv(m)
	if err == nil {
		err = checkRequest(m, len(files))
	}
	if err != nil {
		CloseFiles(files)
		return nil, nil, err
	}
	return m, files, nil
}

// SendResponse sends to the agent; files stay the caller's. The cause in an Ack is cut to what fits.
func (c *Conn) SendResponse(m *zdspb.WorkloadResponse, files []*os.File) error {
	if a := m.GetAck(); len(a.GetError()) > maxAckError {
		m = &zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_Ack{Ack: &zdspb.Ack{Error: cut(a.GetError(), maxAckError)}}}
	}
	return c.send(m, files)
}

// RecvResponse waits for the proxy's next message. The files belong to the caller. They are as many as
// the message needs: the netns and one per listener with a HeldWorkload, none otherwise.
func (c *Conn) RecvResponse() (*zdspb.WorkloadResponse, []*os.File, error) {
	m := &zdspb.WorkloadResponse{}
	files, err := c.recv(m)
	if err == nil {
		err = checkResponse(m, len(files))
	}
	if err != nil {
		CloseFiles(files)
		return nil, nil, err
	}
	return m, files, nil
}

func (c *Conn) send(m proto.Message, files []*os.File) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode ZDS message: %w", err)
	}
	if len(b) > MaxMessage || len(files) > MaxFiles {
		return fmt.Errorf("%w: %d bytes with %d file descriptors, at most %d and %d", ErrInvalid, len(b), len(files), MaxMessage, MaxFiles)
	}
	if err := linux.SendMsg(c.c, b, files); err != nil {
		return fmt.Errorf("send ZDS message: %w", err)
	}
	return nil
}

func (c *Conn) recv(m proto.Message) ([]*os.File, error) {
	b, files, err := linux.RecvMsg(c.c, MaxMessage, MaxFiles)
	if err != nil {
		if errors.Is(err, linux.ErrTruncated) {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return nil, fmt.Errorf("receive ZDS message: %w", err)
	}
	if err := proto.Unmarshal(b, m); err != nil {
		CloseFiles(files)
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return files, nil
}
