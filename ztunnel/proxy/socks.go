package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/telemetry"
)

// Constants of SOCKS5 (RFC 1928).
const (
	socksVersion      = 5
	socksNoAuth       = 0
	socksNoMethod     = 0xff
	socksConnect      = 1
	socksIPv4         = 1
	socksName         = 3
	socksIPv6         = 4
	socksOK           = 0
	socksNotSupported = 7
	socksUnreachable  = 4
	// socksTimeout bounds the exchange before the connection is forwarded.
	socksTimeout = 10 * time.Second
)

var errSOCKS = errors.New("bad SOCKS5 request")

// socksRequest is what a client asks for: an address, or a name.
type socksRequest struct {
	addr netip.AddrPort
	name string
	port uint16
}

// serveSOCKS serves a client that names its destination itself, which is how
// the proxy is used on a host without capture.
func (pod *Pod) serveSOCKS(ctx context.Context, c *net.TCPConn) {
	f := pod.newFlow(telemetry.ReporterSource, remoteAddr(c), localAddr(c))
	defer f.end()
	if err := pod.socksHandshake(ctx, f, c); err != nil {
		f.fail(telemetry.FlagConnect, err)
		c.Close()
		return
	}
	pod.forwardOutbound(ctx, f, c)
}

func (pod *Pod) socksHandshake(ctx context.Context, f *flow, c *net.TCPConn) error {
	if err := c.SetDeadline(time.Now().Add(socksTimeout)); err != nil {
		return fmt.Errorf("start SOCKS5: %w", err)
	}
	r, err := readSOCKS(c)
	if err != nil {
		return err
	}
	dst := r.addr
	if r.name != "" {
		if dst, err = pod.socksLookup(ctx, r); err != nil {
			return errors.Join(err, socksReply(c, socksUnreachable))
		}
	}
	f.update(func(f *flow) { f.dst = dst })
	if err := socksReply(c, socksOK); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("end SOCKS5: %w", err)
	}
	return nil
}

// socksLookup finds the address of a service of the mesh by its name.
func (pod *Pod) socksLookup(ctx context.Context, r socksRequest) (netip.AddrPort, error) {
	own, snap, err := pod.ownWorkload(ctx)
	if err != nil {
		return netip.AddrPort{}, err
	}
	s := snap.ServiceByHostname(r.name, own.Namespace)
	if s == nil {
		return netip.AddrPort{}, fmt.Errorf("%w: no service with host name %q", errNoRoute, r.name)
	}
	vip := vipOf(s, pod.p.cfg.Network)
	if !vip.IsValid() {
		return netip.AddrPort{}, fmt.Errorf("%w: service %q has no address", errNoRoute, r.name)
	}
	return netip.AddrPortFrom(vip, r.port), nil
}

func socksReply(c io.Writer, code byte) error {
	if _, err := c.Write([]byte{socksVersion, code, 0, socksIPv4, 0, 0, 0, 0, 0, 0}); err != nil {
		return fmt.Errorf("answer SOCKS5: %w", err)
	}
	return nil
}

// readSOCKS reads the greeting and the request and answers the greeting.
func readSOCKS(c io.ReadWriter) (socksRequest, error) {
	var b [255]byte
	read := func(n int) ([]byte, error) {
		if _, err := io.ReadFull(c, b[:n]); err != nil {
			return nil, fmt.Errorf("%w: %w", errSOCKS, err)
		}
		return b[:n], nil
	}
	h, err := read(2)
	if err != nil {
		return socksRequest{}, err
	}
	if h[0] != socksVersion {
		return socksRequest{}, fmt.Errorf("%w: version %d", errSOCKS, h[0])
	}
	methods, err := read(int(h[1]))
	if err != nil {
		return socksRequest{}, err
	}
	method := byte(socksNoMethod)
	for _, m := range methods {
		if m == socksNoAuth {
			method = socksNoAuth
		}
	}
	if _, err := c.Write([]byte{socksVersion, method}); err != nil {
		return socksRequest{}, fmt.Errorf("answer SOCKS5: %w", err)
	}
	if method == socksNoMethod {
		return socksRequest{}, fmt.Errorf("%w: no method without authentication", errSOCKS)
	}
	if h, err = read(4); err != nil {
		return socksRequest{}, err
	}
	if h[0] != socksVersion || h[1] != socksConnect {
		return socksRequest{}, errors.Join(fmt.Errorf("%w: command %d", errSOCKS, h[1]), socksReply(c, socksNotSupported))
	}
	return readSOCKSAddress(h[3], read)
}

func readSOCKSAddress(kind byte, read func(int) ([]byte, error)) (socksRequest, error) {
	var r socksRequest
	var addr netip.Addr
	switch kind {
	case socksIPv4, socksIPv6:
		n := 4
		if kind == socksIPv6 {
			n = 16
		}
		a, err := read(n)
		if err != nil {
			return r, err
		}
		addr, _ = netip.AddrFromSlice(a)
	case socksName:
		n, err := read(1)
		if err != nil {
			return r, err
		}
		name, err := read(int(n[0]))
		if err != nil {
			return r, err
		}
		r.name = string(name)
		if ip, err := netip.ParseAddr(r.name); err == nil {
			addr, r.name = ip, ""
		} else if !validHost(r.name) {
			return r, fmt.Errorf("%w: name %q", errSOCKS, r.name)
		}
	default:
		return r, fmt.Errorf("%w: address type %d", errSOCKS, kind)
	}
	p, err := read(2)
	if err != nil {
		return r, err
	}
	r.port = binary.BigEndian.Uint16(p)
	if r.port == 0 || (r.name == "" && addr.Zone() != "") {
		return r, fmt.Errorf("%w: no usable address", errSOCKS)
	}
	if r.name == "" {
		r.addr = netip.AddrPortFrom(addr.Unmap(), r.port)
	}
	return r, nil
}
