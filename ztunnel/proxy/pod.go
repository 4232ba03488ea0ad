package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/linux"
)

// OriginalDst says how a captured connection's destination is found.
type OriginalDst uint8

// The ways.
const (
	// FromNAT asks the kernel's NAT table (REDIRECT).
	FromNAT OriginalDst = iota
	// FromSocket takes the local address of the connection (sk_lookup, TPROXY).
	FromSocket
)

// PodConfig describes one pod, or the host in dedicated mode.
type PodConfig struct {
	UID, Name, Namespace, ServiceAccount string
	// NetNS is where connections are opened; nil means the process's own. The Pod closes it.
	NetNS       *linux.NetNS
	OriginalDst OriginalDst
	// AppMark is the packet mark of connections to the app, which go over lo with it; 0 means ports.MarkProxy.
	AppMark int
	// Dedicated serves the process's own netns without capture: no marks, no foreign source addresses.
	Dedicated bool
}

// Listeners bring connections to a Pod, which closes them. Nil ones are left out.
type Listeners struct {
	Outbound, InboundPlaintext, InboundHBONE, SOCKS *net.TCPListener
}

func (l Listeners) all() []*net.TCPListener {
	var out []*net.TCPListener
	for _, t := range []*net.TCPListener{l.Outbound, l.InboundPlaintext, l.InboundHBONE, l.SOCKS} {
		if t != nil {
			out = append(out, t)
		}
	}
	return out
}

// Pod serves the connections of one pod.
type Pod struct {
	p         *Proxy
	cfg       PodConfig
	id        identity.Identity
	log       *slog.Logger
	listeners Listeners
	ownPorts  map[uint16]bool // never forwarded to: the proxy's own
	pool      *hbone.Pool
	server    *hbone.Server

	ctx    context.Context // ends when connections are cut
	cancel context.CancelCauseFunc
	done   chan struct{}

	mu       sync.Mutex
	retired  bool
	linger   *time.Timer
	active   int // goroutines that may still use what the Pod owns
	conns    int
	tunnels  int
	accepted map[heldKey]struct{} // plaintext connections held, so that a spoofed port is not one of theirs
}

type heldKey struct{ client, server netip.AddrPort }

// Serve starts to serve a pod. It takes over the netns and the listeners, also when it fails.
func (p *Proxy) Serve(cfg PodConfig, l Listeners) (*Pod, error) {
	pod := &Pod{
		p: p, cfg: cfg, listeners: l,
		id:       identity.Identity{TrustDomain: p.cfg.TrustDomain, Namespace: cfg.Namespace, ServiceAccount: cfg.ServiceAccount},
		log:      p.cfg.Log.With("pod", cfg.Namespace+"/"+cfg.Name, "uid", cfg.UID),
		done:     make(chan struct{}),
		accepted: map[heldKey]struct{}{},
		ownPorts: map[uint16]bool{ports.ZtunnelOutbound: true, ports.ZtunnelInboundPlaintext: true, ports.HBONE: true},
	}
	pod.ctx, pod.cancel = context.WithCancelCause(context.Background())
	if err := pod.id.Validate(); err != nil {
		pod.closeListeners()
		pod.closeNetNS()
		return nil, fmt.Errorf("serve pod %q: %w", cfg.UID, err)
	}
	for _, t := range l.all() {
		if a, ok := t.Addr().(*net.TCPAddr); ok {
			pod.ownPorts[uint16(a.Port)] = true
		}
	}
	pod.pool = hbone.NewPool(hbone.PoolConfig{
		Dial: pod.dialTunnel, TLS: pod.clientTLS, Limits: p.cfg.Tunnel, Log: pod.log,
	})
	pod.server = hbone.NewServer(hbone.ServerConfig{
		TLS: identity.ServerTLS(pod.certificate, p.cfg.TrustDomain), Handle: pod.serveTunnelRequest,
		Limits: p.cfg.Tunnel, Log: pod.log,
	})
	p.cfg.Certs.Acquire(pod.id)
	pod.active = 1 // until Retire
	pod.accept(l.Outbound, pod.connection(pod.serveOutbound))
	pod.accept(l.InboundPlaintext, pod.connection(pod.servePlaintext))
	pod.accept(l.InboundHBONE, pod.serveTunnel)
	pod.accept(l.SOCKS, pod.connection(pod.serveSOCKS))
	return pod, nil
}

// Identity is who the pod is.
func (pod *Pod) Identity() identity.Identity { return pod.id }

// Done is closed when the pod has retired and its last connection has ended.
func (pod *Pod) Done() <-chan struct{} { return pod.done }

// Retire stops accepting. Live connections go on until they end. Tunnels are
// still accepted for the time of linger, then told to go elsewhere; calling it
// again with 0 ends that time. What the pod owns is closed after the last connection.
func (pod *Pod) Retire(linger time.Duration) {
	pod.mu.Lock()
	if pod.retired {
		hurry := linger <= 0 && pod.linger != nil && pod.linger.Stop()
		pod.mu.Unlock()
		if hurry {
			pod.leave()
		}
		return
	}
	pod.retired = true
	for _, l := range []*net.TCPListener{pod.listeners.Outbound, pod.listeners.InboundPlaintext, pod.listeners.SOCKS} {
		if l != nil {
			l.Close()
		}
	}
	if linger > 0 && pod.listeners.InboundHBONE != nil {
		pod.linger = time.AfterFunc(linger, pod.leave)
		pod.mu.Unlock()
		return
	}
	pod.mu.Unlock()
	pod.leave()
}

