package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/linux"
)

const (
	// acceptPauseMin and Max bound the pause after a failed accept: the process is short of descriptors or
	// memory, and asking again at once would only burn time.
	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = time.Second
)

// Keep-alive of the plain sides. An app whose pod was deleted is noticed after
// about idle + interval × count.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6}

// tune sets what every proxied TCP connection has.
func tune(c *net.TCPConn) *net.TCPConn {
	// Neither can fail on a connected socket in a way that matters: a dead one fails at the next read.
	_ = c.SetKeepAliveConfig(keepAlive)
	_ = c.SetNoDelay(true)
	return c
}

// accept serves l until it is closed.
func (pod *Pod) accept(l *net.TCPListener, serve func(*net.TCPConn)) {
	if l == nil {
		return
	}
	pod.mu.Lock()
	pod.active++
	pod.mu.Unlock()
	go func() {
		defer pod.end()
		pause := acceptPauseMin
		for {
			c, err := l.AcceptTCP()
			switch {
			case err == nil:
				pause = acceptPauseMin
				serve(tune(c))
			case errors.Is(err, net.ErrClosed):
				return
			default:
				pod.log.Warn("accept connection", "listener", l.Addr(), "error", err)
				if !sleep(pod.ctx, pause) {
					return
				}
				pause = min(2*pause, acceptPauseMax)
			}
		}
	}()
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// connection runs serve on a goroutine of its own, within the pod's limit.
func (pod *Pod) connection(serve func(context.Context, *net.TCPConn)) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		if !pod.begin(&pod.conns, MaxConnectionsPerPod) {
			pod.refuseOverLimit(c)
			return
		}
		go func() {
			defer pod.finish(&pod.conns)
			serve(pod.ctx, c)
		}()
	}
}

// serveTunnel serves one connection on the tunnel port.
func (pod *Pod) serveTunnel(c *net.TCPConn) {
	if !pod.begin(&pod.tunnels, MaxTunnelsPerPod) {
		pod.refuseOverLimit(c)
		return
	}
	go func() {
		defer pod.finish(&pod.tunnels)
		remote, local := remoteAddr(c), localAddr(c)
		if err := pod.server.ServeConn(pod.ctx, c); err != nil {
			pod.log.Debug("tunnel ended", "peer", remote, "local", local, "error", err)
		}
	}()
}

// originalDst is where a captured connection was going.
func (pod *Pod) originalDst(c *net.TCPConn) netip.AddrPort {
	local := localAddr(c)
	if pod.cfg.OriginalDst == FromNAT {
		if dst, err := linux.OriginalDst(c); err == nil {
			return netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
		}
		// No translation: someone called the listener itself. The self-call guard sees its port.
	}
	return local
}

func localAddr(c net.Conn) netip.AddrPort  { return toAddrPort(c.LocalAddr()) }
func remoteAddr(c net.Conn) netip.AddrPort { return toAddrPort(c.RemoteAddr()) }

func toAddrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// reset closes c so that its peer sees a reset and not an orderly end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
