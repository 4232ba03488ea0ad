package hbone

// frameSink takes what a decoder finds. DATA arrives in pieces as records bring them; every other frame arrives whole,
// HEADERS with the CONTINUATIONs of its block joined to it. An error ends the tunnel.
type frameSink interface {
	// dataStart says that a DATA frame begins; h.length counts its padding.
	dataStart(h frameHeader) error
	// data is a piece of its payload, without padding. p is valid until the end of the batch.
	data(p []byte)
	// dataEnd says that the frame is complete.
	dataEnd(h frameHeader) error
	// headers is a complete header block.
	headers(h frameHeader, block []byte) error
	// control is any other frame. payload is valid during the call.
	control(h frameHeader, payload []byte) error
}

// decoder cuts plaintext into frames. It is a state machine without goroutine or socket: all it knows between two
// records is in these fields, so that a tunnel can stop between any two and go on elsewhere.
type decoder struct {
	preface int // bytes of the client's connection preface still to come
	first   bool

	maxFrame  int // largest payload we announced
	maxHeader int // largest header block

	head    [frameHeaderLen]byte
	headLen int
	h       frameHeader
	left    int  // payload bytes of h still to come
	pad     int  // padding at the end of h's payload
	needPad bool // the Pad Length octet of a DATA frame is still to come

	buf []byte // payload gathered so far

	block    []byte // header block gathered so far
	blockOf  frameHeader
	inBlock  bool
	blockCnt int // CONTINUATION frames of this block
}

// maxContinuations bounds the frames of one header block: 16 KiB of header list never needs more than a few, and empty
// ones would otherwise cost us time for nothing (CVE-2024-27316 and its family).
const maxContinuations = 16

func newDecoder(client bool, l Limits) decoder {
	d := decoder{first: true, maxFrame: l.MaxFrameSize, maxHeader: 2*l.MaxHeaderList + headerBlockSlack}
	if !client {
		d.preface = len(clientPreface)
	}
	return d
}

// headerBlockSlack allows a block to be longer than a tiny list. An honest block is shorter than its list (RFC 9113
// section 6.5.2 counts 32 bytes more for each field); up to twice the list's limit only the stream is refused, beyond
// that the tunnel ends.
const headerBlockSlack = 1 << 10

// feed consumes all of p. After an error the decoder is of no more use.
func (d *decoder) feed(p []byte, to frameSink) error {
	for d.preface > 0 && len(p) > 0 {
		n := min(d.preface, len(p))
		at := len(clientPreface) - d.preface
		if string(p[:n]) != clientPreface[at:at+n] {
			return connErrorf(CodeProtocol, "client preface is not HTTP/2's")
		}
		d.preface -= n
		p = p[n:]
	}
	for len(p) > 0 {
		if d.headLen < frameHeaderLen {
			n := copy(d.head[d.headLen:], p)
			d.headLen += n
			p = p[n:]
			if d.headLen < frameHeaderLen {
				return nil
			}
			if err := d.start(to); err != nil {
				return err
			}
		}
		n := min(d.left, len(p))
		d.left -= n
		if d.h.typ == frameData {
			d.dataPiece(p[:n], to)
		} else {
			d.buf = append(d.buf, p[:n]...)
		}
		p = p[n:]
		if d.left == 0 {
			d.headLen = 0
			if err := d.end(to); err != nil {
				return err
			}
		}
	}
	return nil
}

