package linux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// patience bounds every wait for something that must happen.
const patience = 10 * time.Second

func newNS(t testing.TB) *NetNS {
	t.Helper()
	n, err := NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	err = n.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func listen(t testing.TB, n *NetNS, o ListenOptions) *net.TCPListener {
	t.Helper()
	f, err := n.Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ListenerFromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func loopback(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
}

func port(l *net.TCPListener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

func TestDoEntersAndLeaves(t *testing.T) {
	n := newNS(t)
	home, err := CurrentNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	if n.Inode() == home.Inode() {
		t.Fatal("the new namespace is the old one")
	}
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			want := errors.New("from within")
			err := n.Do(func() error {
				if in, err := CurrentNetNS(); err != nil || in.Inode() != n.Inode() {
					t.Errorf("inside: %v, %v", in, err)
				} else {
					in.Close()
				}
				return want
			})
			if err != want {
				t.Errorf("got %v", err)
			}
			if out, err := CurrentNetNS(); err != nil || out.Inode() != home.Inode() {
				t.Errorf("outside: %v, %v", out, err)
			} else {
				out.Close()
			}
		})
	}
	wg.Wait()
}

func TestDoSurvivesGoexit(t *testing.T) {
	n := newNS(t)
	if err := n.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error")
	}
	threadsAreHome(t)
}

// threadsAreHome fails if a thread of this process is in another namespace,
// waiting for threads that are about to end.
func threadsAreHome(t *testing.T) {
	t.Helper()
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		lost := ""
		tasks, _ := os.ReadDir("/proc/self/task")
		for _, task := range tasks {
			if ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); err == nil && ns != home {
				lost = task.Name()
			}
		}
		if lost == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("thread %s stays in another namespace", lost)
		}
	}
}

func TestNetNSHandles(t *testing.T) {
	n := newNS(t)
	d, err := n.Dup()
	if err != nil {
		t.Fatal(err)
	}
	f, err := n.File()
	if err != nil {
		t.Fatal(err)
	}
	c1, err1 := n.Cookie()
	if err := errors.Join(n.Close(), n.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	for name, call := range map[string]func() error{
		"do":     func() error { return n.Do(func() error { return nil }) },
		"dup":    func() error { _, err := n.Dup(); return err },
		"listen": func() error { _, err := n.Listen(ListenOptions{Addr: loopback(0)}); return err },
	} {
		if err := call(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s on a closed handle: %v", name, err)
		}
	}
	c2, err2 := d.Cookie()
	if err1 != nil || err2 != nil || c1 != c2 || c1 == 0 {
		t.Errorf("cookies %d, %v and %d, %v", c1, err1, c2, err2)
	}
	g, err := NetNSFromFile(f)
	if err != nil || g.Inode() != d.Inode() {
		t.Fatalf("from file: %v, %v", g, err)
	}
	g.Close()
	d.Close()
}

func TestOpenNetNSRefusesOtherFiles(t *testing.T) {
	for _, path := range []string{"/proc/self/ns/mnt", "/dev/null", "/proc/self/exe", "/nonexistent"} {
		if n, err := OpenNetNS(path); err == nil {
			n.Close()
			t.Errorf("%s passes as a network namespace", path)
		}
	}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NetNSFromFile(f); err == nil {
		t.Error("/dev/null passes as a network namespace")
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the refused file is still open: %v", err)
	}
}

func TestListenAndDial(t *testing.T) {
	n := newNS(t)
	for _, tc := range []struct {
		name   string
		listen netip.Addr
		dual   bool
		dial   netip.Addr
	}{
		{"v4", netip.MustParseAddr("127.0.0.1"), false, netip.MustParseAddr("127.0.0.1")},
		{"v6", netip.IPv6Loopback(), false, netip.IPv6Loopback()},
		{"dual by v4", netip.IPv6Unspecified(), true, netip.MustParseAddr("127.0.0.1")},
		{"dual by v6", netip.IPv4Unspecified(), true, netip.IPv6Loopback()},
		{"mapped", netip.IPv6Unspecified(), true, netip.MustParseAddr("::ffff:127.0.0.1")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := listen(t, n, ListenOptions{Addr: netip.AddrPortFrom(tc.listen, 0), DualStack: tc.dual, Mark: 0x539})
			if up, err := n.Listening(port(l)); err != nil || !up {
				t.Errorf("listening: %v, %v", up, err)
			}
			c, err := n.Dial(t.Context(), netip.AddrPortFrom(tc.dial, port(l)), DialOptions{Mark: 0x53a})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s, err := l.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if got, want := s.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr().(*net.TCPAddr).AddrPort(); got.Port() != want.Port() {
				t.Errorf("accepted %s, dialled from %s", got, want)
			}
			for want, conn := range map[int]*net.TCPConn{0x53a: c, 0x539: s} {
				if got := getMark(t, conn); got != want {
					t.Errorf("mark %#x, want %#x", got, want)
				}
			}
			l.Close()
			if up, err := n.Listening(port(l)); err != nil || up {
				t.Errorf("listening after close: %v, %v", up, err)
			}
		})
	}
}

