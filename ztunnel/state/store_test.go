package state

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/ztunnel/policy"
)

// dump writes down everything a snapshot can be asked for, in a fixed order.
func dump(v *Snapshot) []string {
	var out []string
	for _, w := range v.workloads.All() {
		out = append(out, fmt.Sprintf("workload %+v", *w))
	}
	for k, list := range v.byIP.All() {
		out = append(out, fmt.Sprintf("ip %v: %v", k, uids(list, false)))
	}
	for k, list := range v.byName.All() {
		out = append(out, fmt.Sprintf("name %v: %v", k, uids(list, false)))
	}
	for k, w := range v.byHost.All() {
		out = append(out, fmt.Sprintf("host %v: %v", k, w.UID))
	}
	for k, s := range v.services.All() {
		out = append(out, fmt.Sprintf("service %v: %+v", k, *s))
	}
	for k, list := range v.svcByVIP.All() {
		out = append(out, fmt.Sprintf("vip %v: %v", k, keys(list)))
	}
	for k, list := range v.svcByHost.All() {
		out = append(out, fmt.Sprintf("hostname %v: %v", k, keys(list)))
	}
	for _, r := range v.ranges {
		out = append(out, fmt.Sprintf("range %v: %v", r.vip, r.service.Key()))
	}
	for k, set := range v.endpoints.All() {
		var members []*Workload
		for _, e := range set.list {
			members = append(members, e.w)
			out = append(out, fmt.Sprintf("endpoint %v %v: %v", k, e.w.UID, e.ports))
		}
		out = append(out, fmt.Sprintf("endpoints %v: %v uniform %v", k, uids(members, true), set.uniform))
	}
	slices.Sort(out)
	return out
}

func uids(list []*Workload, sorted bool) (out []string) {
	for _, w := range list {
		out = append(out, w.UID)
	}
	if sorted {
		slices.Sort(out)
	}
	return out
}

func keys(list []*Service) (out []string) {
	for _, s := range list {
		out = append(out, s.Key())
	}
	return out
}

// randomMessage is a small world: names and addresses collide often.
func randomMessage(r *rand.Rand) proto.Message {
	if r.IntN(3) == 0 {
		s := service([]string{"web", "api", "db"}[r.IntN(3)], fmt.Sprintf("10.96.0.%d", r.IntN(3)), 80, uint32(8080+r.IntN(2)))
		s.Namespace = []string{"shop", "bank"}[r.IntN(2)]
		s.Canonical = r.IntN(2) == 0
		if r.IntN(3) == 0 {
			s.Addresses[0].Length = proto.Uint32(uint32(24 + r.IntN(9)))
		}
		return s
	}
	w := pod(fmt.Sprintf("p%d", r.IntN(8)), fmt.Sprintf("10.0.0.%d", r.IntN(5)))
	for _, key := range []string{"shop/web", "bank/web", "shop/api", "shop/unknown"} {
		if r.IntN(2) == 0 {
			of(key, 80, uint32(9000+r.IntN(2)))(w)
		}
	}
	for _, o := range []option{onHost, unhealthyPod, plainTCP, onNetwork("far"), func(w *workload.Workload) { w.Hostname = "h" + w.Name },
		func(w *workload.Workload) { w.Node = "node-2" }, func(w *workload.Workload) { w.ServiceAccount = "sa" }} {
		if r.IntN(4) == 0 {
			o(w)
		}
	}
	return w
}

