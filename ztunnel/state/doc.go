// Package state is what the node proxy knows of the mesh: workloads, services and
// policies, as they come from the control plane (Store.HandleAddress and
// Store.HandleAuthorization are xds.Handlers) or from one YAML file (LoadFile). The
// proxy asks a Snapshot where a connection goes (Resolve), who is at an address, and
// which policies apply.
//
// What always holds: a Snapshot never changes and reading it takes no lock; an
// update is visible as a whole or not at all; the outcome does not depend on the
// order in which a workload and its service arrive; a resource that is refused
// leaves its last good version in force and touches nothing else; a destination that
// is known but cannot be reached as the mesh demands is refused, never passed
// through; a waypoint that is named but not found refuses the connection.
//
// It opens no connection, fetches nothing, evaluates no policy, and does not yet
// reach other networks or resolve host names of endpoints: it says so in the reason.
package state