func getMark(t *testing.T, c *net.TCPConn) (mark int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { mark, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return mark
}

func TestDialErrors(t *testing.T) {
	n := newNS(t)
	if _, err := n.Dial(t.Context(), loopback(1), DialOptions{}); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("closed port: %v", err)
	}
	if _, err := n.Dial(t.Context(), netip.MustParseAddrPort("10.9.9.9:80"), DialOptions{}); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("no route: %v", err)
	}
	if _, err := n.Dial(t.Context(), loopback(1), DialOptions{Local: netip.IPv6Loopback()}); err == nil {
		t.Error("a source of the other family is accepted")
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Dial(done, loopback(1), DialOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
}

// TestDialGivesUp dials a listener whose queue is full, which drops packets.
func TestDialGivesUp(t *testing.T) {
	n := newNS(t)
	f, err := n.Listen(ListenOptions{Addr: loopback(0), Backlog: 1})
	if err != nil {
		t.Fatal(err)
	}
	l, err := ListenerFromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 16 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		c, err := n.Dial(ctx, loopback(port(l)), DialOptions{})
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	t.Error("the queue never filled")
}

// TestForeignSource makes many connections at once from a client's address that
// isn't ours: each gets its own port from the range.
func TestForeignSource(t *testing.T) {
	n := newNS(t)
	// What isn't local comes back by lo all the same.
	err := n.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: &net.IPNet{IP: net.IPv4(10, 9, 0, 0), Mask: net.CIDRMask(16, 32)}, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST})
	})
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, n, ListenOptions{Addr: loopback(0)})
	client := netip.MustParseAddr("10.9.1.1")
	const conns = 500
	for range conns {
		c, err := n.Dial(t.Context(), loopback(port(l)), DialOptions{Local: client, Transparent: true, ToLoopback: true, AvoidPort: func(p uint16) bool { return p%2 == 1 }})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		got := s.RemoteAddr().(*net.TCPAddr).AddrPort()
		if got.Addr() != client || got.Port() < foreignPortFirst || got.Port()%2 == 1 {
			t.Fatalf("comes from %s", got)
		}
	}
	if _, err := n.Dial(t.Context(), loopback(port(l)), DialOptions{Local: client, Transparent: true, AvoidPort: func(uint16) bool { return true }}); err == nil {
		t.Error("used a port that must be avoided")
	}
}

