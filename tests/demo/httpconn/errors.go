package httpconn

import (
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Kinds of failure, as reports name them.
const (
	Refused     = "refused"
	Reset       = "reset"
	Closed      = "closed" // ended before an answer
	Timeout     = "timeout"
	Unreachable = "unreachable"
	NameLookup  = "dns"
	Other       = "other"
)

// Kind names the way in which a connection failed.
func Kind(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return NameLookup
	case errors.Is(err, unix.ECONNREFUSED):
		return Refused
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNABORTED):
		return Reset
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EPERM):
		return Unreachable
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Closed
	case errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return Timeout
	}
	return Other
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