// TestOrderDoesNotMatter: after any history of updates and removals, in batches of
// any size, the state is that of a store which only ever saw what is left, in another
// order.
func TestOrderDoesNotMatter(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newStore()
		left := map[string]proto.Message{}
		for range 1 + r.IntN(20) {
			var u xds.Update
			seen := map[string]bool{}
			for range r.IntN(12) {
				m := randomMessage(r)
				res := addresses(t, m)[0]
				if seen[res.Name] {
					continue
				}
				seen[res.Name] = true
				if r.IntN(3) == 0 {
					u.Removed = append(u.Removed, res.Name)
					delete(left, res.Name)
					continue
				}
				u.Resources = append(u.Resources, res)
				left[res.Name] = m
			}
			if rejected := s.HandleAddress(u); len(rejected) != 0 {
				t.Fatal(rejected)
			}
		}
		fresh := newStore()
		rest := make([]string, 0, len(left))
		for name := range left {
			rest = append(rest, name)
		}
		slices.SortFunc(rest, func(a, b string) int { return cmp.Compare(b, a) })
		for _, name := range rest {
			apply(t, fresh, left[name])
		}
		if diff := gocmp.Diff(dump(fresh.Snapshot()), dump(s.Snapshot())); diff != "" {
			t.Fatalf("seed %d: (-fresh +history):\n%s", seed, diff)
		}
	}
}

// TestManyEndpointsInOneBatch goes the way with a table of positions.
func TestManyEndpointsInOneBatch(t *testing.T) {
	const n = 3 * indexEndpointsFrom
	s := newStore()
	var first, second []proto.Message
	var gone []string
	for i := range n {
		ip := fmt.Sprintf("10.0.%d.%d", i/250, i%250)
		first = append(first, pod(fmt.Sprintf("p%d", i), ip, of("shop/web")))
		switch i % 3 {
		case 0:
			second = append(second, pod(fmt.Sprintf("p%d", i), ip, of("shop/web"), unhealthyPod))
		case 1:
			gone = append(gone, fmt.Sprintf("c1//Pod/shop/p%d", i))
		}
	}
	apply(t, s, first...)
	if rejected := s.HandleAddress(xds.Update{Resources: addresses(t, second...), Removed: gone}); len(rejected) > 0 {
		t.Fatal(rejected)
	}
	healthy, total := 0, 0
	s.Snapshot().Endpoints("shop/web", func(w *Workload) bool {
		total++
		if w.Healthy {
			healthy++
		}
		return true
	})
	if total != 2*n/3 || healthy != n/3 {
		t.Errorf("%d endpoints of which %d healthy, want %d and %d", total, healthy, 2*n/3, n/3)
	}
}

func TestSnapshotsDoNotChange(t *testing.T) {
	s := newStore()
	apply(t, s, pod("a", "10.0.0.1", of("shop/web")), pod("b", "10.0.0.2", of("shop/web")), service("web", "10.96.0.1", 80, 8080))
	v := s.Snapshot()
	before := dump(v)
	select {
	case <-v.Superseded():
		t.Error("superseded although nothing came after it")
	default:
	}
	changed := s.Changed()
	apply(t, s, pod("a", "10.0.0.9", of("shop/api")), service("web", "10.96.0.2", 81, 8080))
	drop(t, s, "c1//Pod/shop/b", "shop/web", "nobody/knows")
	if diff := gocmp.Diff(before, dump(v)); diff != "" {
		t.Errorf("an older snapshot changed:\n%s", diff)
	}
	for name, c := range map[string]<-chan struct{}{"Changed": changed, "Superseded": v.Superseded()} {
		select {
		case <-c:
		default:
			t.Errorf("%s is not closed", name)
		}
	}
	now := s.Snapshot()
	if now.Generation != v.Generation+2 {
		t.Errorf("generation %d after %d, want two more", now.Generation, v.Generation)
	}
	if w := now.WorkloadByIP("", netip.MustParseAddr("10.0.0.9")); w == nil || w.Name != "a" {
		t.Errorf("workload at the new address: %v", w)
	}
	if now.WorkloadByIP("", netip.MustParseAddr("10.0.0.1")) != nil || now.WorkloadByUID("c1//Pod/shop/b") != nil || now.ServiceByKey("shop/web") != nil {
		t.Error("something stayed")
	}
}

