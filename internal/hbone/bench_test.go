package hbone

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// sink reads and forgets; its first answer tells that it is there.
func sinkApp(c *net.TCPConn) {
	io.Copy(io.Discard, c)
	c.Close()
}

// pushThrough sends n bytes on each connection and returns when the far application has taken them.
func pushThrough(b testing.TB, conns []*client, n int64) {
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Add(1)
		go func() {
			defer wg.Done()
			buf := make([]byte, 256<<10)
			for left := n; left > 0; {
				m, err := c.Write(buf[:min(int64(len(buf)), left)])
				if err != nil {
					b.Errorf("write: %v", err)
					return
				}
				left -= int64(m)
			}
			c.CloseWrite()
			io.Copy(io.Discard, c) // the sink closes when it has everything
		}()
	}
	wg.Wait()
}

// noDeadline takes a deadline away.
var noDeadline time.Time

func benchBulk(b *testing.B, streams int) {
	w := newWorld(b, worldOptions{app: sinkApp})
	var conns []*client
	for range streams {
		c := w.dial()
		c.SetDeadline(noDeadline)
		conns = append(conns, c)
	}
	const unit = 1 << 20
	b.SetBytes(unit)
	b.ReportAllocs()
	b.ResetTimer()
	pushThrough(b, conns, int64(b.N)*unit/int64(streams))
}

func BenchmarkOneStream(b *testing.B)      { benchBulk(b, 1) }
func BenchmarkSixteenStreams(b *testing.B) { benchBulk(b, 16) }

func BenchmarkRequests(b *testing.B) {
	w := newWorld(b, worldOptions{})
	const n = 16
	var conns [n]*client
	for i := range conns {
		conns[i] = w.dial()
		conns[i].SetDeadline(noDeadline)
	}
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var buf [100]byte
			for range b.N/n + min(1, max(0, b.N%n-i)) {
				c.Write(buf[:])
				if _, err := io.ReadFull(c, buf[:]); err != nil {
					b.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
}

func BenchmarkOpenClose(b *testing.B) {
	w := newWorld(b, worldOptions{})
	w.open().Reset(CodeCancel)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		s := w.open()
		near, far := tcpPair(b)
		go func() {
			near.CloseWrite()
			io.Copy(io.Discard, near)
			near.Close()
		}()
		if _, err := s.Splice(far); err != nil {
			b.Fatal(err)
		}
	}
}
