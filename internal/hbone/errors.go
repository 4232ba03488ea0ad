package hbone

import (
	"errors"
	"fmt"
)

// Sentinels that callers branch on.
var (
	// ErrPoolClosed says that the pool is draining or closed and takes no new work.
	ErrPoolClosed = errors.New("hbone: pool is closed")
	// ErrPoolFull says that the limit of tunnels is reached and none of them has room.
	ErrPoolFull = errors.New("hbone: pool is full")
	// ErrTunnelClosed says that the tunnel under a stream ended, by either side or by an error.
	ErrTunnelClosed = errors.New("hbone: tunnel is closed")
	// ErrStreamClosed says that the stream has ended already, or that a call came in the wrong phase.
	ErrStreamClosed = errors.New("hbone: stream is closed")
)

// Code is an error code of RFC 9113 section 7.
type Code = uint32

// Error codes of RFC 9113 section 7.
const (
	CodeNoError            Code = 0x0
	CodeProtocol           Code = 0x1
	CodeInternal           Code = 0x2
	CodeFlowControl        Code = 0x3
	CodeSettingsTimeout    Code = 0x4
	CodeStreamClosed       Code = 0x5
	CodeFrameSize          Code = 0x6
	CodeRefusedStream      Code = 0x7
	CodeCancel             Code = 0x8
	CodeCompression        Code = 0x9
	CodeConnect            Code = 0xa // the TCP connection behind the CONNECT was reset, RFC 9113 section 8.5
	CodeEnhanceYourCalm    Code = 0xb
	CodeInadequateSecurity Code = 0xc
	CodeHTTP11Required     Code = 0xd
)

// codeName returns the name that RFC 9113 section 7 gives a code.
func codeName(c Code) string {
	names := [...]string{
		"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
		"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR",
		"CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
	}
	if int64(c) < int64(len(names)) {
		return names[c]
	}
	return fmt.Sprintf("code %#x", c)
}

// StatusError is the answer of a peer that refused a CONNECT.
type StatusError struct {
	Status  int
	Headers []Header
}

func (e *StatusError) Error() string { return fmt.Sprintf("hbone: peer answered %d", e.Status) }

// StreamError is a stream ended by RST_STREAM: sent by the peer if Remote, else by us.
type StreamError struct {
	Code   Code
	Remote bool
	Reason string // ours only: what was wrong
}

func (e *StreamError) Error() string {
	side := "local"
	if e.Remote {
		side = "remote"
	}
	if e.Reason != "" {
		return fmt.Sprintf("hbone: stream reset (%s, %s): %s", side, codeName(e.Code), e.Reason)
	}
	return fmt.Sprintf("hbone: stream reset (%s, %s)", side, codeName(e.Code))
}

// ConnError is a connection error of RFC 9113 section 5.4.1: the whole tunnel ends with it.
type ConnError struct {
	Code   Code
	Remote bool
	Reason string
}

func (e *ConnError) Error() string {
	side := "local"
	if e.Remote {
		side = "remote"
	}
	return fmt.Sprintf("hbone: tunnel error (%s, %s): %s", side, codeName(e.Code), e.Reason)
}

// Is makes every ConnError match ErrTunnelClosed.
func (e *ConnError) Is(target error) bool { return target == ErrTunnelClosed }

func connErrorf(code Code, format string, args ...any) error {
	return &ConnError{Code: code, Reason: fmt.Sprintf(format, args...)}
}

func streamErrorf(code Code, format string, args ...any) *StreamError {
	return &StreamError{Code: code, Reason: fmt.Sprintf(format, args...)}
}
