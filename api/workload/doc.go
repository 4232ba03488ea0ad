// Package workload is the workload API: every workload and service a node proxy knows of, as
// protobuf messages wire-compatible with Istio's istio.workload. istiod encodes them, ztunnel decodes
// them. Only generated code lives here; rules about the messages live with their users.
package workload
