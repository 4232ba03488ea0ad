package linux

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The ports that foreign source addresses are bound to lie above the range that
// clients choose from (net.ipv4.ip_local_port_range, 32768–60999 by default). A
// spoofed connection with the very port of the client it stands for would meet
// the client's own connection in the kernel's socket table, and both break.
const (
	foreignPortFirst = 61000
	foreignPortLast  = 65535
)

// maxPortTries bounds the search for a source port that is free towards the
// destination, in attempts. At a quarter of the range in use towards one
// destination, 64 tries fail once in 2^128.
const maxPortTries = 64

// loopbackIfIndex is the index of lo in every network namespace.
const loopbackIfIndex = 1

// errPortsUsed says that no source port was found.
var errPortsUsed = errors.New("no free source port")

// DialOptions say how a connection is opened. The zero value is a plain one.
type DialOptions struct {
	// Local is the source address. It may be foreign (a client's) with
	// Transparent; then the port is chosen here, from 61000 to 65535.
	Local       netip.Addr
	Transparent bool
	// AvoidPort, if set, tells source ports that must not be used: those
	// from which the client holds connections to the same destination now.
	AvoidPort func(port uint16) bool
	Mark      int // SO_MARK; 0 sets none
	// ToLoopback keeps the connection on lo. A connection to a pod's own
	// address could otherwise be taken for one that came from outside, and
	// captured again without end.
	ToLoopback bool
}

// Dial opens a TCP connection from n. It waits in the runtime's poller, not in
// a thread, and gives up when ctx ends.
func (n *NetNS) Dial(ctx context.Context, remote netip.AddrPort, o DialOptions) (*net.TCPConn, error) {
	c, err := n.dial(ctx, netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port()), o)
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", remote, err)
	}
	return c, nil
}

func (n *NetNS) dial(ctx context.Context, remote netip.AddrPort, o DialOptions) (*net.TCPConn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o.Local.IsValid() && o.Local.Unmap().Is4() != remote.Addr().Is4() {
		return nil, fmt.Errorf("source %q is of another family", o.Local)
	}
	// The last error may come after the socket was bound, which cannot be undone, so each try has its own.
	for range maxPortTries {
		f, err := n.start(remote, o)
		if o.Transparent && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE)) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return finish(ctx, f)
	}
	return nil, errPortsUsed
}

// start begins to connect. The caller owns the file.
func (n *NetNS) start(remote netip.AddrPort, o DialOptions) (*os.File, error) {
	to, err := sockaddr(remote)
	if err != nil {
		return nil, err
	}
	fd, err := n.socket(family(remote.Addr()), unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	err = prepare(fd, remote.Addr().Is6(), o)
	if err == nil {
		err = unix.Connect(fd, to)
	}
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "tcp:"+remote.String()), nil
}

func prepare(fd int, is6 bool, o DialOptions) error {
	opts := []option{
		{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, o.Mark, o.Mark != 0},
		{"SO_BINDTOIFINDEX", unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, loopbackIfIndex, o.ToLoopback},
		// Many connections to different destinations share a source port.
		{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, o.Transparent},
		// Without Transparent the port is left to connect, which knows the destination.
		{"IP_BIND_ADDRESS_NO_PORT", unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1, !o.Transparent},
	}
	if err := set(fd, append(opts, transparent(is6, o.Transparent)...)); err != nil {
		return err
	}
	if !o.Local.IsValid() {
		return nil
	}
	var port uint16
	if o.Transparent {
		var ok bool
		if port, ok = foreignPort(o.AvoidPort); !ok {
			return errPortsUsed
		}
	}
	sa, err := sockaddr(netip.AddrPortFrom(o.Local.Unmap(), port))
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return fmt.Errorf("bind %q: %w", o.Local, err)
	}
	return nil
}

// foreignPort draws a port; random, because two processes (an old and a new
// ztunnel) may draw for the same pod at the same time.
func foreignPort(avoid func(uint16) bool) (port uint16, ok bool) {
	for range maxPortTries {
		p := uint16(foreignPortFirst + rand.IntN(foreignPortLast-foreignPortFirst+1))
		if avoid == nil || !avoid(p) {
			return p, true
		}
	}
	return 0, false
}

// finish waits until a started connection is there, and owns f.
func finish(ctx context.Context, f *os.File) (*net.TCPConn, error) {
	defer f.Close() // net.FileConn works on a duplicate
	if err := awaitConnect(ctx, f); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("not a TCP connection but %T", c)
	}
	return t, nil
}

func awaitConnect(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	// The runtime forgets earlier readiness, then calls this, then waits: asking the socket itself each time
	// cannot miss an edge that came before.
	err = raw.Write(func(fd uintptr) (done bool) {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || code != 0 {
			if err == nil {
				err = unix.Errno(code)
			}
			result = err
			return true
		}
		_, err = unix.Getpeername(int(fd))
		if errors.Is(err, unix.ENOTCONN) {
			return false
		}
		result = err
		return true
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return result
}
