package hbone

import (
	"io"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reads and writes on sockets without the runtime's bookkeeping for calls that may block: a quarter of the CPU of small
// requests. MSG_DONTWAIT makes sure that they never block, whatever some other holder did to the descriptor's flags.
// Each repeats the loop over EINTR: a pointer may become a uintptr only in the arguments of the system call itself
// (package unsafe, rule 4), and a helper that is told to keep it alive would move every buffer to the heap.

// maxIovecs is how many pieces one call takes (UIO_MAXIOV is 1024; more than this gains nothing).
const maxIovecs = 128

// recvOne reads into b. It returns 0, nil at the end of the stream.
func recvOne(fd uintptr, b []byte) (int, error) {
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
			unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// peekOne looks for bytes without taking any: 0, nil is the end of the stream.
func peekOne(fd uintptr) (int, error) {
	var b [1]byte
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b)), 1, unix.MSG_DONTWAIT|unix.MSG_PEEK, 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// recvVec reads into several buffers.
func recvVec(fd uintptr, v []unix.Iovec) (int, error) {
	m := unix.Msghdr{Iov: unsafe.SliceData(v)}
	m.SetIovlen(len(v))
	for {
		n, _, e := syscall.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&m)), unix.MSG_DONTWAIT)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// sendOne writes what the socket takes of b.
func sendOne(fd uintptr, b []byte) (int, error) {
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// sendVec writes what the socket takes of v.
func sendVec(fd uintptr, v []unix.Iovec) (int, error) {
	if len(v) > maxIovecs {
		v = v[:maxIovecs]
	}
	m := unix.Msghdr{Iov: unsafe.SliceData(v)}
	m.SetIovlen(len(v))
	for {
		n, _, e := syscall.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&m)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

func iovec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

// advance drops the first n bytes of v.
func advance(v []unix.Iovec, n int) []unix.Iovec {
	for n > 0 {
		l := int(v[0].Len)
		if n < l {
			v[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(v[0].Base), n))
			v[0].SetLen(l - n)
			return v
		}
		n -= l
		v = v[1:]
	}
	return v
}

func iovecBytes(v unix.Iovec) []byte { return unsafe.Slice(v.Base, int(v.Len)) }

// setLinger makes a close of the socket a reset (on) or orderly (off). While a stream is open it is on, so that even a
// killed process never shows an application a clean end of a stream that was cut.
func setLinger(rc syscall.RawConn, on bool) {
	l := unix.Linger{}
	if on {
		l.Onoff = 1
	}
	// A socket that refuses the option is closed in order instead, which is the best that is left.
	_ = rc.Control(func(fd uintptr) { _ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &l) })
}

// errWouldBlock is what a record layer and its socket say when there is nothing to read. crypto/tls takes it as a
// temporary net.Error: it keeps the part of a record it has, and goes on with the next call.
type wouldBlock struct{}

func (wouldBlock) Error() string   { return "hbone: nothing to read" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

var errWouldBlock error = wouldBlock{}

// recvSome is recvOne with io.EOF and errWouldBlock.
func recvSome(fd uintptr, b []byte) (int, error) {
	n, err := recvOne(fd, b)
	switch {
	case err == unix.EAGAIN:
		return 0, errWouldBlock
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}