func TestLookups(t *testing.T) {
	s := newStore()
	in := func(ns string, svc *workload.Service) *workload.Service { svc.Namespace = ns; return svc }
	canonical := func(svc *workload.Service) *workload.Service { svc.Canonical = true; return svc }
	private := func(svc *workload.Service) *workload.Service { svc.Visibility = workload.Service_NAMESPACE; return svc }
	entry := pod("we", "10.0.0.1")
	entry.Uid = "c1/networking.istio.io/WorkloadEntry/shop/we"
	apply(t, s,
		entry, pod("p", "10.0.0.1", plainTCP), pod("elsewhere", "10.0.0.5", func(w *workload.Workload) { w.Node = "node-2" }),
		in("b", service("dup.example", "10.96.0.1", 80, 1)), in("c", canonical(service("dup.example", "10.96.0.1", 80, 2))), in("a", service("dup.example", "10.96.0.1", 80, 3)),
		in("secret", private(service("hidden.example", "10.96.0.2", 80, 1))),
	)
	v := s.Snapshot()
	ip := netip.MustParseAddr
	if w := v.WorkloadByIP("", ip("10.0.0.1")); w == nil || w.Name != "p" {
		t.Errorf("of a pod and a WorkloadEntry at one address: %v, want the pod", w)
	}
	if w := v.WorkloadByIP("other", ip("10.0.0.1")); w != nil {
		t.Errorf("on another network: %v", w)
	}
	if v.WorkloadByName("shop", "p", "p") == nil || v.WorkloadByName("shop", "p", "") == nil || v.WorkloadByName("shop", "p", "else") != nil ||
		v.WorkloadByName("shop", "elsewhere", "") != nil {
		t.Error("WorkloadByName: want the pod of this node with that service account")
	}
	for _, tc := range []struct{ ns, want string }{{"a", "a"}, {"b", "b"}, {"c", "c"}, {"other", "c"}} {
		if svc := v.ServiceByHostname("dup.example", tc.ns); svc == nil || svc.Namespace != tc.want {
			t.Errorf("host name asked from %q: %v, want the one of %q", tc.ns, svc, tc.want)
		}
		if svc := v.ServiceByVIP("", ip("10.96.0.1"), tc.ns); svc == nil || svc.Namespace != tc.want {
			t.Errorf("VIP asked from %q: %v, want the one of %q", tc.ns, svc, tc.want)
		}
	}
	if v.ServiceByHostname("hidden.example", "a") != nil || v.ServiceByVIP("", ip("10.96.0.2"), "a") != nil ||
		v.ServiceByHostname("hidden.example", "secret") == nil || v.ServiceByVIP("", ip("10.96.0.2"), "secret") == nil {
		t.Error("a service of namespace visibility is for its own namespace only")
	}
}

func TestVIPRanges(t *testing.T) {
	s := newStore()
	span := func(ns, name, vip string, bits uint32) *workload.Service {
		svc := service(name, vip, 80, 1)
		svc.Namespace, svc.Addresses[0].Length = ns, proto.Uint32(bits)
		return svc
	}
	apply(t, s, span("a", "wide", "10.96.0.0", 16), span("b", "narrow", "10.96.1.0", 24), span("b", "one", "10.96.1.1", 32), span("c", "six", "fd96::", 64))
	v := s.Snapshot()
	for _, tc := range []struct{ ip, ns, want string }{
		{"10.96.1.2", "z", "narrow"}, {"10.96.1.2", "a", "wide"}, {"10.96.2.2", "z", "wide"}, {"10.96.1.1", "a", "one"},
		{"fd96::7", "z", "six"}, {"10.97.0.0", "a", ""},
	} {
		got := ""
		if svc := v.ServiceByVIP("", netip.MustParseAddr(tc.ip), tc.ns); svc != nil {
			got = svc.Name
		}
		if got != tc.want {
			t.Errorf("%s asked from %q: %q, want %q", tc.ip, tc.ns, got, tc.want)
		}
	}
	drop(t, s, "b/narrow")
	if svc := s.Snapshot().ServiceByVIP("", netip.MustParseAddr("10.96.1.2"), "z"); svc == nil || svc.Name != "wide" {
		t.Errorf("after removal: %v, want wide", svc)
	}
}

