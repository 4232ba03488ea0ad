package proxy

import (
	"fmt"
	"io"
	"testing"
	"time"
)

// Policies of the tests, as lines of the state file.
const (
	denyA  = `- {name: deny-a, namespace: default, scope: Namespace, action: Deny, rules: [[[{principals: [{Exact: cluster.local/ns/default/sa/sa-a}]}]]]}` + "\n"
	strict = `- {name: istio_converted_static_strict, namespace: istio-system, scope: Global, action: Deny, rules: [[[{notPrincipals: [Presence]}]]]}` + "\n"
)

func TestDeniedConnectionsAreResetAndThePolicyIsNamed(t *testing.T) {
	m := newMesh(t)
	m.policies = denyA
	m.start()
	b := m.pods["b"]
	b.serveHTTP(appPort)
	if err := m.pods["a"].isReset(addr(b, appPort)); err != nil {
		t.Error(err)
	}
	if _, err := m.pods["a2"].get(addr(b, appPort)); err != nil {
		t.Errorf("another identity: %v", err)
	}
	if _, err := m.pods["c"].get(addr(b, appPort)); err != nil {
		t.Errorf("no identity: %v", err)
	}
	m.nodes[1].proxy.access("direction=inbound", "response_flags=DENY", "policy=default/deny-a", "reason=", "src.identity=spiffe://cluster.local/ns/default/sa/sa-a")
	m.nodes[0].proxy.access("direction=outbound", "response_flags=DENY", "401")
	if n := m.nodes[1].proxy.metric("istio_tcp_connections_failed_total", `response_flags="DENY"`, `reporter="destination"`); n != 1 {
		t.Errorf("counted %v denials", n)
	}
}

func TestStrictRefusesPlaintextAndPermissiveTakesIt(t *testing.T) {
	m := newMesh(t)
	m.policies = strict
	m.start()
	a, b, c := m.pods["a"], m.pods["b"], m.pods["c"]
	b.serveHTTP(appPort)
	if _, err := a.get(addr(b, appPort)); err != nil {
		t.Errorf("STRICT refuses mutual TLS: %v", err)
	}
	if err := c.isReset(addr(b, appPort)); err != nil {
		t.Errorf("STRICT, plaintext: %v", err)
	}
	m.nodes[1].proxy.access("direction=inbound", "response_flags=DENY", "policy=istio-system/istio_converted_static_strict")
	m.policies = ""
	m.writeState()
	eventually(t, "PERMISSIVE takes plaintext", func() bool {
		got, err := c.get(addr(b, appPort))
		return err == nil && got == fmt.Sprintf("b saw %s", c.IP)
	})
}

func TestAPolicyChangeCutsWhatItNoLongerAllows(t *testing.T) {
	m := newMesh(t).start()
	a, a2, b, c := m.pods["a"], m.pods["a2"], m.pods["b"], m.pods["c"]
	b.serveEcho(appPort)
	talk := func(c io.ReadWriter) error {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	denied, other, plain := a.mustDial(addr(b, appPort)), a2.mustDial(addr(b, appPort)), c.mustDial(addr(b, appPort))
	for _, c := range []io.ReadWriter{denied, other, plain} {
		if err := talk(c); err != nil {
			t.Fatal(err)
		}
	}
	m.policies = denyA
	m.writeState()
	began := time.Now()
	if err := wasReset(denied); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > atOnce {
		t.Errorf("took %v", d)
	}
	for _, c := range []io.ReadWriter{other, plain} {
		if err := talk(c); err != nil {
			t.Errorf("a connection that is still allowed: %v", err)
		}
	}
	m.nodes[1].proxy.access("direction=inbound", "response_flags=DENY", "policy=default/deny-a", "policy change", "src.workload=a")
	m.policies += strict
	m.writeState()
	if err := wasReset(plain); err != nil {
		t.Error(err)
	}
	if err := talk(other); err != nil {
		t.Errorf("a connection that is still allowed: %v", err)
	}
}

func TestAPodThatTheControlPlaneDoesNotKnowIsRefused(t *testing.T) {
	m := newMesh(t).start()
	d := m.addPod("d", m.nodes[0])
	d.unknown = true
	m.nodes[0].agent.enrol(d)
	m.pods["c"].serveHTTP(appPort)
	began := time.Now()
	if err := d.isReset(addr(m.pods["c"], appPort)); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < 4*time.Second {
		t.Errorf("refused after %v, did not wait for the control plane", took)
	}
	m.nodes[0].proxy.access("direction=outbound", "response_flags=UNKNOWN_SOURCE")
	// It comes late: a connection that waits is served.
	got := make(chan error, 1)
	go func() { _, err := d.get(addr(m.pods["c"], appPort)); got <- err }()
	d.unknown = false
	m.writeState()
	if err := <-got; err != nil {
		t.Errorf("a connection that waited for its workload: %v", err)
	}
}
