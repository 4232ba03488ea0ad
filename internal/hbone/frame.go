package hbone

import "encoding/binary"

// frameType is a frame type of RFC 9113 section 6.
type frameType uint8

const (
	frameData         frameType = 0x0
	frameHeaders      frameType = 0x1
	framePriority     frameType = 0x2
	frameRSTStream    frameType = 0x3
	frameSettings     frameType = 0x4
	framePushPromise  frameType = 0x5
	framePing         frameType = 0x6
	frameGoAway       frameType = 0x7
	frameWindowUpdate frameType = 0x8
	frameContinuation frameType = 0x9
)

// Flags; a bit means another thing in another frame type.
const (
	flagEndStream  = 0x1 // DATA, HEADERS
	flagAck        = 0x1 // SETTINGS, PING
	flagEndHeaders = 0x4 // HEADERS, CONTINUATION
	flagPadded     = 0x8 // DATA, HEADERS
	flagPriority   = 0x20
)

const (
	frameHeaderLen = 9
	// minMaxFrame is SETTINGS_MAX_FRAME_SIZE before a peer says otherwise, RFC 9113 section 6.5.2; our own frames are
	// never larger.
	minMaxFrame    = 16384
	maxMaxFrame    = 1<<24 - 1
	streamIDMask   = 1<<31 - 1
	pingLen        = 8
	clientPreface  = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	rstLen         = 4
	priorityLen    = 5
	windowLen      = 4
	minGoAwayLen   = 8
	maxControlSize = 16 << 10 // bytes of any frame that is gathered but carries no header block
)

// frameHeader is the fixed part of every frame, RFC 9113 section 4.1.
type frameHeader struct {
	length int
	typ    frameType
	flags  uint8
	stream uint32
}

func (h frameHeader) has(flag uint8) bool { return h.flags&flag != 0 }

// parseFrameHeader reads the first frameHeaderLen bytes of b. The reserved bit is ignored, as the RFC says.
func parseFrameHeader(b []byte) frameHeader {
	return frameHeader{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		typ:    frameType(b[3]),
		flags:  b[4],
		stream: binary.BigEndian.Uint32(b[5:]) & streamIDMask,
	}
}

// put writes the header to the first frameHeaderLen bytes of b.
func (h frameHeader) put(b []byte) {
	_ = b[8]
	b[0], b[1], b[2], b[3], b[4] = byte(h.length>>16), byte(h.length>>8), byte(h.length), byte(h.typ), h.flags
	binary.BigEndian.PutUint32(b[5:], h.stream)
}

func appendFrame(b []byte, typ frameType, flags uint8, stream uint32, payload []byte) []byte {
	var h [frameHeaderLen]byte
	frameHeader{length: len(payload), typ: typ, flags: flags, stream: stream}.put(h[:])
	return append(append(b, h[:]...), payload...)
}

func appendUint32Frame(b []byte, typ frameType, stream, v uint32) []byte {
	var p [4]byte
	binary.BigEndian.PutUint32(p[:], v)
	return appendFrame(b, typ, 0, stream, p[:])
}

func appendWindowUpdate(b []byte, stream uint32, n int64) []byte {
	return appendUint32Frame(b, frameWindowUpdate, stream, uint32(n))
}

func appendRST(b []byte, stream uint32, code Code) []byte {
	return appendUint32Frame(b, frameRSTStream, stream, code)
}

func appendGoAway(b []byte, last uint32, code Code, debug string) []byte {
	p := make([]byte, 8, 8+len(debug))
	binary.BigEndian.PutUint32(p, last)
	binary.BigEndian.PutUint32(p[4:], code)
	return appendFrame(b, frameGoAway, 0, 0, append(p, debug...))
}

func appendPing(b []byte, ack bool, data [pingLen]byte) []byte {
	var flags uint8
	if ack {
		flags = flagAck
	}
	return appendFrame(b, framePing, flags, 0, data[:])
}

// appendHeaderBlock appends a header block as HEADERS and, if it is long, CONTINUATION frames.
func appendHeaderBlock(b []byte, stream uint32, end bool, block []byte) []byte {
	typ := frameHeaders
	for {
		n := min(len(block), minMaxFrame)
		var flags uint8
		if n == len(block) {
			flags |= flagEndHeaders
		}
		if end && typ == frameHeaders {
			flags |= flagEndStream
		}
		b = appendFrame(b, typ, flags, stream, block[:n])
		block, typ = block[n:], frameContinuation
		if len(block) == 0 {
			return b
		}
	}
}
