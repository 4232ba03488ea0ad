package state

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/ztunnel/policy"
)

func TestLoadFile(t *testing.T) {
	s := NewStore(Config{Node: "local"})
	apply(t, s, pod("before", "10.0.0.1"))
	if err := s.LoadFile("testdata/local.yaml"); err != nil {
		t.Fatal(err)
	}
	v := s.Snapshot()
	if v.WorkloadByUID("c1//Pod/shop/before") != nil {
		t.Error("what was there before the file stayed")
	}
	want := &Workload{
		UID: "cluster1//v1/Pod/default/local-tcp", Name: "local-tcp", Namespace: "default", TrustDomain: "td", ServiceAccount: "default",
		ClusterID: "c", Node: "local", Hostname: "h.example", WorkloadName: "wn", WorkloadType: "pod", CanonicalName: "cn", CanonicalRevision: "v1",
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("fd00::2")}, Policies: []string{"default/sel"},
		Waypoint:          &GatewayAddress{Namespace: "default", Hostname: "wp.example", HBONEPort: 15008},
		NetworkGateway:    &GatewayAddress{Network: "net2", Address: netip.MustParseAddr("192.0.2.1"), HBONEPort: 15009},
		ApplicationTunnel: &ApplicationTunnel{Proxy: true, Port: 15088}, Locality: Locality{"r", "z", "s"}, Capacity: 7,
		HostNetwork: true, NativeTunnel: true,
	}
	opt := cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})
	if diff := cmp.Diff(want, v.WorkloadByUID(want.UID), opt); diff != "" {
		t.Errorf("workload (-want +got):\n%s", diff)
	}
	wantService := &Service{
		Name: "remote", Namespace: "default", Hostname: "example2.com", Ports: []Port{{80, 8080}},
		VIPs:              []NetworkPrefix{{"remote", netip.MustParsePrefix("127.10.0.2/32")}, {"remote", netip.MustParsePrefix("127.20.0.0/16")}},
		Waypoint:          &GatewayAddress{Namespace: "default", Hostname: "wp.example", HBONEPort: 15008},
		WeightedWaypoints: []WeightedWaypoint{{GatewayAddress{Namespace: "default", Hostname: "wp2.example", HBONEPort: 15008}, 3}},
		LoadBalancing:     &LoadBalancing{Preference: []Scope{ScopeNetwork, ScopeRegion}, Mode: ModeFailover, AllowUnhealthy: true},
		IPFamilies:        IPDual, NamespaceOnly: true,
	}
	if diff := cmp.Diff(wantService, v.ServiceByKey("default/example2.com"), opt); diff != "" {
		t.Errorf("service (-want +got):\n%s", diff)
	}
	src := v.WorkloadByName("default", "local", "")
	u, err := v.Resolve(src, netip.MustParseAddrPort("127.10.0.1:80"))
	if err != nil {
		t.Fatal(err)
	}
	local := "spiffe://cluster.local/ns/default/sa/"
	wantRoute := route{Kind: "hbone", To: "local", Service: "local", Addr: "127.0.0.1:8080", Tunnel: "127.0.0.1:15008", Authority: "127.0.0.1:8080",
		SANs: []string{local + "default", local + "local"}}
	if diff := cmp.Diff(wantRoute, routeOf(u)); diff != "" {
		t.Errorf("route (-want +got):\n%s", diff)
	}
	checkFilePolicies(t, v)
}

func checkFilePolicies(t *testing.T, v *Snapshot) {
	t.Helper()
	set := v.Policies(v.WorkloadByName("default", "local", ""))
	for port, want := range map[uint16]bool{80: true, 9999: false} {
		c := policy.Conn{SourceIP: netip.MustParseAddr("10.0.0.1"), Dest: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}
		if got := policy.Evaluate(set, c); got.Allowed != want {
			t.Errorf("port %d: %+v, want allowed = %v", port, got, want)
		}
	}
	exact := func(s string) *security.StringMatch {
		return &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: s}}
	}
	prefix := func(s string) *security.StringMatch {
		return &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: s}}
	}
	suffix := func(s string) *security.StringMatch {
		return &security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: s}}
	}
	presence := &security.StringMatch{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}
	span := func(s string) []*security.Address {
		p := netip.MustParsePrefix(s)
		return []*security.Address{{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}}
	}
	want := &security.Authorization{Name: "all-fields", Namespace: "istio-system", Scope: security.Scope_GLOBAL, Action: security.Action_DENY, DryRun: true,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{
			Namespaces: []*security.StringMatch{exact("a"), prefix("b")}, NotNamespaces: []*security.StringMatch{suffix("c")},
			Principals: []*security.StringMatch{presence}, NotPrincipals: []*security.StringMatch{presence},
			ServiceAccounts:    []*security.ServiceAccountMatch{{Namespace: "n", ServiceAccount: "s"}},
			NotServiceAccounts: []*security.ServiceAccountMatch{{Namespace: "n", ServiceAccount: "t"}},
			SourceIps:          span("10.0.0.0/8"), NotSourceIps: span("10.1.0.0/16"),
			DestinationIps: span("fd00::/64"), NotDestinationIps: span("fd00::1/128"), DestinationPorts: []uint32{80, 81},
		}}}}}}}
	if diff := cmp.Diff(want, set.Global[0].Config(), protocmp.Transform()); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
}

