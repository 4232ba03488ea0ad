// Package nodespec is what the cluster tool tells the node program: one JSON file
// per node. It holds no behaviour.
package nodespec

import (
	"encoding/json"
	"fmt"
	"os"
)

// Spec describes one node. Paths are absolute and valid outside and inside the node.
type Spec struct {
	// Name is the host name and the name in Kubernetes.
	Name string
	// Cgroup is the name of the node's child cgroup.
	Cgroup string
	// CgroupList is the file that names every cgroup directory made for the node.
	CgroupList string
	// Record is the file for the process record.
	Record string
	// NetNS is the node's network namespace.
	NetNS string
	// Dir is the node's part of the state directory.
	Dir string
	// Bin holds the components, LogDir their logs.
	Bin, LogDir string
	// Archives are images to import before the kubelet starts.
	Archives []string
	// Binds maps a directory under Dir to where the node sees it.
	Binds map[string]string
	// Sysctls maps a path under /proc/sys to the value that the node is shown in place of the machine's.
	Sysctls map[string]string
	// KubeletArgs are added to the kubelet's command line.
	KubeletArgs []string
}

// Write stores the spec.
func (s Spec) Write(path string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode node %q: %w", s.Name, err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return fmt.Errorf("write node %q: %w", s.Name, err)
	}
	return nil
}

// Read loads a spec.
func Read(path string) (Spec, error) {
	var s Spec
	b, err := os.ReadFile(path)
	if err != nil {
		return s, fmt.Errorf("read node specification: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("decode node specification %q: %w", path, err)
	}
	return s, nil
}