// leave ends the part of tunnels of Retire. It runs once.
func (pod *Pod) leave() {
	if l := pod.listeners.InboundHBONE; l != nil {
		l.Close()
	}
	// The pool is not drained: a connection accepted a moment ago may be about to open its stream.
	pod.server.Drain()
	pod.end()
}

// Cut ends every connection now, resetting the clients. Used after Retire.
func (pod *Pod) Cut(reason error) {
	pod.Retire(0)
	pod.cancel(reason)
	pod.p.registry.cutPod(pod, reason)
	pod.pool.Close()
	pod.server.Close()
}

// begin registers a goroutine that uses the pod; it fails once nothing may start any more.
func (pod *Pod) begin(counter *int, limit int) bool {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	if pod.active == 0 || *counter >= limit {
		return false
	}
	pod.active++
	*counter++
	return true
}

func (pod *Pod) finish(counter *int) {
	pod.mu.Lock()
	*counter--
	pod.mu.Unlock()
	pod.end()
}

// end undoes one count of active; the last one releases what the pod owns.
func (pod *Pod) end() {
	pod.mu.Lock()
	pod.active--
	last := pod.active == 0
	pod.mu.Unlock()
	if last {
		// Not here: this may be a goroutine that Close waits for.
		go pod.release()
	}
}

// release closes what the pod owns.
func (pod *Pod) release() {
	pod.pool.Close()
	pod.server.Close()
	pod.cancel(errRetired)
	pod.closeNetNS()
	pod.p.cfg.Certs.Release(pod.id)
	close(pod.done)
}

var errRetired = errors.New("pod retired")

func (pod *Pod) closeListeners() {
	for _, l := range pod.listeners.all() {
		l.Close()
	}
}

func (pod *Pod) closeNetNS() {
	if pod.cfg.NetNS != nil {
		if err := pod.cfg.NetNS.Close(); err != nil {
			pod.log.Warn("close netns", "error", err)
		}
	}
}

// certificate is the pod's own.
func (pod *Pod) certificate(ctx context.Context) (*identity.Certificate, error) {
	c, err := pod.p.cfg.Certs.Get(ctx, pod.id)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoCertificate, err)
	}
	return c, nil
}

var errNoCertificate = errors.New("no certificate")

func (pod *Pod) clientTLS(ctx context.Context, t hbone.Target) (*tls.Config, error) {
	c, err := pod.certificate(ctx)
	if err != nil {
		return nil, err
	}
	return identity.ClientTLS(c, t.Dest), nil
}

func (pod *Pod) dialTunnel(ctx context.Context, t hbone.Target) (*net.TCPConn, error) {
	return pod.dialOut(ctx, t.Addr, t.Local)
}

// dialOut connects to an address outside the pod, from the pod's address.
func (pod *Pod) dialOut(ctx context.Context, to netip.AddrPort, local netip.Addr) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	o := linux.DialOptions{Mark: ports.MarkProxy}
	if pod.cfg.Dedicated {
		o.Mark = 0
	} else if local.IsValid() && !local.IsLoopback() && local.Is4() == to.Addr().Unmap().Is4() {
		o.Local = local
	}
	c, err := pod.cfg.NetNS.Dial(ctx, to, o)
	if err != nil {
		return nil, err
	}
	return tune(c), nil
}

// dialApp connects to the pod's own app, as client where that is not the app's own address.
func (pod *Pod) dialApp(ctx context.Context, to netip.AddrPort, client netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	// From its own address to itself a connection needs no route back, and must not be bound to lo: the answers
	// would come with the index of the interface that has the address.
	o := linux.DialOptions{Mark: ports.MarkProxy}
	src := client.Addr().Unmap()
	if pod.cfg.Dedicated {
		o = linux.DialOptions{}
	} else if src.IsValid() && src != to.Addr() && !src.IsLoopback() && src.Is4() == to.Addr().Is4() {
		o.Local, o.Transparent = src, true
		o.AvoidPort = func(port uint16) bool {
			return pod.holds(heldKey{netip.AddrPortFrom(src, port), to})
		}
		if pod.cfg.AppMark != 0 {
			o.Mark, o.ToLoopback = pod.cfg.AppMark, true
		}
	}
	c, err := pod.cfg.NetNS.Dial(ctx, to, o)
	if err != nil {
		return nil, err
	}
	return tune(c), nil
}

func (pod *Pod) hold(k heldKey) {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	pod.accepted[k] = struct{}{}
}

func (pod *Pod) unhold(k heldKey) {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	delete(pod.accepted, k)
}

func (pod *Pod) holds(k heldKey) bool {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	_, ok := pod.accepted[k]
	return ok
}

// selfCall reports a destination that is the proxy itself, which would loop or
// be a way around capture.
func (pod *Pod) selfCall(dst netip.AddrPort) bool {
	return pod.ownPorts[dst.Port()]
}
