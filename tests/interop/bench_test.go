package interop

import (
	"io"
	"net"
	"sync"
	"testing"
)

// BenchmarkTunnel compares our tunnel with one that net/http and x/net make, both between the same two applications in
// this process: the ratio says something, the figures do not.
func BenchmarkTunnel(b *testing.B) {
	for _, peer := range []struct {
		name string
		dial func(b *testing.B, c *ca, a *app) func(testing.TB) *net.TCPConn
	}{
		{"ours", func(b *testing.B, c *ca, a *app) func(testing.TB) *net.TCPConn {
			s := startServer(b, c, a)
			return startClient(b, c, s.ln.Addr().(*net.TCPAddr).AddrPort()).dial
		}},
		{"xnet", func(b *testing.B, c *ca, a *app) func(testing.TB) *net.TCPConn {
			addr, _ := xnetServer(b, c, a)
			return newXnetClient(b, c, addr.String()).dial
		}},
	} {
		for _, streams := range []int{1, 8} {
			b.Run(peer.name+"/bulk"+string(rune('0'+streams)), func(b *testing.B) {
				c, a := newCA(b), newApp(b)
				benchBulk(b, &path{app: a, dial: peer.dial(b, c, a)}, streams)
			})
		}
		b.Run(peer.name+"/requests16", func(b *testing.B) {
			c, a := newCA(b), newApp(b)
			benchRequests(b, &path{app: a, dial: peer.dial(b, c, a)})
		})
	}
}

func benchBulk(b *testing.B, p *path, streams int) {
	const unit = 1 << 20
	var conns []*net.TCPConn
	for range streams {
		conns = append(conns, p.connect(b))
	}
	b.SetBytes(unit)
	b.ResetTimer()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Add(1)
		go func() {
			defer wg.Done()
			buf := make([]byte, 256<<10)
			buf[0] = cmdDiscard
			for left := b.N * unit / streams; left > 0; left -= len(buf) {
				if _, err := c.Write(buf[:min(left, len(buf))]); err != nil {
					b.Error(err)
					return
				}
			}
			c.CloseWrite()
			io.Copy(io.Discard, c)
		}()
	}
	wg.Wait()
}

func benchRequests(b *testing.B, p *path) {
	const n = 16
	var conns []*net.TCPConn
	for range n {
		c := p.connect(b)
		c.Write([]byte{cmdEcho})
		conns = append(conns, c)
	}
	b.ResetTimer()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var buf [100]byte
			for range b.N/n + 1 {
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
