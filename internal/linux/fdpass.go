package linux

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// maxRights is the most file descriptors that the kernel takes in one message
// (SCM_MAX_FD).
const maxRights = 253

// rightSize is what a descriptor takes in a message, in bytes.
const rightSize = 4

// ErrTruncated says that a message was larger, or carried more files, than the
// receiver allowed. Nothing of it is kept.
var ErrTruncated = errors.New("message truncated")

// WithFD calls fn with the descriptor of f, which stays open meanwhile. Unlike
// f.Fd it leaves the file's blocking mode alone.
func WithFD(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := raw.Control(func(fd uintptr) { result = fn(int(fd)) }); err != nil {
		return err
	}
	return result
}

// withFDs is WithFD for several files at once.
func withFDs(files []*os.File, fds []int, fn func(fds []int) error) error {
	if len(files) == 0 {
		return fn(fds)
	}
	return WithFD(files[0], func(fd int) error { return withFDs(files[1:], append(fds, fd), fn) })
}

// SendMsg sends one message of a SOCK_SEQPACKET socket with files beside it. The
// caller keeps its files. An empty message is refused: it would read as the end.
func SendMsg(c *net.UnixConn, p []byte, files []*os.File) error {
	if len(p) == 0 {
		return errors.New("send message: empty")
	}
	if len(files) > maxRights {
		return fmt.Errorf("send message: %d files, at most %d", len(files), maxRights)
	}
	err := withFDs(files, nil, func(fds []int) error {
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		n, _, err := c.WriteMsgUnix(p, oob, nil)
		if err == nil && n != len(p) {
			err = io.ErrShortWrite
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("send message of %d bytes and %d files: %w", len(p), len(files), err)
	}
	return nil
}

// RecvMsg receives one message of at most maxBytes with at most maxFDs files,
// which then belong to the caller. A larger one is dropped whole with
// ErrTruncated, its files closed; the next one can still be read. io.EOF means
// that the peer closed.
func RecvMsg(c *net.UnixConn, maxBytes, maxFDs int) ([]byte, []*os.File, error) {
	// One byte more tells a message of maxBytes from a larger one even where MSG_TRUNC is not reported.
	p := make([]byte, maxBytes+1)
	var oob []byte
	if maxFDs > 0 {
		oob = make([]byte, unix.CmsgSpace(maxFDs*rightSize))
	}
	n, oobn, flags, _, err := c.ReadMsgUnix(p, oob)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("receive message: %w", err)
	}
	// An empty message reads as the end of the stream, but files may still hang on it.
	ended := err != nil || n == 0
	if ended && oobn == 0 {
		return nil, nil, io.EOF
	}
	fds, err := parseRights(oob[:oobn])
	if err == nil && ended {
		err = errors.New("empty message with files")
	}
	if err == nil && (flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || n > maxBytes || len(fds) > maxFDs) {
		err = ErrTruncated
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, nil, fmt.Errorf("receive message of at most %d bytes and %d files: %w", maxBytes, maxFDs, err)
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), fmt.Sprintf("received:%d", i))
	}
	return p[:n], files, nil
}

// parseRights returns all descriptors in oob, also with an error, so that the
// caller can close them.
func parseRights(oob []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		if len(msgs[i].Data)%rightSize != 0 { // which the parser takes for granted
			err = errors.Join(err, fmt.Errorf("parse file descriptors: %d bytes", len(msgs[i].Data)))
			continue
		}
		got, e := unix.ParseUnixRights(&msgs[i])
		if e != nil {
			err = errors.Join(err, fmt.Errorf("parse file descriptors: %w", e))
		}
		fds = append(fds, got...)
	}
	return fds, err
}