// start checks a frame header and prepares for its payload.
func (d *decoder) start(to frameSink) error {
	d.h = parseFrameHeader(d.head[:])
	h := d.h
	d.left, d.pad, d.needPad, d.buf = h.length, 0, false, d.buf[:0]
	if d.first {
		// RFC 9113 section 3.4: SETTINGS is the first frame of either side's preface.
		if h.typ != frameSettings || h.has(flagAck) {
			return connErrorf(CodeProtocol, "first frame has type %d, not SETTINGS", h.typ)
		}
		d.first = false
	}
	if h.length > d.maxFrame {
		return connErrorf(CodeFrameSize, "frame of type %d has %d bytes", h.typ, h.length)
	}
	// RFC 9113 section 6.10: nothing may come between the frames of a header block.
	if d.inBlock && (h.typ != frameContinuation || h.stream != d.blockOf.stream) {
		return connErrorf(CodeProtocol, "frame of type %d inside a header block", h.typ)
	}
	switch h.typ {
	case frameData:
		if h.stream == 0 {
			return connErrorf(CodeProtocol, "DATA on stream 0")
		}
		if h.has(flagPadded) {
			if h.length == 0 {
				return connErrorf(CodeFrameSize, "padded DATA without Pad Length")
			}
			d.needPad = true
		}
		return to.dataStart(h)
	case frameHeaders:
		if h.stream == 0 {
			return connErrorf(CodeProtocol, "HEADERS on stream 0")
		}
		return d.checkBlock(h.length)
	case frameContinuation:
		if !d.inBlock {
			return connErrorf(CodeProtocol, "CONTINUATION without HEADERS")
		}
		if d.blockCnt++; d.blockCnt > maxContinuations {
			return connErrorf(CodeEnhanceYourCalm, "header block in more than %d frames", maxContinuations)
		}
		return d.checkBlock(len(d.block) + h.length)
	default:
		if h.length > maxControlSize {
			return connErrorf(CodeFrameSize, "frame of type %d has %d bytes", h.typ, h.length)
		}
		return nil
	}
}

func (d *decoder) checkBlock(n int) error {
	if n > d.maxHeader {
		return connErrorf(CodeEnhanceYourCalm, "header block of more than %d bytes", d.maxHeader)
	}
	return nil
}

// dataPiece passes on a piece of DATA, holding back Pad Length and padding.
func (d *decoder) dataPiece(p []byte, to frameSink) {
	if d.needPad && len(p) > 0 {
		d.needPad = false
		d.pad = int(p[0])
		p = p[1:]
	}
	// d.left counts what comes after p; the last d.pad bytes of all of it are padding.
	if over := d.pad - d.left; over > 0 {
		p = p[:max(0, len(p)-over)]
	}
	if len(p) > 0 {
		to.data(p)
	}
}

// end handles a complete frame.
func (d *decoder) end(to frameSink) error {
	h := d.h
	switch h.typ {
	case frameData:
		// RFC 9113 section 6.1: padding as long as the payload or longer.
		if h.has(flagPadded) && d.pad >= h.length {
			return connErrorf(CodeProtocol, "padding is longer than its DATA frame")
		}
		return to.dataEnd(h)
	case frameHeaders:
		p, err := stripHeaders(h, d.buf)
		if err != nil {
			return err
		}
		d.blockOf, d.blockCnt, d.inBlock = h, 0, true
		d.block = append(d.block[:0], p...)
	case frameContinuation:
		d.block = append(d.block, d.buf...)
	default:
		err := to.control(h, d.buf)
		if cap(d.buf) > keepBuf {
			d.buf = nil
		}
		return err
	}
	if !h.has(flagEndHeaders) {
		return nil
	}
	d.inBlock = false
	err := to.headers(d.blockOf, d.block)
	if cap(d.buf) > keepBuf {
		d.buf = nil
	}
	if cap(d.block) > keepBuf {
		d.block = nil
	}
	return err
}

// keepBuf is what an idle decoder may keep for the next frame, in bytes.
const keepBuf = 1 << 10

// stripHeaders removes padding and the deprecated priority fields of a HEADERS payload, RFC 9113 section 6.2.
func stripHeaders(h frameHeader, p []byte) ([]byte, error) {
	pad := 0
	if h.has(flagPadded) {
		if len(p) < 1 {
			return nil, connErrorf(CodeFrameSize, "padded HEADERS without Pad Length")
		}
		pad = int(p[0])
		p = p[1:]
	}
	if h.has(flagPriority) {
		if len(p) < priorityLen {
			return nil, connErrorf(CodeFrameSize, "HEADERS too short for its priority")
		}
		p = p[priorityLen:]
	}
	if pad > len(p) {
		return nil, connErrorf(CodeProtocol, "padding is longer than its HEADERS frame")
	}
	return p[:len(p)-pad], nil
}
