package plugin

import "net/netip"

const (
	// Type is the plugin's name in a CNI configuration, and of its binary.
	Type = "ambit-cni"
	// PathAdd and PathCheck are the agent's pages for the two questions.
	PathAdd   = "/cmdadd"
	PathCheck = "/cmdcheck"
)

// Config is the plugin's own part of the CNI configuration; the agent's installer writes it.
type Config struct {
	Type string `json:"type"`
	// AgentSocket is where the agent listens, on the node.
	AgentSocket string `json:"agent_socket"`
	// ExcludeNamespaces are never in the mesh: their pods do not wait for the agent.
	ExcludeNamespaces []string `json:"exclude_namespaces"`
	// LogFile on the node gets a line for each request; empty means none.
	LogFile string `json:"log_file,omitempty"`
}

// Request is the body of both questions. PodUID may be empty: not every runtime tells it.
type Request struct {
	PodName      string       `json:"podName"`
	PodNamespace string       `json:"podNamespace"`
	PodUID       string       `json:"podUID,omitempty"`
	ContainerID  string       `json:"containerID"`
	NetNS        string       `json:"netns"`
	IPs          []netip.Addr `json:"ips"`
}

// Reply answers a question. Error is empty when the pod may start.
type Reply struct {
	// Enrolled says that the pod's traffic is captured.
	Enrolled bool `json:"enrolled"`
	// Reason says why the pod is, or is not, in the mesh.
	Reason string `json:"reason,omitempty"`
	// Error says why the pod must not start, and what to do.
	Error string `json:"error,omitempty"`
}
