package proxy

import (
	"context"
	"net"
	"strings"

	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/policy"
)

// servePlaintext serves a connection that came to the pod without a tunnel.
// Policy sees it without an identity; STRICT is a policy that denies that.
func (pod *Pod) servePlaintext(ctx context.Context, c *net.TCPConn) {
	f := pod.newFlow(telemetry.ReporterDestination, remoteAddr(c), pod.originalDst(c))
	defer f.end()
	if pod.selfCall(f.dst) {
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
	source := snap.WorkloadByIP(pod.p.cfg.Network, f.src.Addr())
	service := guessService(snap, own, f.dst.Port(), "")
	f.update(func(f *flow) {
		f.source, f.dest, f.service, f.upstream = source, own, service, f.dst.String()
	})
	f.open()
	if v := f.judge(policy.Conn{SourceIP: f.src.Addr(), Dest: f.dst}); !v.Allowed {
		f.deny(v)
		reset(c)
		return
	}
	key := heldKey{f.src, f.dst}
	pod.hold(key)
	defer pod.unhold(key)
	app, err := pod.dialApp(ctx, f.dst, f.src)
	pod.carryPlain(f, c, app, err)
}

// cutKey splits namespace/hostname.
func cutKey(key string) (namespace, hostname string, ok bool) {
	return strings.Cut(key, "/")
}
