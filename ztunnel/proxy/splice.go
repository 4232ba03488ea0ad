package proxy

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// spliceChunk is the most that moves between two updates of a byte counter, in
// bytes; within it the kernel moves data without this process reading it.
const spliceChunk = 1 << 20

// counters are the bytes of a plain connection so far: request is what the
// client sent.
type counters struct{ request, response atomic.Uint64 }

func (c *counters) load() (request, response uint64) { return c.request.Load(), c.response.Load() }

// splice carries bytes between client and upstream until both directions have
// ended, and closes both. The end of one direction is passed on alone
// (half-close); a reset or any other error of one side resets the other.
func splice(client, upstream *net.TCPConn, n *counters) error {
	var (
		once  sync.Once
		first error
		wg    sync.WaitGroup
	)
	fail := func(err error) {
		once.Do(func() {
			first = err
			reset(client)
			reset(upstream)
		})
	}
	pump := func(dst, src *net.TCPConn, count *atomic.Uint64) {
		defer wg.Done()
		if err := copyCounted(dst, src, count); err != nil {
			fail(err)
			return
		}
		if err := dst.CloseWrite(); err != nil {
			// The peer is gone already: the other direction tells how.
			return
		}
	}
	wg.Add(2)
	go pump(client, upstream, &n.response)
	pump(upstream, client, &n.request)
	wg.Wait()
	if first == nil {
		client.Close()
		upstream.Close()
	}
	return first
}

// copyCounted copies until the end of src. Between two TCP connections the kernel does it (splice).
func copyCounted(dst, src *net.TCPConn, count *atomic.Uint64) error {
	for {
		n, err := io.Copy(dst, &io.LimitedReader{R: src, N: spliceChunk})
		count.Add(uint64(n))
		if err != nil || n < spliceChunk {
			return err
		}
	}
}
