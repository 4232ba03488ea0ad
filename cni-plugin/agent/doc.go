// Package agent is the node agent: it decides which pods of its node are in the
// mesh, captures their traffic through package redirect, owns their listening
// sockets and lends them to the node proxy (ztunnel) over ZDS. cmd/node-agent
// runs it, once per node; the CNI plugin asks it before a pod starts.
//
// What always holds:
//
//   - A running pod is captured only after a proxy has acknowledged it; a new
//     pod starts only after that. Nothing is captured before somebody serves.
//   - Un-enrolling takes capture away first. Connections that are open stay.
//   - Work on one pod is serialised; work on different pods is not.
//   - What is remembered is compared with the kernel's actual state every
//     repairEvery, and repaired.
//   - The agent may stop at any time: capture stays in the kernel and the proxy
//     keeps the sockets, which it gives back to the next agent.
//   - Without the API server the last known state goes on working.
//
// Files, in the order of a pod's life: enrol.go decides, netns.go finds its
// network namespace, reconcile.go does, proxies.go tells the node proxies,
// cniserver.go answers the plugin, status.go tells the user.
package agent
