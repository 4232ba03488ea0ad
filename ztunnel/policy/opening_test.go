package policy

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/identity"
)

// required compiles a policy as istiod makes it; its tests write the files.
func required(t *testing.T, name string) *Policy {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "istiod", "translate", "testdata", "waypointrequired", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	a := &security.Authorization{}
	if err := protojson.Unmarshal(b, a); err != nil {
		t.Fatal(err)
	}
	p, err := Compile(a)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// What passes by a waypoint is refused as it opens, by name, and what is open stays.
func TestWaypointRequired(t *testing.T) {
	who := func(ns, sa string) Conn {
		return Conn{Source: identity.Identity{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: sa}, HasSource: true}
	}
	for _, c := range []struct {
		name, policy string
		conn         Conn
		port         uint16
		allowed      bool
	}{
		{"the waypoint", "refuse", who("shop", "waypoint"), 8080, true},
		{"a gateway", "refuse", who("ingress", "gateway-istio"), 8080, true},
		{"an app", "refuse", who("shop", "web"), 8080, false},
		{"a namesake elsewhere", "refuse", who("other", "waypoint"), 8080, false},
		{"a namesake of another domain", "refuse", Conn{HasSource: true, Source: identity.Identity{TrustDomain: "evil", Namespace: "shop", ServiceAccount: "waypoint"}}, 8080, false},
		{"an app at another port", "refuse", who("shop", "web"), 9090, true},
		{"plaintext", "refuse", Conn{}, 8080, true},
		{"plaintext, strict", "strict", Conn{}, 8080, false},
		{"the waypoint, strict", "strict", who("shop", "waypoint"), 8080, true},
		{"an app, strict", "strict", who("shop", "web"), 8080, false},
		{"plaintext at another port, strict", "strict", Conn{}, 9090, true},
		{"an app where nobody may come", "nobody", who("shop", "web"), 8080, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := required(t, c.policy)
			set := Set{Workload: []*Policy{p}}
			c.conn.SourceIP = netip.MustParseAddr("10.0.0.1")
			c.conn.Dest = netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), c.port)
			v := Evaluate(set, c.conn)
			if v.Allowed != c.allowed || !c.allowed && v.Policy != p.Name() {
				t.Errorf("got %+v", v)
			}
			if v := Evaluate(set.Standing(), c.conn); !v.Allowed {
				t.Errorf("an open connection: %+v", v)
			}
		})
	}
}

// Other policies hold for open connections too, and the set itself is left as it is.
func TestStandingKeepsOtherPolicies(t *testing.T) {
	opening := required(t, "refuse")
	user, err := Compile(deny(&amatch{DestinationPorts: []uint32{8080}}))
	if err != nil {
		t.Fatal(err)
	}
	set := Set{Workload: []*Policy{opening, user}}
	if got := set.Standing(); len(got.Workload) != 1 || got.Workload[0] != user {
		t.Errorf("got %v", got.Names())
	}
	if len(set.Workload) != 2 || set.Workload[0] != opening || set.Workload[1] != user {
		t.Errorf("the set was changed: %v", set.Names())
	}
}
