// Package xds is a delta xDS client (envoy.service.discovery.v3, the incremental
// variant of ADS): it subscribes to resource types, hands each response to that
// type's Handler, and answers it. ztunnel runs one Client for workloads, services
// and policies; the waypoint agent may run one too.
//
// What always holds: the node is sent on the first request of a stream only; a
// response is acknowledged by its nonce, or refused naming each resource that the
// handler refused while the rest of it stays applied; a reconnect says which
// versions are held, so that only what differs is sent; a version is recorded only
// for what was applied; handlers are called one at a time. While there is no stream
// nothing is taken back: the last good state stays.
//
// It knows nothing of the content of resources, keeps none of them, and does not
// decide whether the proxy is ready: Ready only tells when the first state is here.
package xds
