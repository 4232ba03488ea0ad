// Package agent is the process beside Envoy in the pod of a waypoint or a
// gateway. It is the container's first process: it starts Envoy, feeds it, and
// ends with it. cmd/waypoint-agent runs it.
//
// Each of its tasks is a package below:
//
//	certs      the proxy's key, made here, and its certificate, renewed at half life
//	sds        hands both to Envoy over a unix socket (secrets "default" and "ROOTCA")
//	relay      carries Envoy's configuration stream to istiod, with the pod's token
//	bootstrap  what Envoy is started with
//	envoy      Envoy as a process, and its admin pages
//	stats      Envoy's statistics under Istio's names
//
// It is configured by the environment (Config says how), and needs a writable
// directory (AMBIT_RUN_DIR, /var/run/ambit) for the socket and the bootstrap.
//
// What always holds: the private key stays in memory, of this process and of
// Envoy; an Envoy that ends takes the agent with it, so that Kubernetes starts
// both anew; a signal to end first makes the pod unready, then lets connections
// end, and only then ends Envoy; readiness says what is missing.
//
// It decides nothing about traffic: istiod does, and Envoy carries it.
package agent
