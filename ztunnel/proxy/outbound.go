package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/policy"
	"github.com/ambit-mesh/ambit/ztunnel/state"
)

// Why an outbound connection is refused.
var (
	errSelfCall   = errors.New("refused a call to the proxy itself")
	errOverLimit  = errors.New("too many connections of this pod")
	errNoRoute    = errors.New("no route")
	errDeniedPeer = errors.New("the destination's policy denied the connection")
)

// cutCode ends the stream of a connection that the proxy cuts. Peers take CANCEL
// for an orderly end; this one resets the app on the other side (RFC 9113, section 8.5).
const cutCode = hbone.CodeConnect

// waypointSpread is how many connections of a pod share a tunnel to a waypoint before there is another one. Envoy does all
// work of a tunnel on one worker, some 100 µs of it for a request: more connections than this can keep a worker busy while
// others have nothing to do. Fewer on each tunnel cost every request up to a third more, since less is read and written at
// once.
const waypointSpread = 16

// serveOutbound serves a connection that the pod's app opened.
func (pod *Pod) serveOutbound(ctx context.Context, c *net.TCPConn) {
	f := pod.newFlow(telemetry.ReporterSource, remoteAddr(c), pod.originalDst(c))
	defer f.end()
	pod.forwardOutbound(ctx, f, c)
}

// forwardOutbound decides where f goes and carries it. It owns c.
func (pod *Pod) forwardOutbound(ctx context.Context, f *flow, c *net.TCPConn) {
	if f.dst.Addr().IsLoopback() && pod.selfCall(f.dst) {
		f.fail(telemetry.FlagSelfCall, errSelfCall)
		reset(c)
		return
	}
	own, snap, err := pod.ownWorkload(ctx)
	if err != nil {
		f.fail(telemetry.FlagNoSource, err)
		reset(c)
		return
	}
	f.update(func(f *flow) { f.source, f.sourceID = own, pod.id })
	mine := slices.Contains(own.Addresses, f.dst.Addr())
	if mine && pod.selfCall(f.dst) {
		f.fail(telemetry.FlagSelfCall, errSelfCall)
		reset(c)
		return
	}
	up, err := snap.Resolve(own, f.dst)
	if err != nil {
		f.fail(telemetry.FlagNoRoute, err)
		reset(c)
		return
	}
	f.update(func(f *flow) { f.dest, f.service = up.Workload, up.Service })
	switch {
	case up.Kind == state.Refused:
		f.fail(telemetry.FlagNoRoute, fmt.Errorf("%w: %s", errNoRoute, up.Reason))
		reset(c)
	case !up.Waypoint && up.Workload != nil && up.Workload.UID == own.UID:
		pod.toItself(ctx, f, c, up.Addr)
	case up.Kind == state.HBONE:
		pod.toTunnel(ctx, f, c, own, up)
	case up.Kind == state.Plaintext:
		pod.toPlain(ctx, f, c, up.Addr)
	case up.Kind == state.Passthrough && mine:
		pod.toItself(ctx, f, c, f.dst)
	case up.Kind == state.Passthrough:
		pod.toPlain(ctx, f, c, f.dst)
	default:
		f.fail(telemetry.FlagNoRoute, fmt.Errorf("%w: unknown kind %v", errNoRoute, up.Kind))
		reset(c)
	}
}