// TestRejection: each bad resource is named, its last good version stays, and the
// rest of the batch is applied.
func TestRejection(t *testing.T) {
	change := func(w *workload.Workload, f func(*workload.Workload)) *workload.Workload { f(w); return w }
	changeService := func(f func(*workload.Service)) *workload.Service {
		s := service("bad", "10.96.0.9", 80, 80)
		f(s)
		return s
	}
	bad := func(f func(*workload.Workload)) proto.Message { return change(pod("bad", "10.0.0.9"), f) }
	for name, tc := range map[string]struct {
		in   proto.Message
		want string
	}{
		"address of three bytes":    {bad(func(w *workload.Workload) { w.Addresses = [][]byte{{1, 2, 3}} }), "address of 3 bytes"},
		"legacy tunnel":             {bad(func(w *workload.Workload) { w.TunnelProtocol = workload.TunnelProtocol_LEGACY_ISTIO_MTLS }), "unsupported tunnel protocol"},
		"unknown tunnel":            {bad(func(w *workload.Workload) { w.TunnelProtocol = 77 }), "unsupported tunnel protocol"},
		"unknown status":            {bad(func(w *workload.Workload) { w.Status = 77 }), "unknown status"},
		"unknown network mode":      {bad(func(w *workload.Workload) { w.NetworkMode = 77 }), "unknown network mode"},
		"unknown type":              {bad(func(w *workload.Workload) { w.WorkloadType = 77 }), "unknown workload type"},
		"service key without slash": {bad(of("web", 80, 80)), "not namespace/hostname"},
		"port out of range":         {bad(of("shop/web", 80, 70000)), "out of range"},
		"empty waypoint":            {bad(func(w *workload.Workload) { w.Waypoint = &workload.GatewayAddress{} }), "neither host name nor address"},
		"waypoint of five bytes": {bad(func(w *workload.Workload) {
			w.Waypoint = byAddress("1.2.3.4")
			w.Waypoint.GetAddress().Address = []byte("12345")
		}), "address of 5 bytes"},
		"waypoint port":            {bad(func(w *workload.Workload) { w.Waypoint = byAddress("1.2.3.4"); w.Waypoint.HboneMtlsPort = 1 << 20 }), "out of range"},
		"identity with upper case": {bad(func(w *workload.Workload) { w.ServiceAccount = "Bad" }), "upper case"},
		"identity with slash":      {bad(func(w *workload.Workload) { w.Namespace = "a/b" }), "invalid SPIFFE"},
		"VIP of no bytes":          {changeService(func(s *workload.Service) { s.Addresses[0].Address = nil }), "VIP of 0 bytes"},
		"VIP prefix length":        {changeService(func(s *workload.Service) { s.Addresses[0].Length = proto.Uint32(33) }), "prefix length 33"},
		"service port":             {changeService(func(s *workload.Service) { s.Ports[0].ServicePort = 1 << 16 }), "out of range"},
		"routing preference": {changeService(func(s *workload.Service) {
			s.LoadBalancing = &workload.LoadBalancing{RoutingPreference: []workload.LoadBalancing_Scope{0}}
		}), "unknown routing preference"},
		"mode":              {changeService(func(s *workload.Service) { s.LoadBalancing = &workload.LoadBalancing{Mode: 9} }), "unknown load balancing mode"},
		"health policy":     {changeService(func(s *workload.Service) { s.LoadBalancing = &workload.LoadBalancing{HealthPolicy: 9} }), "unknown health policy"},
		"families":          {changeService(func(s *workload.Service) { s.IpFamilies = 9 }), "unknown IP families"},
		"weighted waypoint": {changeService(func(s *workload.Service) { s.WeightedWaypoints = []*workload.WeightedWaypoint{{Weight: 1}} }), "no destination"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore()
			apply(t, s, pod("bad", "10.0.0.1"), service("bad", "10.96.0.1", 80, 80))
			res := addresses(t, tc.in)
			// As it would come from a server: under the name of what it replaces.
			if w, ok := tc.in.(*workload.Workload); ok {
				res[0].Name = w.Uid
			}
			got := s.HandleAddress(xds.Update{Type: ports.TypeAddress, Resources: append(res, addresses(t, pod("good", "10.0.0.2"))...)})
			if err := got[res[0].Name]; len(got) != 1 || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("rejected %v, want %q only, with %q", got, res[0].Name, tc.want)
			}
			v := s.Snapshot()
			if w := v.WorkloadByIP("", netip.MustParseAddr("10.0.0.1")); w == nil || w.Name != "bad" {
				t.Errorf("the last good workload is gone: %v", w)
			}
			if svc := v.ServiceByVIP("", netip.MustParseAddr("10.96.0.1"), "shop"); svc == nil {
				t.Error("the last good service is gone")
			}
			if v.WorkloadByUID("c1//Pod/shop/good") == nil {
				t.Error("the good part was not applied")
			}
		})
	}
}

