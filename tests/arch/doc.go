// Package arch holds tests of the repository's shape: who may import whom and
// why, what every package documents, how large files and functions may grow, and
// which packages the two binaries that must stay small are linked from. It has no
// other code, and nothing imports it.
//
// A rule that is in the way is changed here, with its reason, in the change that
// needs it. `go test ./tests/arch -update` accepts new dependency lists.
package arch
