package hbone

import "encoding/binary"

type settingID uint16

// Settings of RFC 9113 section 6.5.2.
const (
	settingHeaderTableSize   settingID = 0x1
	settingEnablePush        settingID = 0x2
	settingMaxStreams        settingID = 0x3
	settingInitialWindowSize settingID = 0x4
	settingMaxFrameSize      settingID = 0x5
	settingMaxHeaderListSize settingID = 0x6
)

const (
	settingLen = 6
	// defaultWindow is every window before anybody says otherwise, RFC 9113 section 6.9.2.
	defaultWindow = 65535
	// maxWindow is the largest window there may be, RFC 9113 section 6.9.1.
	maxWindow = 1<<31 - 1
	// defaultHeaderTable is the HPACK table size before our SETTINGS are acknowledged.
	defaultHeaderTable = 4096
)

// peerSettings is what a peer announced, as far as we send by it.
type peerSettings struct {
	initialWindow int64
	maxFrame      int
	maxStreams    uint32
	maxHeaderList uint32
}

func initialPeerSettings() peerSettings {
	return peerSettings{
		initialWindow: defaultWindow,
		maxFrame:      minMaxFrame,
		maxStreams:    1<<32 - 1,
		maxHeaderList: 1<<32 - 1,
	}
}

// apply reads a SETTINGS payload. fromServer says who sent it.
func (s *peerSettings) apply(p []byte, fromServer bool) error {
	if len(p)%settingLen != 0 {
		return connErrorf(CodeFrameSize, "SETTINGS of %d bytes", len(p))
	}
	for ; len(p) > 0; p = p[settingLen:] {
		v := binary.BigEndian.Uint32(p[2:])
		switch settingID(binary.BigEndian.Uint16(p)) {
		case settingEnablePush:
			// RFC 9113 section 6.5.2: a server must not send 1, nobody more than 1.
			if v > 1 || v == 1 && fromServer {
				return connErrorf(CodeProtocol, "ENABLE_PUSH is %d", v)
			}
		case settingMaxStreams:
			s.maxStreams = v
		case settingInitialWindowSize:
			if v > maxWindow {
				return connErrorf(CodeFlowControl, "INITIAL_WINDOW_SIZE is %d", v)
			}
			s.initialWindow = int64(v)
		case settingMaxFrameSize:
			if v < minMaxFrame || v > maxMaxFrame {
				return connErrorf(CodeProtocol, "MAX_FRAME_SIZE is %d", v)
			}
			s.maxFrame = int(v)
		case settingMaxHeaderListSize:
			s.maxHeaderList = v
		}
		// HEADER_TABLE_SIZE needs nothing: our encoder has no table. Unknown settings are ignored, as the RFC says.
	}
	return nil
}

// appendPreface appends what either side sends first: the client's magic, SETTINGS, and the connection window.
func appendPreface(b []byte, client bool, l Limits) []byte {
	var p []byte
	add := func(id settingID, v int64) {
		p = binary.BigEndian.AppendUint16(p, uint16(id))
		p = binary.BigEndian.AppendUint32(p, uint32(v))
	}
	add(settingHeaderTableSize, 0)
	if client {
		b = append(b, clientPreface...)
		add(settingEnablePush, 0)
	} else {
		add(settingMaxStreams, int64(l.MaxStreams))
	}
	add(settingInitialWindowSize, l.StreamWindow)
	add(settingMaxFrameSize, int64(l.MaxFrameSize))
	add(settingMaxHeaderListSize, int64(l.MaxHeaderList))
	b = appendFrame(b, frameSettings, 0, 0, p)
	if more := l.ConnWindow - defaultWindow; more > 0 {
		b = appendWindowUpdate(b, 0, more)
	}
	return b
}