// TestLoadFileRefuses: the message names what is wrong, and where the parser knows
// it, the line; the state stays.
func TestLoadFileRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want []string
	}{
		"unknown field":          {"workloads:\n- uid: a\n  namespace: n\n  podIps: []\n", []string{"line 4", "podIps"}},
		"unknown top field":      {"servces: []\n", []string{"line 1", "servces"}},
		"unknown match field":    {"policies:\n- name: a\n  namespace: n\n  scope: Global\n  action: Allow\n  rules:\n  - - - hosts: [a]\n", []string{"line 7", "hosts"}},
		"wrong type":             {"workloads:\n- uid: [a]\n", []string{"line 2"}},
		"bad address":            {"workloads:\n- uid: a\n  namespace: n\n  workloadIps: [1.2.3]\n", []string{"1.2.3"}},
		"bad string match":       {"policies:\n- rules:\n  - - - namespaces: [{Regex: a}]\n", []string{"line 3", "Exact, Prefix, Suffix"}},
		"bad protocol":           {"workloads:\n- uid: a\n  namespace: n\n  protocol: HBON\n", []string{`workload 1 ("a")`, `"HBON"`, "TCP, HBONE"}},
		"no namespace":           {"workloads:\n- uid: a\n", []string{"namespace is missing"}},
		"twice":                  {"workloads:\n- {uid: a, namespace: n}\n- {uid: a, namespace: n}\n", []string{"workload 2", "occurs twice"}},
		"service twice":          {"services:\n- {namespace: n, hostname: h}\n- {namespace: n, hostname: h}\n", []string{"service 2", "occurs twice"}},
		"bad VIP":                {"services:\n- {namespace: n, hostname: h, vips: [10.0.0.1]}\n", []string{"not network/ip"}},
		"bad waypoint":           {"services:\n- {namespace: n, hostname: h, waypoint: {destination: wp}}\n", []string{`"wp"`, "neither network/ip nor namespace/hostname"}},
		"bad preference":         {"services:\n- {namespace: n, hostname: h, loadBalancer: {routingPreferences: [Planet]}}\n", []string{"Planet"}},
		"policy without scope":   {"policies:\n- {name: a, namespace: n, action: Deny}\n", []string{"scope and action"}},
		"policy without name":    {"policies:\n- {namespace: n, action: Deny, scope: Global}\n", []string{"name is empty"}},
		"not YAML":               {"\tworkloads: [", []string{"parse"}},
		"identity in upper case": {"workloads:\n- {uid: a, namespace: N, protocol: HBONE}\n", []string{"upper case"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "local.yaml")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			s := newStore()
			apply(t, s, pod("before", "10.0.0.1"))
			err := s.LoadFile(path)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range append(tc.want, path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if s.Snapshot().WorkloadByUID("c1//Pod/shop/before") == nil {
				t.Error("the state did not stay")
			}
		})
	}
	if err := newStore().LoadFile(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a missing file is no error")
	}
}

func TestLoadEmptyFile(t *testing.T) {
	if err := newStore().load(nil); err != nil {
		t.Error(err)
	}
}

func FuzzLoadFile(f *testing.F) {
	data, err := os.ReadFile("testdata/local.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("policies:\n- {name: a, namespace: n, scope: Global, action: Deny, rules: [[[{namespaces: [~], sourceIps: [~]}]]]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := newStore()
		if s.load(data) != nil {
			return
		}
		v := s.Snapshot()
		v.Workloads(func(w *Workload) bool {
			policy.Evaluate(v.Policies(w), policy.Conn{})
			if _, err := v.Resolve(w, netip.MustParseAddrPort("127.10.0.1:80")); err != nil {
				t.Fatal(err)
			}
			return true
		})
	})
}
