// Package conformance runs the Gateway API's own conformance suite against the
// mesh. It is a module of its own, so that the suite's pins do not bind the
// mesh's. Command tests/cluster/cmd/conformance (make conformance) builds it as a
// test binary and runs it inside the test cluster's network namespace, where it
// reaches the API server and the gateways' addresses.
//
// What it adds to the suite: between set-up and tests it enrols the suite's
// namespaces and gives them a waypoint, as a user does; it hands out addresses to
// Services of type LoadBalancer, as a cloud does; it prints each result as it
// comes. Which features are claimed, and why the others are not, is in
// features_test.go and README.md. It changes nothing of the suite's verdicts.
package conformance
