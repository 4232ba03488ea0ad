// Package zds is the messages between node agent and node proxy about the pods of a node,
// wire-compatible with Istio's istio.workload.zds, with Ambit's own fields from 100 up. Framing and
// file descriptors are internal/zds.
package zds
