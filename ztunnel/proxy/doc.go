// Package proxy is the path of a byte through the node proxy. A Pod takes the
// connections that capture brings to its listeners, decides with ztunnel/state
// and ztunnel/policy where they go, and carries them: through a tunnel of
// internal/hbone to another node's proxy, out of a tunnel to the app, or as
// plain TCP where the other side is not of the mesh.
//
// ztunnel/capture makes a Pod for each pod of the node; ztunnel/admin lists the
// live connections; ztunnel's app.go drains them.
//
// What always holds:
//   - Fail closed. Nothing is forwarded before the pod's own workload is known,
//     and a destination of the mesh is never sent plaintext.
//   - Each connection ends in one access log line and one set of metrics, and a
//     refusal names what refused it.
//   - A tunnel request is answered 200 only after the app accepted.
//   - The app sees the client's address, except where it is its own.
//   - A connection that policy stops allowing is cut within a second.
//   - Everything a Pod owns (listeners, tunnels, netns) is closed once it has
//     retired and its last connection has ended.
//
// It does not know how connections are captured, does not watch anything, and
// keeps no key.
package proxy
