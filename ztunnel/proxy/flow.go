package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/policy"
	"github.com/ambit-mesh/ambit/ztunnel/state"
)

// flow is one connection from its accept to its log line.
type flow struct {
	pod      *Pod
	id       uint64
	reporter string
	protocol string
	start    time.Time
	src, dst netip.AddrPort

	mu        sync.Mutex
	source    *state.Workload
	claimed   *baggageInfo // what a peer of another network says of itself
	sourceID  identity.Identity
	dest      *state.Workload
	service   *state.Service
	hboneAddr string
	upstream  string
	mutualTLS bool
	trace     string
	metric    *telemetry.TCPConnection
	bytes     func() (request, response uint64)
	counted   [2]uint64 // request and response bytes that metric has
	cut       func()
	cutBy     *cutReason
	conn      *policy.Conn // set for connections that policy judges

	flags   string
	err     error
	verdict policy.Verdict
}

// cutReason is why the proxy ended a live connection.
type cutReason struct {
	err     error
	verdict policy.Verdict
}

// Protocols of a flow, for people.
const (
	protocolTCP   = "TCP"
	protocolHBONE = "HBONE"
)

func (pod *Pod) newFlow(reporter string, src, dst netip.AddrPort) *flow {
	f := &flow{pod: pod, reporter: reporter, protocol: protocolTCP, start: time.Now(), src: src, dst: dst, flags: telemetry.FlagNone}
	pod.p.registry.add(f)
	return f
}

// update changes what is known of the connection.
func (f *flow) update(change func(*flow)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// open counts the connection, after all that its labels say is known.
func (f *flow) open() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.metric == nil {
		f.metric = f.pod.p.cfg.Metrics.Open(f.labelsLocked())
	}
}

// carry tells where the live byte counters are and how to cut the connection.
func (f *flow) carry(bytes func() (request, response uint64), cut func()) {
	f.mu.Lock()
	f.bytes, f.cut = bytes, cut
	already := f.cutBy != nil
	f.mu.Unlock()
	if already {
		cut()
	}
}

// cutWith ends the connection for a reason of the proxy. Only the first reason counts.
func (f *flow) cutWith(r cutReason) {
	f.mu.Lock()
	if f.cutBy != nil {
		f.mu.Unlock()
		return
	}
	f.cutBy = &r
	cut := f.cut
	f.mu.Unlock()
	if cut != nil {
		cut()
	}
}

// wasCut returns the reason once the connection was cut.
func (f *flow) wasCut() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cutBy == nil {
		return nil
	}
	return f.cutBy.err
}

// judge subjects the connection to policy: now, and whenever state changes.
func (f *flow) judge(c policy.Conn) policy.Verdict {
	f.update(func(f *flow) { f.conn = &c })
	// The state is read after the registration, so that a change is seen here or by recheck.
	snap := f.pod.p.cfg.State.Snapshot()
	own := f.pod.find(snap)
	if own == nil {
		return policy.Verdict{Reason: errUnknownSource.Error()}
	}
	v := policy.Evaluate(snap.Policies(own), c)
	for _, d := range v.DryRun {
		f.pod.log.Info("dry-run policy", "verdict", d, "src", f.src, "dst", f.dst)
	}
	return v
}

func (f *flow) judged() (policy.Conn, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn == nil {
		return policy.Conn{}, false
	}
	return *f.conn, true
}

// fail records why the connection was refused or broke.
func (f *flow) fail(flags string, err error) {
	f.update(func(f *flow) { f.flags, f.err = flags, err })
}

// deny records the verdict that refused the connection.
func (f *flow) deny(v policy.Verdict) {
	f.update(func(f *flow) { f.flags, f.verdict = telemetry.FlagDenied, v })
}

// sample adds to the metrics what moved since the last time.
func (f *flow) sample() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sampleLocked()
}

func (f *flow) sampleLocked() (request, response uint64) {
	if f.bytes == nil {
		return 0, 0
	}
	request, response = f.bytes()
	if f.metric != nil {
		f.metric.AddBytes(request-f.counted[0], response-f.counted[1])
		f.counted = [2]uint64{request, response}
	}
	return request, response
}

// end writes the log line and closes the metrics. Called once, last.
func (f *flow) end() {
	f.pod.p.registry.remove(f)
	f.open()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cutBy != nil {
		f.err, f.flags = f.cutBy.err, telemetry.FlagDrain
		if f.cutBy.verdict.Reason != "" {
			f.verdict, f.flags = f.cutBy.verdict, telemetry.FlagDenied
		}
	}
	request, response := f.sampleLocked()
	f.metric.Close(f.flags)
	f.pod.p.cfg.Access.Write(f.recordLocked(request, response))
}

func (f *flow) info() ConnectionInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	request, response := f.sampleLocked()
	r := f.recordLocked(request, response)
	return ConnectionInfo{
		ID: f.id, Pod: f.pod.cfg.Namespace + "/" + f.pod.cfg.Name, Direction: r.Direction, Protocol: f.protocol,
		Source: f.src, Destination: f.dst, Upstream: f.upstream, SrcIdentity: r.Src.Identity, DstIdentity: r.Dst.Identity,
		Service: r.Service, Since: f.start, BytesSent: r.BytesSent, BytesRecv: r.BytesRecv,
	}
}

// flagOf classifies a failure towards an upstream.
func flagOf(err error) string {
	var status *hbone.StatusError
	var cert *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var alert tls.AlertError
	var conn *hbone.ConnError
	switch {
	case errors.Is(err, errNoCertificate):
		return telemetry.FlagIdentity
	case errors.As(err, &status) && status.Status == statusDenied:
		return telemetry.FlagDenied
	case errors.As(err, &cert), errors.As(err, &unknown), errors.As(err, &alert):
		return telemetry.FlagTLS
	case errors.As(err, &conn):
		return telemetry.FlagHTTP2
	}
	return telemetry.FlagConnect
}

// orderly reports an end that says nothing was wrong with the mesh: either side
// may reset its own connection at any time.
func orderly(err error) bool {
	var stream *hbone.StreamError
	return err == nil || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, syscall.ENOTCONN) || errors.As(err, &stream)
}

// timedOut tells a silent drop, as a network policy makes, from a refusal.
func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT)
}
