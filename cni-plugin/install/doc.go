// Package install puts the CNI plugin on the node and keeps it there: the binary
// in the runtime's plugin directory, and an entry behind the primary CNI
// plugin's in the configuration that the runtime reads. The node agent runs it.
//
// What always holds: a file is replaced in one step, so that the runtime never
// reads half of it; what the primary plugin wrote is kept, in its order, also
// fields that we do not know; doing it twice changes nothing the second time;
// when the primary plugin rewrites its file, our entry is back within a second.
//
// An upgrade or restart of the agent leaves everything in place: pods that start
// meanwhile wait (plugin) rather than escape the mesh. Uninstall is called only
// when the agent's DaemonSet is gone.
package install
