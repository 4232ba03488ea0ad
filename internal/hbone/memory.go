package hbone

import (
	"sync"
	"sync/atomic"
)

const (
	// recordPlain is the largest plaintext of a TLS 1.3 record, RFC 8446 section 5.1.
	recordPlain = 16384
	// dataPerRecord is the DATA payload that fills one record together with its frame header, so that a peer can act on
	// every record it decrypts.
	dataPerRecord = recordPlain - frameHeaderLen
	// bigRecords is how many records one read of a busy application socket fills; more did not pay in measurements.
	bigRecords = 8

	smallSend = 4 << 10 // bytes: a request or a reply
	inputSize = 128 << 10
	wireSize  = 256 << 10 // bytes of sealed records that one system call writes

	// defaultGrowth bounds the window that all streams together get beyond their first one.
	defaultGrowth = 64 << 20
	// defaultBuffered bounds what all streams together hold for applications that do not read.
	defaultBuffered = 256 << 20
)

// Memory owns the buffers of tunnels and keeps the account of what undelivered data may take.
//
// Two bounds hold over all tunnels that share one Memory. Windows beyond a stream's first are granted from a budget
// (growth). And when the bytes that wait for applications exceed the cap (buffered), a stream that holds more than its
// fair share of the cap is reset as soon as it receives more; streams that hold less go on. So one process with n
// stalled streams holds at most about cap plus one read buffer, whatever the peers announce and send.
type Memory struct {
	small, record, big sync.Pool // *sendBuf
	input, wire        sync.Pool // *[]byte
	chunk4, chunk16    sync.Pool // *chunk

	growthCap, bufferedCap int64
	growth                 atomic.Int64 // bytes of window granted beyond the first
	buffered               atomic.Int64 // bytes waiting for applications
	holders                atomic.Int64 // streams that hold some of them
}

// NewMemory makes a Memory with the two caps in bytes; zero means the default.
func NewMemory(growth, buffered int64) *Memory {
	orDefault(&growth, defaultGrowth)
	orDefault(&buffered, defaultBuffered)
	return &Memory{growthCap: growth, bufferedCap: buffered}
}

// Buffered returns the bytes received that wait for applications.
func (m *Memory) Buffered() int64 { return m.buffered.Load() }
