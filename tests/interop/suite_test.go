package interop

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// path is a way to the application through a tunnel of which one end is ours.
type path struct {
	app *app
	// dial returns a TCP connection that is tunnelled to the application. The test closes it.
	dial func(t testing.TB) *net.TCPConn
	// closesOnReset: the peer tells its own side of a reset stream by closing, as Envoy's TCP proxy does.
	closesOnReset bool
}

func (p *path) connect(t testing.TB) *net.TCPConn {
	t.Helper()
	c := p.dial(t)
	c.SetDeadline(time.Now().Add(deadline))
	t.Cleanup(func() { c.Close() })
	return c
}

// run is the suite that every peer passes.
func (p *path) run(t *testing.T) {
	t.Run("hundred megabytes each way", p.testBulk)
	t.Run("half-close", p.testHalfClose)
	t.Run("stalled streams beside a live one", p.testStalled)
	t.Run("many short streams", p.testShort)
	t.Run("reset", p.testReset)
}

func (p *path) testBulk(t *testing.T) {
	c := p.connect(t)
	errs := make(chan error, 1)
	go func() { errs <- send(c, cmdBoth, 'a', bulk) }()
	got, err := hash(io.LimitReader(c, bulk))
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	if !bytes.Equal(got, patternHash('b', bulk)) {
		t.Error("what came differs from what the application sent")
	}
	sum, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(sum, patternHash('a', bulk)) {
		t.Errorf("the application got something else than was sent (%x, %v)", sum, err)
	}
	if err := <-errs; err != nil {
		t.Errorf("write: %v", err)
	}
}

func (p *path) testHalfClose(t *testing.T) {
	c := p.connect(t)
	if err := send(c, cmdSum, 'h', 1000); err != nil {
		t.Fatal(err)
	}
	// The application answers only after our end.
	got, err := io.ReadAll(c)
	if err != nil || len(got) != hashLen || !bytes.Equal(got, patternHash('h', 1000)) {
		t.Errorf("answer after half-close: %x, %v", got, err)
	}
}

func (p *path) testStalled(t *testing.T) {
	const n = 32
	defer p.app.releaseStalled()
	var stuck sync.WaitGroup
	for range n {
		c := p.connect(t)
		c.Write([]byte{cmdStall})
		stuck.Add(1)
		go func() {
			defer stuck.Done()
			// Until nothing has been taken for a while: then every window and buffer on the way is full.
			block := make([]byte, 64<<10)
			for {
				c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
				if _, err := c.Write(block); err != nil {
					return
				}
			}
		}()
	}
	stuck.Wait()
	if err := echoes(p.connect(t), 8<<20); err != nil {
		t.Errorf("live stream beside %d stalled ones: %v", n, err)
	}
}

func (p *path) testShort(t *testing.T) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 25 {
				if err := echoes(p.connect(t), 3000); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
}

func (p *path) testReset(t *testing.T) {
	c := p.connect(t)
	c.Write([]byte{cmdReset})
	if _, err := io.Copy(io.Discard, c); !isReset(err) && (err != nil || !p.closesOnReset) {
		t.Errorf("the application reset its connection, ours ended with %v", err)
	}
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
