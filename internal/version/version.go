// Package version says which build a process is. Every main prints it; image
// builds set it through the linker. It holds no other build information.
package version

// version is set by the linker: -X github.com/ambit-mesh/ambit/internal/version.version=<version>.
var version = "dev"

// String is the version of this build, "dev" when none was set.
func String() string { return version }
