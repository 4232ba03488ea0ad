// Package push is istiod's delta xDS server: what package graph computed goes
// from here to every proxy that subscribed to it. app.go makes one Cache and one
// Server; graph calls Cache.Apply, and admin reads Server.Proxies.
//
// What always holds:
//   - Nothing is served before the state is complete (Cache.Synced).
//   - A resource is encoded once and versioned by the hash of its content; a proxy
//     that reconnects gets only what differs from the versions it holds.
//   - A stream sees changes at consistent cuts: a workload never arrives before a
//     policy that it refers to, and a policy leaves after the workloads that did.
//   - A slow proxy holds back nobody and costs a constant amount of memory: it has
//     a position in the log of changes, and when it reads again it gets the newest
//     state of each name once.
//   - Every request gets an answer, an empty one too; a push without change is silent.
//   - A rejected resource is recorded and not sent again until it changes.
//
// It does not know what a resource means, and it does not compute any. The state
// of the world variant of the protocol is refused.
package push
