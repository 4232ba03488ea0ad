package proxy

import (
	"io"
	"testing"

	"github.com/ambit-mesh/ambit/api/ports"
)

// waypointRequired lets nobody with an identity into the app's port but a waypoint.
const waypointRequired = `- {name: ` + ports.WaypointRequiredPrefix + `b_8080, namespace: default, scope: WorkloadSelector, action: Deny, ` +
	`rules: [[[{principals: [Presence], notPrincipals: [{Exact: cluster.local/ns/default/sa/waypoint}]}]]]}` + "\n"

// A service gets its waypoint while clients are connected to it: they stay, new ones have to come through it.
func TestAWaypointLeavesOpenConnections(t *testing.T) {
	m := newMesh(t).start()
	a, b, c := m.pods["a"], m.pods["b"], m.pods["c"]
	b.serveEcho(appPort)
	talk := func(c io.ReadWriter) error {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	open := a.mustDial(addr(b, appPort))
	if err := talk(open); err != nil {
		t.Fatal(err)
	}
	m.policies = waypointRequired
	b.services = "    {}\n  authorizationPolicies: [default/" + ports.WaypointRequiredPrefix + "b_8080]\n"
	m.writeState()
	eventually(t, "a new connection is refused", func() bool {
		c, err := a.dial(addr(b, appPort))
		if err != nil {
			return true
		}
		defer c.Close()
		return talk(c) != nil
	})
	m.nodes[1].proxy.access("direction=inbound", "response_flags=DENY", "policy=default/"+ports.WaypointRequiredPrefix+"b_8080", "src.workload=a")
	if err := talk(open); err != nil {
		t.Errorf("a connection that was open before: %v", err)
	}
	if err := talk(c.mustDial(addr(b, appPort))); err != nil {
		t.Errorf("a caller outside the mesh: %v", err)
	}
}
