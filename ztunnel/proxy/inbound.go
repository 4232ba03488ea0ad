package proxy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/policy"
	"github.com/ambit-mesh/ambit/ztunnel/state"
)

// statusDenied answers a request that policy refuses: 401, as Istio's proxy does.
const statusDenied = http.StatusUnauthorized

// requestError is a refusal with the status to answer.
type requestError struct {
	status int
	flags  string
	err    error
}

func (e *requestError) Error() string { return e.err.Error() }
func (e *requestError) Unwrap() error { return e.err }

func refusal(status int, flags, format string, args ...any) *requestError {
	return &requestError{status: status, flags: flags, err: fmt.Errorf(format, args...)}
}

// inboundTarget is where a tunnel request goes.
type inboundTarget struct {
	app      netip.AddrPort // where to connect
	intended netip.AddrPort // what the client meant, for the PROXY protocol
	proxy    bool           // start with a PROXY header
	service  *state.Service
}

// serveTunnelRequest serves one CONNECT. It is the Handle of the tunnel server.
func (pod *Pod) serveTunnelRequest(ctx context.Context, r *hbone.Request) {
	f := pod.newFlow(telemetry.ReporterDestination, r.Remote, r.Local)
	defer f.end()
	if !pod.begin(&pod.conns, MaxConnectionsPerPod) {
		f.fail(telemetry.FlagLimit, errOverLimit)
		r.Reject(http.StatusServiceUnavailable)
		return
	}
	defer pod.finish(&pod.conns)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(pod.ctx, func() { cancel(context.Cause(pod.ctx)) })
	defer stop()

	app, own, err := pod.answerRequest(ctx, f, r)
	if err != nil {
		f.fail(err.flags, err.err)
		r.Reject(err.status)
		return
	}
	if app == nil {
		r.Reject(statusDenied)
		return
	}
	stream, aerr := r.Accept([]hbone.Header{{Name: headerBaggage, Value: baggage(own)}})
	if aerr != nil {
		reset(app)
		f.fail(telemetry.FlagHTTP2, fmt.Errorf("accept stream: %w", aerr))
		return
	}
	// The client's request is what goes out of the stream to the app.
	f.carry(stream.Bytes, func() { stream.Reset(cutCode) })
	if _, err := stream.Splice(app); !orderly(err) {
		f.fail(flagOf(err), fmt.Errorf("carry connection: %w", err))
	}
}

// answerRequest checks a request in the order that facts of the connection
// become known and connects to the app. No connection and no error means that
// policy denied.
func (pod *Pod) answerRequest(ctx context.Context, f *flow, r *hbone.Request) (*net.TCPConn, *state.Workload, *requestError) {
	trace := traceparentOr(r.Header(headerTraceparent))
	f.update(func(f *flow) {
		f.protocol, f.mutualTLS, f.hboneAddr, f.trace = protocolHBONE, true, r.Authority, traceID(trace)
	})
	if r.Method != http.MethodConnect {
		return nil, nil, refusal(http.StatusBadRequest, telemetry.FlagConnect, "expected method CONNECT, got %q", r.Method)
	}
	a, err := parseAuthority(r.Authority)
	if err != nil {
		return nil, nil, refusal(http.StatusBadRequest, telemetry.FlagConnect, "%w", err)
	}
	src, err := identity.Peer(r.TLS)
	if err != nil {
		return nil, nil, refusal(http.StatusBadRequest, telemetry.FlagTLS, "read peer identity: %w", err)
	}
	own, snap, err := pod.ownWorkload(ctx)
	if err != nil {
		return nil, nil, refusal(http.StatusServiceUnavailable, telemetry.FlagNoSource, "find own workload: %w", err)
	}
	f.update(func(f *flow) { f.dest, f.sourceID = own, src })
	pod.describeSource(f, snap, r)
	t, rerr := pod.inboundTarget(snap, own, a, r)
	if rerr != nil {
		return nil, nil, rerr
	}
	f.update(func(f *flow) { f.service, f.upstream = t.service, t.app.String() })
	f.open()
	verdict := f.judge(policy.Conn{Source: src, HasSource: true, SourceIP: r.Remote.Addr().Unmap(), Dest: t.app})
	if !verdict.Allowed {
		f.deny(verdict)
		return nil, own, nil
	}
	app, err := pod.dialApp(ctx, t.app, r.Remote)
	if err == nil && t.proxy {
		err = writeProxyHeader(app, r.Remote, t.intended, src.String())
	}
	if err == nil {
		err = f.wasCut()
	}
	if err != nil {
		if app != nil {
			reset(app)
		}
		return nil, nil, refusal(http.StatusServiceUnavailable, telemetry.FlagConnect, "connect to app: %w", err)
	}
	return app, own, nil
}