func TestRejectsWhatIsNoAddress(t *testing.T) {
	s := newStore()
	garbage := resource(t, "garbage", ports.TypeAddress, &workload.Address{})
	garbage.Resource.Value = []byte{0xff, 0xff}
	empty := resource(t, "empty", ports.TypeAddress, &workload.Address{})
	wrong := resource(t, "wrong", ports.TypeAuthorization, &security.Authorization{})
	renamed := addresses(t, pod("a", "10.0.0.1"))[0]
	renamed.Name = "renamed"
	none := resource(t, "none", ports.TypeAddress, &workload.Address{})
	none.Resource = nil
	got := s.HandleAddress(xds.Update{Resources: append(addresses(t, pod("b", "10.0.0.2")), garbage, empty, wrong, renamed, none)})
	for _, name := range []string{"garbage", "empty", "wrong", "renamed", "none"} {
		if got[name] == nil {
			t.Errorf("%q was not rejected", name)
		}
	}
	if len(got) != 5 || s.Snapshot().WorkloadByUID("c1//Pod/shop/b") == nil {
		t.Errorf("rejected %v; want five, and b applied", got)
	}
}

func TestPolicies(t *testing.T) {
	s := newStore()
	authorization := func(ns, name string, scope security.Scope) *security.Authorization {
		return &security.Authorization{Namespace: ns, Name: name, Scope: scope}
	}
	apply(t, s, pod("a", "10.0.0.1", func(w *workload.Workload) { w.AuthorizationPolicies = []string{"shop/sel", "shop/late", "shop/broken"} }))
	applyPolicy(t, s, authorization("istio-system", "g", security.Scope_GLOBAL), authorization("shop", "n2", security.Scope_NAMESPACE),
		authorization("shop", "n1", security.Scope_NAMESPACE), authorization("bank", "n", security.Scope_NAMESPACE), authorization("shop", "sel", security.Scope_WORKLOAD_SELECTOR))
	names := func() []string {
		v := s.Snapshot()
		set := v.Policies(v.WorkloadByUID("c1//Pod/shop/a"))
		return set.Names()
	}
	if diff := gocmp.Diff([]string{"shop/n1", "shop/n2", "istio-system/g", "shop/sel"}, names()); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
	// A policy that is refused and was never good denies everything to who names it.
	broken := authorization("shop", "broken", 77)
	rejected := s.HandleAuthorization(xds.Update{Resources: append(authResources(t, broken), authResources(t, authorization("shop", "late", security.Scope_WORKLOAD_SELECTOR))...)})
	if len(rejected) != 1 || rejected["shop/broken"] == nil {
		t.Errorf("rejected %v, want shop/broken", rejected)
	}
	if diff := gocmp.Diff([]string{"shop/n1", "shop/n2", "istio-system/g", "shop/sel", "shop/late", "shop/broken"}, names()); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
	v := s.Snapshot()
	if got := policy.Evaluate(v.Policies(v.WorkloadByUID("c1//Pod/shop/a")), policy.Conn{}); got.Allowed || got.Reason != policy.ReasonUnusable {
		t.Errorf("verdict %+v, want refusal because of the unusable policy", got)
	}
	// One that was good once stays so.
	sel := authorization("shop", "sel", 77)
	if rejected := s.HandleAuthorization(xds.Update{Resources: authResources(t, sel), Removed: []string{"shop/broken", "shop/n1"}}); rejected["shop/sel"] == nil {
		t.Error("shop/sel was not rejected")
	}
	applyPolicy(t, s, authorization("shop", "n2", security.Scope_GLOBAL)) // changes scope
	if diff := gocmp.Diff([]string{"istio-system/g", "shop/n2", "shop/sel", "shop/late"}, names()); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
}

