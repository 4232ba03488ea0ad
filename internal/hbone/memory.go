package hbone

import (
	"sync"
	"sync/atomic"
)

const (
	// recordPlain is the largest plaintext of a TLS 1.3 record, RFC 8446 section 5.1.
	recordPlain = 16384
	// recordHead and recordTail are the room a sealed record needs around its plaintext: header, and content type plus
	// authentication tag (RFC 8446 section 5.2). Send buffers leave it free, so that a record layer can seal in place.
	recordHead   = 5
	recordTail   = 1 + 16
	recordStride = recordHead + recordPlain + recordTail

	// dataPerRecord is the DATA payload that fills one record together with its frame header, so that a peer can act on
	// every record it decrypts.
	dataPerRecord = recordPlain - frameHeaderLen
	// bigRecords is how many records one read of a busy application socket fills; more did not pay in measurements.
	bigRecords = 8

	// smallSend is the size of the smallest send buffer in bytes: a request or a reply.
	smallSend = 4 << 10
	// inputSize is how many bytes of ciphertext one system call reads, and plainSize what is decrypted before
	// applications get their share.
	inputSize = 128 << 10
	plainSize = 128 << 10
	// wireSize is how many bytes of sealed records one system call writes.
	wireSize = 256 << 10

	smallChunk = 4 << 10
	largeChunk = 16 << 10

	// defaultGrowth bounds the window that all streams together get beyond their first one, in bytes.
	defaultGrowth = 64 << 20
	// defaultBuffered bounds what all streams together hold for applications that do not read, in bytes.
	defaultBuffered = 256 << 20
)

// sendClass is the size of a send buffer. A stream climbs one when a read filled its buffer, and steps down when it
// filled little of it.
type sendClass uint8

const (
	classSmall sendClass = iota
	classRecord
	classBig
)

// payload returns how many bytes of DATA a buffer of the class carries.
func (c sendClass) payload() int {
	switch c {
	case classSmall:
		return smallSend - recordHead - recordTail - frameHeaderLen
	case classRecord:
		return dataPerRecord
	}
	return dataPerRecord * bigRecords
}

// next returns the class for the next read, after one that got n bytes.
func (c sendClass) next(n int) sendClass {
	switch full := c.payload(); {
	case n == full && c < classBig:
		return c + 1
	case n < full/8 && c > classSmall:
		return c - 1
	}
	return c
}

// sendBuf holds frames on their way to the record layer: the plaintext of record i lies at i*recordStride+recordHead.
type sendBuf struct {
	b       []byte
	plain   int // plaintext bytes, frame headers included
	sealed  int // of them, those the record layer has taken
	payload int // DATA bytes, as reserved from the send queue
	class   sendClass
}

// record returns the room for the plaintext of record i.
func (b *sendBuf) record(i int) []byte {
	at := i*recordStride + recordHead
	return b.b[at:min(at+recordPlain, len(b.b)-recordTail)]
}

// chunk holds bytes that wait for an application.
type chunk struct {
	b    []byte
	r, w int // the bytes b[r:w] wait
}

// Memory owns the buffers of tunnels and keeps the account of what undelivered data may take.
//
// Two bounds hold over all tunnels that share one Memory. Windows beyond a stream's first are granted from a budget
// (growth). And when the bytes that wait for applications exceed half of the cap (buffered), a stream that holds more than
// its fair share of that half is reset as soon as it receives more; streams that hold less go on, up to the cap. So one
// process with many stalled streams holds the cap plus one batch per tunnel at most, whatever its peers send.
type Memory struct {
	small, record, big sync.Pool // *sendBuf
	input, plain, wire sync.Pool // *[]byte
	chunkS, chunkL     sync.Pool // *chunk

	growthCap, bufferedCap int64
	growth                 atomic.Int64 // bytes of window granted beyond the first
	buffered               atomic.Int64 // bytes waiting for applications
	holders                atomic.Int64 // streams that hold some of them
}

// NewMemory makes a Memory with the two caps in bytes; zero means the default.
func NewMemory(growth, buffered int64) *Memory {
	orDefault(&growth, defaultGrowth)
	orDefault(&buffered, defaultBuffered)
	m := &Memory{growthCap: growth, bufferedCap: buffered}
	send := func(c sendClass, size int) func() any {
		return func() any { return &sendBuf{b: make([]byte, size), class: c} }
	}
	m.small.New = send(classSmall, smallSend)
	m.record.New = send(classRecord, recordStride)
	m.big.New = send(classBig, recordStride*bigRecords)
	slice := func(size int) func() any {
		return func() any { b := make([]byte, size); return &b }
	}
	m.input.New, m.plain.New, m.wire.New = slice(inputSize), slice(plainSize), slice(wireSize)
	piece := func(size int) func() any {
		return func() any { return &chunk{b: make([]byte, size)} }
	}
	m.chunkS.New, m.chunkL.New = piece(smallChunk), piece(largeChunk)
	return m
}

// Buffered returns the bytes received that wait for applications.
func (m *Memory) Buffered() int64 { return m.buffered.Load() }

func (m *Memory) sendPool(c sendClass) *sync.Pool {
	switch c {
	case classSmall:
		return &m.small
	case classRecord:
		return &m.record
	}
	return &m.big
}

func (m *Memory) getSend(c sendClass) *sendBuf {
	b := m.sendPool(c).Get().(*sendBuf)
	b.plain, b.sealed, b.payload = 0, 0, 0
	return b
}

func (m *Memory) putSend(b *sendBuf) { m.sendPool(b.class).Put(b) }

// getChunk returns a chunk for n more bytes.
func (m *Memory) getChunk(n int) *chunk {
	p := &m.chunkS
	if n > smallChunk {
		p = &m.chunkL
	}
	k := p.Get().(*chunk)
	k.r, k.w = 0, 0
	return k
}

func (m *Memory) putChunk(k *chunk) {
	if len(k.b) == smallChunk {
		m.chunkS.Put(k)
	} else {
		m.chunkL.Put(k)
	}
}

// hold accounts for n more bytes of a stream that then holds total. It reports whether the stream may hold them.
func (m *Memory) hold(n, total int64) bool {
	if n == total {
		m.holders.Add(1)
	}
	sum := m.buffered.Add(n)
	fair := m.bufferedCap / 2
	return sum <= fair || sum <= m.bufferedCap && total <= fair/max(1, m.holders.Load())
}

// drop accounts for n bytes less of a stream that then holds total.
func (m *Memory) drop(n, total int64) {
	if n > 0 {
		m.buffered.Add(-n)
		if total == 0 {
			m.holders.Add(-1)
		}
	}
}

// grow takes n bytes of window from the budget, or none. Nothing is granted while half of the cap is in use.
func (m *Memory) grow(n int64) bool {
	if n <= 0 || m.buffered.Load() > m.bufferedCap/2 {
		return false
	}
	if m.growth.Add(n) > m.growthCap {
		m.growth.Add(-n)
		return false
	}
	return true
}

func (m *Memory) shrink(n int64) { m.growth.Add(-n) }
