package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// defaultBacklog is the queue of connections that wait for accept, in
// connections. The kernel lowers it to net.core.somaxconn (4096 by default).
const defaultBacklog = 4096

// ListenOptions say how a listening TCP socket is made.
type ListenOptions struct {
	Addr        netip.AddrPort
	Transparent bool // accepts and answers for addresses that are not the namespace's own
	DualStack   bool // an unspecified Addr means both families; v4 alone where the kernel has no v6
	ReusePort   bool // several sockets share the port, the kernel spreads connections over them
	Mark        int  // SO_MARK, inherited by accepted connections; 0 sets none
	Backlog     int  // connections; 0 means the kernel's default maximum
}

// Listen opens a listening TCP socket in n. The file is non-blocking but not
// registered with the runtime's poller, so that a process that only keeps it
// for another is not woken by its connections. ListenerFromFile makes a
// listener of it.
func (n *NetNS) Listen(o ListenOptions) (*os.File, error) {
	fd, err := n.listen(o)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", o.Addr, err)
	}
	f := os.NewFile(uintptr(fd), "listener:"+o.Addr.String()) // before it is non-blocking, so that it isn't polled
	if err := unix.SetNonblock(fd, true); err != nil {
		f.Close()
		return nil, fmt.Errorf("listen on %q: set non-blocking: %w", o.Addr, err)
	}
	return f, nil
}

func (n *NetNS) listen(o ListenOptions) (int, error) {
	addr := o.Addr
	if o.DualStack && addr.Addr().IsUnspecified() {
		addr = netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port())
	}
	fd, err := n.socket(family(addr.Addr()), unix.SOCK_STREAM)
	if errors.Is(err, unix.EAFNOSUPPORT) && o.DualStack && addr.Addr().Is6() {
		addr = netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
		fd, err = n.socket(unix.AF_INET, unix.SOCK_STREAM)
	}
	if err != nil {
		return -1, fmt.Errorf("make socket: %w", err)
	}
	if err := listenOn(fd, addr, o); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func listenOn(fd int, addr netip.AddrPort, o ListenOptions) error {
	is6 := addr.Addr().Is6()
	opts := []option{
		{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, true},
		{"SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, o.ReusePort},
		{"IPV6_V6ONLY", unix.SOL_IPV6, unix.IPV6_V6ONLY, boolInt(!o.DualStack), is6},
		{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, o.Mark, o.Mark != 0},
	}
	opts = append(opts, transparent(is6, o.Transparent)...)
	if err := set(fd, opts); err != nil {
		return err
	}
	sa, err := sockaddr(addr)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	backlog := o.Backlog
	if backlog <= 0 {
		backlog = defaultBacklog
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}

// Listening tells whether some socket in n listens on a TCP port, on all
// addresses or any. Trying to bind is quick; listing sockets is not where many
// connections are.
func (n *NetNS) Listening(port uint16) (bool, error) {
	addr := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	fd, err := n.socket(unix.AF_INET6, unix.SOCK_STREAM)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		addr = netip.AddrPortFrom(netip.IPv4Unspecified(), port)
		fd, err = n.socket(unix.AF_INET, unix.SOCK_STREAM)
	}
	if err != nil {
		return false, fmt.Errorf("try port %d: %w", port, err)
	}
	defer unix.Close(fd)
	// With SO_REUSEADDR only a listener is in the way, not connections.
	if err := set(fd, []option{{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, true}}); err != nil {
		return false, fmt.Errorf("try port %d: %w", port, err)
	}
	sa, err := sockaddr(addr)
	if err != nil {
		return false, err
	}
	err = unix.Bind(fd, sa)
	if errors.Is(err, unix.EADDRINUSE) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("try port %d: %w", port, err)
	}
	return false, nil
}

// ListenerFromFile makes a listener of a file, which it takes over: f is closed,
// also when there is an error.
func ListenerFromFile(f *os.File) (*net.TCPListener, error) {
	defer f.Close() // net.FileListener works on a duplicate
	if err := WithFD(f, func(fd int) error { return unix.SetNonblock(fd, true) }); err != nil {
		return nil, fmt.Errorf("use listener %q: set non-blocking: %w", f.Name(), err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("use listener %q: %w", f.Name(), err)
	}
	t, ok := l.(*net.TCPListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("use listener %q: not a TCP socket but %T", f.Name(), l)
	}
	return t, nil
}

// OriginalDst returns where a connection was going before netfilter's NAT sent
// it here. It fails if no such translation exists.
func OriginalDst(c *net.TCPConn) (netip.AddrPort, error) {
	local, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("read original destination: no TCP address but %T", c.LocalAddr())
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read original destination: %w", err)
	}
	var dst netip.AddrPort
	var operr error
	// A v4 connection on a dual-stack socket is asked as v4: that is where its NAT entry is.
	if err := raw.Control(func(fd uintptr) {
		dst, operr = originalDst(int(fd), local.AddrPort().Addr().Unmap().Is4())
	}); err != nil {
		return netip.AddrPort{}, fmt.Errorf("read original destination: %w", err)
	}
	if operr != nil {
		return netip.AddrPort{}, fmt.Errorf("read original destination: %w", operr)
	}
	return dst, nil
}

// originalDst borrows two getsockopt wrappers whose buffers are large enough
// for struct sockaddr_in (16 bytes) and sockaddr_in6 (28 bytes).
func originalDst(fd int, v4 bool) (netip.AddrPort, error) {
	if v4 {
		b, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST)
		if err != nil {
			return netip.AddrPort{}, err
		}
		sa := b.Multiaddr // family 2 bytes, port 2, address 4
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), binary.BigEndian.Uint16(sa[2:4])), nil
	}
	b, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], b.Addr.Port) // the field holds network byte order
	return netip.AddrPortFrom(netip.AddrFrom16(b.Addr.Addr), binary.BigEndian.Uint16(port[:])), nil
}

// option is one socket option; it is set when wanted.
type option struct {
	name         string
	level, which int
	value        int
	wanted       bool
}

func set(fd int, opts []option) error {
	for _, o := range opts {
		if !o.wanted {
			continue
		}
		if err := unix.SetsockoptInt(fd, o.level, o.which, o.value); err != nil {
			return fmt.Errorf("set %s=%d: %w", o.name, o.value, err)
		}
	}
	return nil
}

// transparent lets a socket use addresses that are not the namespace's own. The
// kernel keeps one flag for both families; the v6 name works on v6 sockets.
func transparent(is6, wanted bool) []option {
	return []option{
		{"IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 1, wanted && !is6},
		{"IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1, wanted && is6},
	}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// sockaddr converts an address. A zone is an interface index in decimal: names
// differ from namespace to namespace.
func sockaddr(a netip.AddrPort) (unix.Sockaddr, error) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if z := a.Addr().Zone(); z != "" {
		id, err := strconv.ParseUint(z, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("use zone %q: not an interface index: %w", z, err)
		}
		sa.ZoneId = uint32(id)
	}
	return sa, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
