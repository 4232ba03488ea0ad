package interop

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
)

// deadline bounds everything a test waits for.
const deadline = 120 * time.Second

// app is the application behind the tunnel. The first byte of a connection says what it does.
type app struct {
	ln      *net.TCPListener
	mu      sync.Mutex
	release chan struct{} // ends the stalled connections of now
	wg      sync.WaitGroup
}

const (
	cmdEcho  = 'E' // echo to the end
	cmdStall = 'S' // never read again
	cmdSum   = 'H' // read to the end, then answer with the hash
	cmdBoth  = 'B' // send sendBytes while reading to the end; then the hash of what was read
	cmdReset = 'R' // reset

	cmdDiscard = 'D' // read to the end
)

// bulk is how many bytes go each way in the comparison.
const bulk = 100 << 20

func newApp(t testing.TB) *app {
	t.Helper()
	a := &app{ln: listen(t), release: make(chan struct{})}
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		for {
			c, err := a.ln.AcceptTCP()
			if err != nil {
				return
			}
			a.wg.Add(1)
			go func() {
				defer a.wg.Done()
				defer c.Close()
				a.serve(c)
			}()
		}
	}()
	t.Cleanup(func() {
		a.ln.Close()
		a.releaseStalled()
		a.wg.Wait()
	})
	return a
}

func (a *app) releaseStalled() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.release)
	a.release = make(chan struct{})
}

func (a *app) stalled() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.release
}

func listen(t testing.TB) *net.TCPListener {
	t.Helper()
	return must(net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))(t)
}

func (a *app) addr() *net.TCPAddr { return a.ln.Addr().(*net.TCPAddr) }

func (a *app) serve(c *net.TCPConn) {
	var cmd [1]byte
	if _, err := io.ReadFull(c, cmd[:]); err != nil {
		return
	}
	switch cmd[0] {
	case cmdEcho:
		io.Copy(c, c)
	case cmdStall:
		<-a.stalled()
		c.SetLinger(0)
	case cmdSum:
		sum, _ := hash(c)
		c.Write(sum)
	case cmdBoth:
		done := make(chan []byte, 1)
		go func() {
			sum, _ := hash(c)
			done <- sum
		}()
		io.Copy(c, &pattern{seed: 'b', left: bulk})
		c.Write(<-done)
	case cmdDiscard:
		io.Copy(io.Discard, c)
	case cmdReset:
		c.SetLinger(0)
	}
}

// hash reads to the end.
func hash(r io.Reader) ([]byte, error) {
	h := xxhash.New()
	n, err := io.Copy(h, r)
	sum := binary.BigEndian.AppendUint64(nil, h.Sum64())
	return binary.BigEndian.AppendUint64(sum, uint64(n)), err
}

const hashLen = 16

// pattern is bytes that depend on seed and position.
type pattern struct {
	seed byte
	at   uint64
	left int64
}

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.left))
	for i := range b[:n] {
		x := p.at + uint64(i)
		b[i] = byte(x) ^ byte(x>>8)*3 ^ byte(x>>16)*5 ^ p.seed
	}
	p.at += uint64(n)
	p.left -= int64(n)
	return n, nil
}

func patternHash(seed byte, n int64) []byte {
	sum, _ := hash(&pattern{seed: seed, left: n})
	return sum
}

// send writes a command and n bytes of pattern, and ends.
func send(c *net.TCPConn, cmd, seed byte, n int64) error {
	if _, err := c.Write([]byte{cmd}); err != nil {
		return err
	}
	if _, err := io.Copy(struct{ io.Writer }{c}, &pattern{seed: seed, left: n}); err != nil {
		return err
	}
	return c.CloseWrite()
}

// echoes sends n bytes through the echo and compares.
func echoes(c *net.TCPConn, n int64) error {
	errs := make(chan error, 1)
	go func() { errs <- send(c, cmdEcho, 'e', n) }()
	got, err := hash(c)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if err := <-errs; err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if string(got) != string(patternHash('e', n)) {
		return fmt.Errorf("%d bytes came back otherwise than they were sent", n)
	}
	return nil
}
