// Package capture learns from the node agent which pods the proxy serves, and
// with which sockets. It is the proxy's side of ZDS (api/zds, internal/zds):
// app.go runs one Manager in shared mode.
//
// With Ambit's agent a pod arrives with its listeners. They stay the agent's as
// well, so a proxy that ends refuses nobody; and an agent that restarted gets
// back what the proxy holds, before it sends anything. With Istio's agent (it
// speaks at once and sends a netns alone) the listeners are opened here, on
// Istio's ports.
//
// What always holds:
//   - A lost agent changes nothing for the pods that are served; connecting
//     again goes on forever.
//   - Add is idempotent: the same netns and listeners again change nothing,
//     another netns or other listeners replace the pod's proxy.
//   - Leaving the mesh resets no connection. Del and a snapshot without the pod
//     stop its accepting; its live connections go on until they end. A deleted
//     pod's connections end by themselves: its apps are dead, so their sockets
//     are closed, and what is left fails its keep-alive. Only then is the
//     pod's netns let go.
//   - A message that cannot be understood is answered with an error and changes
//     nothing; a message against the protocol's order ends the connection, not
//     the pods.
//
// It does not install capture and does not look at connections.
package capture
