package linux

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// selfNetNS is the namespace of the calling thread. /proc/self would be that of
// the process's first thread.
const selfNetNS = "/proc/thread-self/ns/net"

// NetNS is a handle on a network namespace; it owns one file descriptor, which
// keeps the namespace alive. A nil *NetNS stands for the process's own. Methods
// may be called from several goroutines at once.
type NetNS struct {
	inode uint64

	mu sync.RWMutex // held for reading while fd is used: a closed number may already be another file
	fd int          // -1 after Close
}

// OpenNetNS opens the namespace at path, as in /proc/<pid>/ns/net or a file
// that a container runtime bound it to.
func OpenNetNS(path string) (*NetNS, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open netns %q: %w", path, err)
	}
	n, err := newNetNS(fd)
	if err != nil {
		return nil, fmt.Errorf("open netns %q: %w", path, err)
	}
	return n, nil
}

// NetNSFromFile makes a handle of a file that was received from elsewhere. It
// takes ownership: f is closed, also when there is an error.
func NetNSFromFile(f *os.File) (*NetNS, error) {
	defer f.Close()
	fd := -1
	err := WithFD(f, func(old int) (err error) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate netns file %q: %w", f.Name(), err)
	}
	n, err := newNetNS(fd)
	if err != nil {
		return nil, fmt.Errorf("use netns file %q: %w", f.Name(), err)
	}
	return n, nil
}

// NewNetNS makes an empty namespace, its loopback down. It goes away when the
// last handle, socket and process in it are gone.
func NewNetNS() (n *NetNS, err error) {
	err = away(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make netns: %w", err)
		}
		n, err = CurrentNetNS()
		return err
	})
	return n, err
}

// CurrentNetNS returns the namespace of the calling thread.
func CurrentNetNS() (*NetNS, error) { return OpenNetNS(selfNetNS) }

// newNetNS takes ownership of fd and checks that it is a network namespace.
func newNetNS(fd int) (*NetNS, error) {
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		unix.Close(fd)
		if err == nil {
			err = fmt.Errorf("namespace of type %#x", kind)
		}
		return nil, fmt.Errorf("not a network namespace: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("read inode: %w", err)
	}
	return &NetNS{fd: fd, inode: st.Ino}, nil
}

// Fd returns the descriptor, valid until Close. It is for libraries that want a
// number; the caller keeps n open meanwhile.
func (n *NetNS) Fd() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.fd
}

// Inode identifies the namespace while it lives. The kernel may use the number
// again afterwards; Cookie never repeats.
func (n *NetNS) Inode() uint64 { return n.inode }

// Cookie returns the number by which BPF programs know the namespace. It is
// unique for the uptime of the machine.
func (n *NetNS) Cookie() (uint64, error) {
	fd, err := n.socket(unix.AF_UNIX, unix.SOCK_DGRAM)
	if err != nil {
		return 0, fmt.Errorf("read netns cookie: %w", err)
	}
	defer unix.Close(fd)
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read netns cookie: %w", err)
	}
	return c, nil
}

// Dup returns a second handle with its own descriptor.
func (n *NetNS) Dup() (*NetNS, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.fd < 0 {
		return nil, fmt.Errorf("duplicate netns %d: %w", n.inode, os.ErrClosed)
	}
	fd, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate netns %d: %w", n.inode, err)
	}
	return &NetNS{fd: fd, inode: n.inode}, nil
}

// File returns the namespace as a file of its own, to be passed to another process.
func (n *NetNS) File() (*os.File, error) {
	d, err := n.Dup()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(d.fd), "netns:"+strconv.FormatUint(n.inode, 10)), nil
}

// Close gives the descriptor back. Sockets that were made through n live on.
func (n *NetNS) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd < 0 {
		return nil
	}
	err := unix.Close(n.fd)
	n.fd = -1
	return err
}

// Do runs fn on a thread that is inside n and returns its error. fn must not
// start goroutines that count on the namespace: they run elsewhere. fn should
// be short and must not wait for the network, since it holds a thread.
func (n *NetNS) Do(fn func() error) error {
	if n == nil {
		return fn()
	}
	return away(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return fn()
	})
}

// away runs fn, which may enter another namespace, on a thread of its own and
// puts the thread back.
func away(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open(selfNetNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open own netns: %w", err)
			return
		}
		err = errors.New("function ended its goroutine") // as testing's FailNow does
		defer func() {
			// A thread that can't be put back stays locked, and ends with its goroutine.
			if unix.Setns(home, unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			unix.Close(home)
			result <- err
		}()
		err = fn()
	}()
	return <-result
}

// enter moves the calling thread into n.
func (n *NetNS) enter() error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	err := os.ErrClosed
	if n.fd >= 0 {
		err = unix.Setns(n.fd, unix.CLONE_NEWNET)
	}
	if err != nil {
		return fmt.Errorf("enter netns %d: %w", n.inode, err)
	}
	return nil
}

// socket makes a close-on-exec socket that belongs to n for its whole life,
// wherever it is used.
func (n *NetNS) socket(family, kind int) (fd int, err error) {
	fd = -1
	err = n.Do(func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		return err
	})
	return fd, err
}
