package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/tests/node/topology"
)

const (
	// manyServices is how many services the waypoint serves beside the two that carry load, each with an HTTPRoute of
	// two rules: what issue 4 asks for.
	manyServices = 1000
	// waypointName is the Gateway's, its Service's, its pod's and its service account's name.
	waypointName = "waypoint"
)

// The services that carry load: the first goes through the waypoint, the second does not.
const (
	serviceWith    = "with"
	serviceWithout = "without"
)

// vip is the cluster address of the i-th service, away from the fabric's addresses.
func vip(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}) }

// vips of the services by name, after those of the many.
var vips = map[string]netip.Addr{
	serviceWith: vip(manyServices + 1), serviceWithout: vip(manyServices + 2), waypointName: vip(manyServices + 3),
}

// state is the directory that istiod reads, as one keeps such a directory: a file for each service.
type state struct{ dir string }

func (s state) write(name, format string, args ...any) error {
	return os.WriteFile(filepath.Join(s.dir, name), fmt.Appendf(nil, format, args...), 0o600)
}

// writeAll writes the whole mesh: base, the pods that exist, and the many services with their routes.
func (s state) writeAll(pods map[string]*topology.Pod) error {
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return err
	}
	if err := s.write("base.yaml", base, ports.LabelDataplaneMode, ports.LabelUseWaypoint, waypointName); err != nil {
		return err
	}
	var b strings.Builder
	for _, name := range []string{"client", serviceWith, serviceWithout} {
		p := pods[name]
		fmt.Fprintf(&b, pod, name, name, "app: "+name, p.Node.Name, name, p.IP)
	}
	w := pods[waypointName]
	fmt.Fprintf(&b, waypoint, w.Node.Name, w.IP, vips[waypointName])
	fmt.Fprintf(&b, service, serviceWith, "{}", vips[serviceWith], serviceWith, twoPorts)
	fmt.Fprintf(&b, service, serviceWithout, "{"+ports.LabelUseWaypoint+": none}", vips[serviceWithout], serviceWithout, twoPorts)
	fmt.Fprintf(&b, route, serviceWith, serviceWith, httpPort, "unchanged", serviceWith, httpPort, serviceWith, httpPort)
	if err := s.write("pods.yaml", "%s", b.String()); err != nil {
		return err
	}
	for i := range manyServices {
		name := manyName(i)
		b.Reset()
		fmt.Fprintf(&b, service, name, "{}", vip(i+1), name, onePort)
		fmt.Fprintf(&b, pod, name, name, "app: "+name, "node1", name, netip.AddrFrom4([4]byte{10, 251, byte(i >> 8), byte(i)}))
		if err := s.write(name+".yaml", "%s", b.String()); err != nil {
			return err
		}
		if err := s.writeRoute(i, "unchanged"); err != nil {
			return err
		}
	}
	return nil
}

func manyName(i int) string { return fmt.Sprintf("service-%04d", i) }

// writeRoute writes the route of one of the many services, complete at once; value is what one of its rules sets.
func (s state) writeRoute(i int, value string) error {
	name := manyName(i)
	hidden := ".route-new"
	if err := s.write(hidden, route, name, name, httpPort, value, name, httpPort, name, httpPort); err != nil {
		return err
	}
	return os.Rename(filepath.Join(s.dir, hidden), filepath.Join(s.dir, name+"-route.yaml"))
}

// base: the access log is written, to where it costs no disk.
const base = `apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: bench, labels: {%s: ambient, %s: %s}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "accessLogFile: /dev/null"}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: istio-waypoint}
spec: {controllerName: istio.io/mesh-controller}
`

const pod = `---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: bench, uid: uid-%s, labels: {%s}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: %s, serviceAccountName: %s, containers: [{name: app}]}
status: {phase: Running, podIP: %s, conditions: [{type: Ready, status: "True"}]}
`

// waypoint is the Gateway, and what package waypoint/deploy makes of it as far as istiod reads it.
const waypoint = `---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: bench, labels: {istio.io/waypoint-for: service}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: waypoint
  namespace: bench
  uid: uid-waypoint
  labels: {gateway.networking.k8s.io/gateway-name: waypoint, gateway.istio.io/managed: istio.io-mesh-controller, networking.istio.io/tunnel: http, istio.io/dataplane-mode: none}
spec: {nodeName: %s, serviceAccountName: waypoint, containers: [{name: istio-proxy}]}
status: {phase: Running, podIP: %s, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: bench, labels: {gateway.networking.k8s.io/gateway-name: waypoint, gateway.istio.io/managed: istio.io-mesh-controller}}
spec: {clusterIP: %s, ports: [{name: mesh, port: 15008, appProtocol: hbone}], selector: {gateway.networking.k8s.io/gateway-name: waypoint}}
`

const service = `---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: bench, labels: %s}
spec: {clusterIP: %s, selector: {app: %s}, ports: [%s]}
`

// The ports of services: one of the many has the first, those that carry load have one for each protocol.
const (
	onePort  = `{name: http, port: 8080}`
	twoPorts = onePort + `, {name: h2c, port: 8081, targetPort: 8080, appProtocol: kubernetes.io/h2c}`
)

const route = `---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s, namespace: bench}
spec:
  parentRefs: [{group: "", kind: Service, name: %s, port: %d}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /v2}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-version, value: %s}]}}]
    backendRefs: [{name: %s, port: %d}]
  - backendRefs: [{name: %s, port: %d}]
`
