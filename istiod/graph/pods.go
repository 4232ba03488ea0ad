package graph

import (
	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Pod returns a pod, or nil.
func (g *Graph) Pod(k model.Key) *model.Pod {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.pods[k]
}

// Runs tells whether a pod of the mesh with this service account lives on the
// node: one that is starting counts, one that has finished does not.
func (g *Graph) Runs(node, namespace, serviceAccount string) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for k := range g.podsByIdentity[identityOnNode{node, namespace, serviceAccount}] {
		if p := g.pods[k]; !p.Finished && g.inMesh(p) {
			return true
		}
	}
	return false
}

// inMesh follows the node agent's rule: the pod's own label, else its namespace's.
// Capture that is still in place counts too, since the pod's connections still
// need its identity.
func (g *Graph) inMesh(p *model.Pod) bool {
	switch {
	case p.HostNetwork:
		return false
	case p.Enrolled, p.MeshLabel == ports.DataplaneModeAmbient:
		return true
	case p.MeshLabel == ports.DataplaneModeNone:
		return false
	}
	ns := g.namespaces[p.Namespace]
	return ns != nil && ns.MeshLabel == ports.DataplaneModeAmbient
}

// Changed returns a channel that is closed when a pod or namespace next changes.
// Ask for it before looking, or a change in between is missed.
func (g *Graph) Changed() <-chan struct{} {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.changed
}

func (g *Graph) notify() {
	close(g.changed)
	g.changed = make(chan struct{})
}
