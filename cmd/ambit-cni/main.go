// Command ambit-cni is the CNI plugin; a container runtime runs it. See package plugin.
package main

import "github.com/ambit-mesh/ambit/cni-plugin/plugin"

func main() {
	plugin.Main("ambit-cni: asks the node agent whether a pod may start, and into the mesh if it belongs there")
}
