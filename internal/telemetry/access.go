package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

// Values of AccessDirection.
const (
	DirectionInbound  = "inbound"
	DirectionOutbound = "outbound"
)

// AccessEnd is one end of a connection in the access log. Identity is only set
// when mutual TLS proved it.
type AccessEnd struct {
	Addr                          netip.AddrPort
	Workload, Namespace, Identity string
}

// AccessRecord is one connection, written when it ended or was refused.
type AccessRecord struct {
	Direction string
	Src, Dst  AccessEnd
	// HBONEAddr is the CONNECT authority, empty without a tunnel.
	HBONEAddr string
	// Service is the host name that the client addressed or probably meant.
	Service string
	// BytesSent and BytesRecv are seen from the workload that reports: the client's
	// view for outbound, the server's for inbound.
	BytesSent, BytesRecv uint64
	Duration             time.Duration
	// Policy names the policy that denied, "namespace/name".
	Policy string
	// Reason says why the connection was refused or cut.
	Reason string
	// Flags is one of the Flag constants.
	Flags   string
	TraceID string
	Err     error
}

// AccessLog writes access records.
type AccessLog struct{ log *slog.Logger }

// NewAccessLog returns an access log that writes under ScopeAccess.
func NewAccessLog(root *slog.Logger) *AccessLog {
	return &AccessLog{log: root.With(FieldScope, ScopeAccess)}
}

// Write logs one line: info for a connection that ran, warn for one that was
// denied, error for one that failed.
func (a *AccessLog) Write(r *AccessRecord) {
	level, msg := slog.LevelInfo, "connection complete"
	switch {
	case r.Flags == FlagDenied:
		level, msg = slog.LevelWarn, "connection denied"
	case r.Err != nil || (r.Flags != FlagNone && r.Flags != ""):
		level, msg = slog.LevelError, "connection failed"
	}
	ctx := context.Background()
	if !a.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 20)
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	text(AccessSrcAddr, r.Src.Addr.String())
	text(AccessSrcWorkload, r.Src.Workload)
	text(AccessSrcNamespace, r.Src.Namespace)
	text(AccessSrcIdentity, r.Src.Identity)
	text(AccessDstAddr, r.Dst.Addr.String())
	text(AccessDstHBONEAddr, r.HBONEAddr)
	text(AccessDstService, r.Service)
	text(AccessDstWorkload, r.Dst.Workload)
	text(AccessDstNamespace, r.Dst.Namespace)
	text(AccessDstIdentity, r.Dst.Identity)
	text(AccessDirection, r.Direction)
	attrs = append(attrs,
		slog.Uint64(AccessBytesSent, r.BytesSent),
		slog.Uint64(AccessBytesRecv, r.BytesRecv),
		slog.String(AccessDuration, fmt.Sprintf("%dms", r.Duration.Milliseconds())))
	text(AccessPolicy, r.Policy)
	text(AccessReason, r.Reason)
	if r.Flags != FlagNone {
		text(AccessFlags, r.Flags)
	}
	text(AccessTraceID, r.TraceID)
	if r.Err != nil {
		text(FieldError, r.Err.Error())
	}
	a.log.LogAttrs(ctx, level, msg, attrs...)
}
