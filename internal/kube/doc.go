// Package kube is the only maker of Kubernetes clients and informers. The node
// agent, istiod and the command-line tool call it; nothing else in the mesh
// speaks to an API server.
//
// What always holds: every client has a rate limit of its own,
// and an informer made here keeps only what the mesh reads from an object (see
// Strip), so that memory follows the number of pods and not the size of their
// manifests.
//
// It does not decide what an object means, and it writes nothing.
package kube
