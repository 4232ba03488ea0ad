package capture

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/cni-plugin/redirect"
	"github.com/ambit-mesh/ambit/internal/linux"
)

// captured is a connection that the proxy got.
type captured struct {
	role     string
	src, dst netip.AddrPort
}

// proxy passes captured connections on, as ztunnel does for strangers.
type proxy struct {
	ns      *linux.NetNS
	orig    zds.OriginalDestination
	appMark uint32

	listeners []*net.TCPListener
	wg        sync.WaitGroup
	conns     connSet

	mu   sync.Mutex
	seen []captured
}

// startProxy serves duplicates of the listeners.
func startProxy(t *testing.T, ns *linux.NetNS, r redirect.Redirector, ls redirect.Listeners) *proxy {
	t.Helper()
	p := &proxy{ns: ns, orig: r.OriginalDestination(), appMark: r.AppMark()}
	for role, f := range map[string]*os.File{"outbound": ls.Outbound, "inbound": ls.InboundPlaintext, "hbone": ls.InboundHBONE} {
		l, err := linux.ListenerFromFile(dup(t, f))
		if err != nil {
			t.Fatal(err)
		}
		p.listeners = append(p.listeners, l)
		p.wg.Go(func() { p.accept(role, l) })
	}
	t.Cleanup(p.stop)
	return p
}

func dup(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd := -1
	err := linux.WithFD(f, func(old int) (err error) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// stopListening closes the proxy's listeners; its connections go on.
func (p *proxy) stopListening() {
	for _, l := range p.listeners {
		l.Close()
	}
}

func (p *proxy) stop() {
	p.stopListening()
	p.conns.closeAll()
	p.wg.Wait()
}

func (p *proxy) accept(role string, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		p.conns.add(c)
		p.wg.Go(func() {
			defer p.conns.close(c)
			p.serve(role, c)
		})
	}
}

func (p *proxy) serve(role string, c *net.TCPConn) {
	src, dst := unmap(c.RemoteAddr()), unmap(c.LocalAddr())
	// HBONE is never translated.
	if p.orig == zds.OriginalDestination_NAT && role != "hbone" {
		d, err := linux.OriginalDst(c)
		if err != nil {
			return
		}
		dst = d
	}
	p.mu.Lock()
	p.seen = append(p.seen, captured{role, src, dst})
	p.mu.Unlock()
	if role == "hbone" {
		io.WriteString(c, src.String()+"\n")
		io.Copy(c, c)
		return
	}
	o := linux.DialOptions{Mark: ports.MarkProxy}
	if role == "inbound" {
		o = linux.DialOptions{Local: src.Addr(), Transparent: true, Mark: int(p.appMark), ToLoopback: true}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	up, err := p.ns.Dial(ctx, dst, o)
	if err != nil {
		c.SetLinger(0) // the client shall see a reset, as if the refusal were passed on
		return
	}
	p.conns.add(up)
	defer p.conns.close(up)
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(up, c); up.CloseWrite() })
	wg.Go(func() { io.Copy(c, up); c.CloseWrite() })
	wg.Wait()
}

// find returns what came from src since the last reset.
func (p *proxy) find(src netip.AddrPort) (captured, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.seen, func(c captured) bool { return c.src == src })
	if i < 0 {
		return captured{}, false
	}
	return p.seen[i], true
}

func (p *proxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.seen)
}