// describeSource finds out who calls, for logs and metrics only.
func (pod *Pod) describeSource(f *flow, snap *state.Snapshot, r *hbone.Request) {
	network := r.Header(headerForwardedNetwork)
	if network != "" && network != pod.p.cfg.Network {
		b := parseBaggage(r.Header(headerBaggage))
		f.update(func(f *flow) { f.claimed = &b })
		return
	}
	w := snap.WorkloadByIP(pod.p.cfg.Network, r.Remote.Addr().Unmap())
	f.update(func(f *flow) { f.source = w })
}

// inboundTarget checks that the request is for this pod and finds the app's address.
func (pod *Pod) inboundTarget(snap *state.Snapshot, own *state.Workload, a authority, r *hbone.Request) (inboundTarget, *requestError) {
	local := r.Local.Addr().Unmap()
	t := inboundTarget{intended: a.addr}
	if a.host == "" {
		if a.addr.Addr() != local && own.ApplicationTunnel == nil && !pod.isWaypointOf(snap, own, local, a.addr) {
			return t, refusal(http.StatusBadRequest, telemetry.FlagConnect,
				"ip mismatch: asked for %s through %s", a.addr.Addr(), local)
		}
		t.app = netip.AddrPortFrom(local, a.port)
		t.service = guessService(snap, own, a.port, parseForwardedHost(r.Header(headerForwarded)))
	} else {
		s := snap.ServiceByHostname(a.host, own.Namespace)
		if s == nil {
			return t, refusal(http.StatusServiceUnavailable, telemetry.FlagNoRoute, "no service with host name %q", a.host)
		}
		port := targetPort(own, s, a.port)
		if port == 0 {
			return t, refusal(http.StatusServiceUnavailable, telemetry.FlagNoRoute, "service %q has no port %d", a.host, a.port)
		}
		t.app, t.service = netip.AddrPortFrom(local, port), s
		t.intended = netip.AddrPortFrom(vipOf(s, pod.p.cfg.Network), a.port)
	}
	if pod.selfCall(t.app) {
		return t, refusal(http.StatusServiceUnavailable, telemetry.FlagSelfCall, "port %d: %w", t.app.Port(), errSelfCall)
	}
	if tunnel := own.ApplicationTunnel; tunnel != nil {
		t.proxy = tunnel.Proxy
		if tunnel.Port != 0 {
			t.app = netip.AddrPortFrom(local, tunnel.Port)
		}
		if t.proxy && !t.intended.Addr().IsValid() {
			return t, refusal(http.StatusServiceUnavailable, telemetry.FlagNoRoute, "service %q has no address", a.host)
		}
	}
	return t, nil
}

// isWaypointOf reports whether own is the waypoint of what dst addresses: then
// the request is meant for own although it names another address.
func (pod *Pod) isWaypointOf(snap *state.Snapshot, own *state.Workload, local netip.Addr, dst netip.AddrPort) bool {
	network := pod.p.cfg.Network
	var g *state.GatewayAddress
	if s := snap.ServiceByVIP(network, dst.Addr(), own.Namespace); s != nil {
		g = s.Waypoint
	} else if w := snap.WorkloadByIP(network, dst.Addr()); w != nil {
		g = w.Waypoint
	}
	if g == nil {
		return false
	}
	if g.Hostname != "" {
		return servesKey(own, g.Namespace+"/"+g.Hostname)
	}
	if s := snap.ServiceByVIP(network, g.Address, own.Namespace); s != nil {
		return servesKey(own, s.Key())
	}
	return g.Address == local
}

func servesKey(w *state.Workload, key string) bool {
	return slices.ContainsFunc(w.Services, func(s state.WorkloadService) bool { return s.Key == key })
}

// targetPort maps a service port to the port of w's app; 0 if there is none.
func targetPort(w *state.Workload, s *state.Service, port uint16) uint16 {
	for _, e := range w.Services {
		if e.Key != s.Key() {
			continue
		}
		for _, p := range e.Ports {
			if p.Service == port {
				return p.Target
			}
		}
	}
	for _, p := range s.Ports {
		if p.Service == port {
			return p.Target
		}
	}
	return 0
}

// guessService names the service that an inbound connection to one of w's ports
// was probably for: the one the client named if w serves it, else the first with that port.
func guessService(snap *state.Snapshot, w *state.Workload, port uint16, host string) *state.Service {
	var found *state.Service
	for _, e := range w.Services {
		_, name, ok := cutKey(e.Key)
		if !ok {
			continue
		}
		named := host != "" && name == host
		serves := slices.ContainsFunc(e.Ports, func(p state.Port) bool { return p.Target == port })
		if !named && (!serves || found != nil) {
			continue
		}
		s := snap.ServiceByHostname(name, w.Namespace)
		if s == nil {
			continue
		}
		if named {
			return s
		}
		found = s
	}
	return found
}

// vipOf is an address of s in a network, v4 first; invalid if it has none.
func vipOf(s *state.Service, network string) netip.Addr {
	var best netip.Addr
	for _, v := range s.VIPs {
		if v.Network != network || !v.Prefix.IsSingleIP() {
			continue
		}
		if a := v.Prefix.Addr(); !best.IsValid() || (a.Is4() && !best.Is4()) {
			best = a
		}
	}
	return best
}
