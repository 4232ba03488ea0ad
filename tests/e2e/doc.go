// Package e2e holds the end-to-end tests: the mesh on a real Kubernetes of two
// nodes, under live traffic. `make e2e` runs them, as root; they bring up a fresh
// cluster, install the mesh from its charts and images, and leave the cluster up
// for a look at what went wrong.
//
// The tests share that cluster and run one after the other. Each of them counts
// every request and stream of the load generators and begins by putting the shop
// into the state that it needs, so that they pass in any order and alone.
//
// AMBIT_E2E_REUSE=1 takes the running cluster as it is, with new images loaded and
// the mesh upgraded to them: for work on the tests.
package e2e