func TestListenerFromFileOwnsItsFile(t *testing.T) {
	f, err := (*NetNS)(nil).Listen(ListenOptions{Addr: loopback(0)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := ListenerFromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file is still open: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := ListenerFromFile(r); err == nil {
		t.Error("a pipe passes as a listener")
	}
}

func unixPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

func pipes(t *testing.T, n int) []*os.File {
	t.Helper()
	var out []*os.File
	for range n {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		t.Cleanup(func() { r.Close() })
		out = append(out, r)
	}
	return out
}

func openFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestFilesPass(t *testing.T) {
	a, b := unixPair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := SendMsg(a, []byte("hello"), []*os.File{w}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	p, files, err := RecvMsg(b, 5, 1)
	if err != nil || string(p) != "hello" || len(files) != 1 {
		t.Fatalf("got %q, %v: %v", p, files, err)
	}
	err = WithFD(files[0], func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if flags&unix.FD_CLOEXEC == 0 {
			t.Error("the received file would leak into children")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := files[0].WriteString("through"); err != nil {
		t.Fatal(err)
	}
	files[0].Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "through" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := SendMsg(a, []byte("no files"), nil); err != nil {
		t.Fatal(err)
	}
	if p, files, err := RecvMsg(b, 100, 0); err != nil || string(p) != "no files" || len(files) != 0 {
		t.Errorf("got %q, %v: %v", p, files, err)
	}
	a.Close()
	if _, _, err := RecvMsg(b, 5, 1); err != io.EOF {
		t.Errorf("after close: %v", err)
	}
}

func TestTooMuchIsDroppedWhole(t *testing.T) {
	a, b := unixPair(t)
	for _, tc := range []struct {
		name              string
		bytes, files      int
		maxBytes, maxFile int
	}{
		{"bytes", 6, 2, 5, 2},
		{"many bytes", 10000, 2, 5, 2},
		{"one file too many", 5, 2, 5, 1}, // fits into the padding of one
		{"many files", 5, 20, 5, 1},
		{"files where none are wanted", 5, 1, 5, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := pipes(t, tc.files)
			before := openFDs(t)
			if err := SendMsg(a, bytes.Repeat([]byte("x"), tc.bytes), files); err != nil {
				t.Fatal(err)
			}
			if _, got, err := RecvMsg(b, tc.maxBytes, tc.maxFile); !errors.Is(err, ErrTruncated) || got != nil {
				t.Errorf("got %v, %v", got, err)
			}
			if after := openFDs(t); after != before {
				t.Errorf("%d files were open, now %d", before, after)
			}
			if err := SendMsg(a, []byte("next"), nil); err != nil {
				t.Fatal(err)
			}
			if p, _, err := RecvMsg(b, 5, 1); err != nil || string(p) != "next" {
				t.Errorf("the next message: %q, %v", p, err)
			}
		})
	}
	if err := SendMsg(a, nil, nil); err == nil {
		t.Error("sent an empty message")
	}
	if err := SendMsg(a, []byte("x"), make([]*os.File, maxRights+1)); err == nil {
		t.Error("sent more files than the kernel takes")
	}
}

// TestEmptyMessageWithFiles comes from a peer that doesn't use SendMsg.
func TestEmptyMessageWithFiles(t *testing.T) {
	a, b := unixPair(t)
	files := pipes(t, 1)
	before := openFDs(t)
	err := WithFD(files[0], func(fd int) error {
		raw, err := a.SyscallConn()
		if err != nil {
			return err
		}
		// Go's own wrappers put a byte into such a message.
		oob := unix.UnixRights(fd)
		msg := unix.Msghdr{Control: &oob[0], Controllen: uint64(len(oob))}
		var errno unix.Errno
		err = raw.Control(func(sock uintptr) {
			_, _, errno = unix.Syscall(unix.SYS_SENDMSG, sock, uintptr(unsafe.Pointer(&msg)), 0)
		})
		if errno != 0 {
			err = errno
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, got, err := RecvMsg(b, 5, 1); err == nil || got != nil {
		t.Errorf("got %v, %v", got, err)
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d files were open, now %d", before, after)
	}
}

func FuzzParseRights(f *testing.F) {
	f.Add(unix.UnixRights(1000, 1001))
	f.Add([]byte{1})
	f.Add([]byte("\x17\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x000000000")) // a length that is no multiple of 4
	f.Fuzz(func(t *testing.T, oob []byte) {
		fds, err := parseRights(oob)
		if err == nil && len(fds)*4 > len(oob) {
			t.Errorf("%d descriptors in %d bytes", len(fds), len(oob))
		}
	})
}

func TestSysctl(t *testing.T) {
	n := newNS(t)
	if err := n.SetSysctl("ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	if v, err := n.Sysctl("ipv4/ip_forward"); err != nil || v != "1" {
		t.Errorf("%q, %v", v, err)
	}
	other := newNS(t)
	if v, err := other.Sysctl("ipv4/ip_forward"); err != nil || v != "0" {
		t.Errorf("another namespace has %q, %v", v, err)
	}
	if err := n.SetSysctl("ipv4/no_such", "1"); err == nil || !strings.Contains(err.Error(), "no_such") {
		t.Errorf("unknown setting: %v", err)
	}
}

func TestFilesystems(t *testing.T) {
	root, err := FindCgroup2("/nonexistent", "/")
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := IsCgroup2(root); err != nil || !ok {
		t.Errorf("%q: %v, %v", root, ok, err)
	}
	if ok, err := IsBPFFS(root); err != nil || ok {
		t.Errorf("%q as bpffs: %v, %v", root, ok, err)
	}
	if id, err := CgroupID(root); err != nil || id == 0 {
		t.Errorf("id %d, %v", id, err)
	}
	if _, err := FindCgroup2(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in an empty directory: %v", err)
	}
}

func BenchmarkDial(b *testing.B) {
	n := newNS(b)
	l := listen(b, n, ListenOptions{Addr: loopback(0)})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	b.Run("netns", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c, err := n.Dial(b.Context(), loopback(port(l)), DialOptions{})
			if err != nil {
				b.Fatal(err)
			}
			c.SetLinger(0)
			c.Close()
		}
	})
	b.Run("net.Dialer", func(b *testing.B) {
		b.ReportAllocs()
		err := n.Do(func() error {
			var d net.Dialer
			for b.Loop() {
				c, err := d.DialContext(b.Context(), "tcp", "127.0.0.1:"+strconv.Itoa(int(port(l))))
				if err != nil {
					return err
				}
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	})
}
