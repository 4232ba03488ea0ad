// Package seeds plays the scenarios of the documents that the project started from,
// on the same cluster as the other end-to-end tests: ingress with TLS and tokens,
// faults and what rides them out, canary and blue/green releases, circuit breaking,
// traffic that leaves the mesh, and PERMISSIVE to STRICT. The YAML is the documents'
// own, brought to today's API versions; each file says what was changed.
//
// `make e2e` runs it after package e2e, as root. It takes the running cluster, or
// starts one, and leaves it up.
package seeds