// toTunnel carries c through a tunnel to the next hop.
func (pod *Pod) toTunnel(ctx context.Context, f *flow, c *net.TCPConn, own *state.Workload, up state.Upstream) {
	host := ""
	if up.Service != nil {
		host = up.Service.Hostname
	}
	trace := newTraceparent()
	f.update(func(f *flow) {
		f.protocol, f.mutualTLS, f.hboneAddr, f.upstream = protocolHBONE, true, up.Authority, up.Tunnel.String()
		f.dst, f.trace = up.Tunnel, traceID(trace)
	})
	f.open()
	target := hbone.Target{Source: pod.id.String(), Dest: up.SANs, Addr: up.Tunnel, Local: f.src.Addr()}
	if up.Waypoint {
		target.Spread = waypointSpread
	}
	headers := []hbone.Header{
		{Name: headerBaggage, Value: baggage(own)},
		{Name: headerForwarded, Value: forwarded(f.src, host)},
		{Name: headerTraceparent, Value: trace},
	}
	openCtx, cancel := context.WithTimeout(ctx, tunnelTimeout)
	stream, err := pod.pool.Open(openCtx, target, up.Authority, headers)
	cancel()
	if err != nil {
		f.fail(tunnelFailure(err))
		reset(c)
		return
	}
	// The client's request is what goes from its app into the stream.
	f.carry(func() (uint64, uint64) { toApp, fromApp := stream.Bytes(); return fromApp, toApp },
		func() { stream.Reset(cutCode) })
	if _, err := stream.Splice(c); !orderly(err) {
		f.fail(flagOf(err), fmt.Errorf("carry connection: %w", err))
	}
}

// tunnelFailure is the flag of a failed open and the error with a hint.
func tunnelFailure(err error) (string, error) {
	flags := flagOf(err)
	switch {
	case flags == telemetry.FlagDenied:
		err = fmt.Errorf("%w: %w", errDeniedPeer, err)
	case flags == telemetry.FlagConnect && timedOut(err):
		flags = telemetry.FlagNetworkPolicy
		err = fmt.Errorf("open tunnel (a NetworkPolicy may block port 15008): %w", err)
	default:
		err = fmt.Errorf("open tunnel: %w", err)
	}
	return flags, err
}

// toPlain carries c to an address outside the mesh.
func (pod *Pod) toPlain(ctx context.Context, f *flow, c *net.TCPConn, to netip.AddrPort) {
	f.update(func(f *flow) { f.dst, f.upstream = to, to.String() })
	f.open()
	up, err := pod.dialOut(ctx, to, f.src.Addr())
	pod.carryPlain(f, c, up, err)
}

// toItself carries c to the pod's own app, for a pod that calls a service it is
// an endpoint of. The bytes stay in the pod; policy is asked as for any caller.
func (pod *Pod) toItself(ctx context.Context, f *flow, c *net.TCPConn, to netip.AddrPort) {
	f.update(func(f *flow) { f.dst, f.upstream = to, to.String() })
	f.open()
	if pod.selfCall(to) {
		f.fail(telemetry.FlagSelfCall, errSelfCall)
		reset(c)
		return
	}
	if v := f.judge(policy.Conn{Source: pod.id, HasSource: true, SourceIP: to.Addr(), Dest: to}); !v.Allowed {
		f.deny(v)
		reset(c)
		return
	}
	up, err := pod.dialApp(ctx, to, netip.AddrPortFrom(to.Addr(), 0))
	pod.carryPlain(f, c, up, err)
}

// carryPlain splices c with the outcome of a dial.
func (pod *Pod) carryPlain(f *flow, c, up *net.TCPConn, err error) {
	if err == nil {
		err = f.wasCut()
		if err != nil {
			reset(up)
		}
	}
	if err != nil {
		f.fail(telemetry.FlagConnect, fmt.Errorf("connect: %w", err))
		reset(c)
		return
	}
	n := new(counters)
	f.carry(n.load, func() { reset(c); reset(up) })
	if err := splice(c, up, n); !orderly(err) {
		f.fail(telemetry.FlagConnect, fmt.Errorf("carry connection: %w", err))
	}
}

// refuseOverLimit records a connection that the pod's limit refused.
func (pod *Pod) refuseOverLimit(c *net.TCPConn) {
	f := pod.newFlow(telemetry.ReporterDestination, remoteAddr(c), localAddr(c))
	f.fail(telemetry.FlagLimit, errOverLimit)
	reset(c)
	f.end()
}