func authResources(t *testing.T, a *security.Authorization) []*discoveryResource {
	return []*discoveryResource{resource(t, a.Namespace+"/"+a.Name, ports.TypeAuthorization, a)}
}

func TestPolicyGeneration(t *testing.T) {
	s := newStore()
	last := s.Snapshot().PolicyGeneration
	step := func(what string, want bool, f func()) {
		t.Helper()
		f()
		now := s.Snapshot().PolicyGeneration
		if (now != last) != want {
			t.Errorf("%s: policy generation changed = %v, want %v", what, now != last, want)
		}
		last = now
	}
	named := func(w *workload.Workload) { w.AuthorizationPolicies = []string{"shop/p"} }
	elsewhere := func(w *workload.Workload) { w.Node = "node-2" }
	step("a pod elsewhere", false, func() { apply(t, s, pod("far", "10.0.0.2", elsewhere)) })
	step("a pod elsewhere is selected", false, func() { apply(t, s, pod("far", "10.0.0.2", elsewhere, named)) })
	step("a pod here, new", false, func() { apply(t, s, pod("near", "10.0.0.1")) })
	step("a pod here, other health", false, func() { apply(t, s, pod("near", "10.0.0.1", unhealthyPod)) })
	step("a pod here is selected", true, func() { apply(t, s, pod("near", "10.0.0.1", named)) })
	step("a policy", true, func() { applyPolicy(t, s, &security.Authorization{Namespace: "shop", Name: "p"}) })
}

func FuzzHandleAddress(f *testing.F) {
	for _, r := range addresses(f, pod("a", "10.0.0.1", of("shop/web", 80, 8080)), service("web", "10.96.0.1", 80, 8080)) {
		f.Add(r.Name, r.Resource.Value)
	}
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		s := newStore()
		apply(t, s, pod("client", "10.1.0.1"))
		res := addresses(t, pod("x", "10.1.0.2"))[0]
		res.Name, res.Resource.Value = name, value
		rejected := s.HandleAddress(xds.Update{Resources: []*discoveryResource{res}})
		if len(rejected) > 0 && rejected[name] == nil {
			t.Fatalf("rejected %v, which was not sent", rejected)
		}
		v := s.Snapshot()
		src := v.WorkloadByUID("c1//Pod/shop/client")
		if src == nil && name != "c1//Pod/shop/client" {
			t.Fatal("another resource took the client away")
		}
		if src != nil {
			v.Workloads(func(w *Workload) bool {
				for _, ip := range w.Addresses {
					if _, err := v.Resolve(src, netip.AddrPortFrom(ip, 80)); err != nil {
						t.Fatal(err)
					}
				}
				return true
			})
		}
		drop(t, s, name)
		drop(t, s, "c1//Pod/shop/client")
		if w, svc, _ := s.Snapshot().Counts(); w+svc != 0 || s.Snapshot().byIP.Len() != 0 || s.Snapshot().endpoints.Len() != 0 || s.Snapshot().svcByVIP.Len() != 0 {
			t.Fatalf("left after removal: %v", dump(s.Snapshot()))
		}
	})
}
