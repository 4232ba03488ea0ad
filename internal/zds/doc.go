// Package zds carries messages of package istio.workload.zds over a unix
// SOCK_SEQPACKET socket, one message per packet, file descriptors beside it as
// SCM_RIGHTS. The node agent listens, node proxies dial; both use this package.
//
// The order of messages, as both sides keep it:
//
//	proxy → agent   ZdsHello
//	proxy → agent   HeldWorkload*, HeldEnd     only if the hello has listeners=true
//	agent → proxy   Add | Keep, each answered  the snapshot
//	agent → proxy   SnapshotSent, answered     what was not named before is gone
//	agent → proxy   Add | Del, each answered   as pods come and go
//
// What always holds: a file descriptor that arrives is either returned to the
// caller, who then owns it, or closed before the call returns; and a message
// that cannot be understood (ErrInvalid) spends one packet and leaves the
// connection usable, because packets keep their borders.
//
// It does not decide which pod is served, and it keeps no state between
// messages: both ends do.
package zds
