// Package telemetry is what every part of the mesh uses to be observed: the
// logger whose level changes at run time, the access log record, the TCP metric
// set under Istio's names, readiness conditions, and small HTTP servers with an
// owner. All mains and ztunnel/proxy call it; it imports no part.
//
// What always holds: metric, label and log field names are constants of this
// package and nowhere else; the number of metric series is bounded; a server
// returns from Run when its context ends and never outlives it; a readiness
// page names what is missing.
//
// It does not trace, does not push anywhere, and holds no global state.
package telemetry
