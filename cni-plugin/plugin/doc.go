// Package plugin is the CNI plugin ambit-cni, which a container runtime runs,
// chained behind the plugin that makes the pod's interface, each time a pod
// starts or stops. It asks the node agent over a unix socket and does nothing by
// itself. Package agent imports it for the messages that both exchange.
//
// What always holds: prevResult goes through byte for byte; a pod whose
// namespace is exempt starts without the agent; every other pod starts only
// after the agent has answered, so that no pod escapes the mesh because a part
// is missing; DEL never fails, so that a pod can always go; every wait has a
// bound.
//
// It holds no Kubernetes client, no state and no credentials, and STATUS never
// reports the node as unusable: the agent's and ztunnel's own pods need the
// node's network to come back.
package plugin
