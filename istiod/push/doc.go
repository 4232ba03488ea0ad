// Package push is istiod's delta xDS server: what packages graph and layer7
// computed goes from here to every proxy that subscribed to it. app.go makes one
// Server, the Cache that all ztunnels share, and a Directory with one more Cache
// for each waypoint and gateway; graph and layer7 call Cache.Apply, and admin
// reads Server.Proxies.
//
// What always holds:
//   - Nothing is served before the state is complete (Cache.Synced).
//   - A resource is encoded once and versioned by the hash of its content; a proxy
//     that reconnects gets only what differs from the versions it holds.
//   - A ztunnel sees changes at consistent cuts: a workload never arrives before a
//     policy that it refers to, and a policy leaves after the workloads that did.
//   - An Envoy makes before it breaks: routes wait until it can use the clusters
//     that came with them, and a cluster leaves after it accepted the routes that
//     no longer lead to it; a cluster that is sent again takes its endpoints along.
//   - A waypoint or gateway gets its own Cache only, and its credentials must be of
//     the service account that its Gateway was registered with.
//   - A slow proxy holds back nobody and costs a constant amount of memory: it has
//     a position in the log of changes, and when it reads again it gets the newest
//     state of each name once.
//   - A subscription to everything gets an answer, an empty one too; a push without
//     change is silent.
//   - A rejected resource is recorded by name and not sent again until it changes.
//
// It does not compute resources, and of what they mean it knows only which
// endpoints and secrets a cluster waits for. The state of the world variant of
// the protocol is refused.
package push
