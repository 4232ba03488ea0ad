package state

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/workload"
)

// route is what matters of an Upstream, in a form that is easy to write down.
type route struct {
	Kind      string
	To        string // name of the next hop
	Service   string
	Addr      string
	Tunnel    string
	Authority string
	SANs      []string
	Waypoint  bool
	Reason    string
}

func routeOf(u Upstream) route {
	r := route{Kind: u.Kind.String(), Authority: u.Authority, SANs: u.SANs, Waypoint: u.Waypoint, Reason: u.Reason}
	if u.Workload != nil {
		r.To = u.Workload.Name
	}
	if u.Service != nil {
		r.Service = u.Service.Name
	}
	if u.Addr.IsValid() {
		r.Addr = u.Addr.String()
	}
	if u.Tunnel.IsValid() {
		r.Tunnel = u.Tunnel.String()
	}
	return r
}

func TestResolve(t *testing.T) {
	client := pod("client", "10.0.0.1")
	mesh := func(in ...proto.Message) []proto.Message { return append(in, client) }
	with := func(s *workload.Service, f func(*workload.Service)) *workload.Service { f(s); return s }
	viaWaypoint := func(gw *workload.GatewayAddress) func(*workload.Service) {
		return func(s *workload.Service) { s.Waypoint = gw }
	}
	lb := func(mode workload.LoadBalancing_Mode, prefs ...workload.LoadBalancing_Scope) func(*workload.Service) {
		return func(s *workload.Service) {
			s.LoadBalancing = &workload.LoadBalancing{Mode: mode, RoutingPreference: prefs}
		}
	}
	wp := pod("wp", "10.0.0.99", of("shop/wp", 15008, 15008))
	wpService := service("wp", "10.96.0.99", 15008, 15008)

	for name, tc := range map[string]struct {
		mesh []proto.Message
		src  string // default client
		dst  string
		want route
	}{
		"unknown destination passes through": {mesh(), "", "93.184.216.34:443",
			route{Kind: "passthrough", Addr: "93.184.216.34:443"}},
		"pod by address, HBONE": {mesh(pod("web", "10.0.0.2")), "", "10.0.0.2:8080",
			route{Kind: "hbone", To: "web", Addr: "10.0.0.2:8080", Tunnel: "10.0.0.2:15008", Authority: "10.0.0.2:8080", SANs: []string{spiffe("web")}}},
		"pod by v4-mapped address": {mesh(pod("web", "10.0.0.2")), "", "[::ffff:10.0.0.2]:8080",
			route{Kind: "hbone", To: "web", Addr: "10.0.0.2:8080", Tunnel: "10.0.0.2:15008", Authority: "10.0.0.2:8080", SANs: []string{spiffe("web")}}},
		"pod by v6 address": {mesh(pod("web", "fd00::2")), "", "[fd00::2]:8080",
			route{Kind: "hbone", To: "web", Addr: "[fd00::2]:8080", Tunnel: "[fd00::2]:15008", Authority: "[fd00::2]:8080", SANs: []string{spiffe("web")}}},
		"pod outside the mesh": {mesh(pod("web", "10.0.0.2", plainTCP)), "", "10.0.0.2:8080",
			route{Kind: "plaintext", To: "web", Addr: "10.0.0.2:8080"}},
		"unhealthy pod by address is still reached": {mesh(pod("web", "10.0.0.2", unhealthyPod)), "", "10.0.0.2:8080",
			route{Kind: "hbone", To: "web", Addr: "10.0.0.2:8080", Tunnel: "10.0.0.2:15008", Authority: "10.0.0.2:8080", SANs: []string{spiffe("web")}}},
		"host network pod is not its host's address": {mesh(pod("agent", "192.168.0.7", onHost, plainTCP)), "", "192.168.0.7:22",
			route{Kind: "passthrough", Addr: "192.168.0.7:22"}},
		"host network pod as an endpoint": {mesh(pod("agent", "192.168.0.7", onHost, plainTCP, of("shop/agents")), service("agents", "10.96.0.1", 80, 9100)), "", "10.96.0.1:80",
			route{Kind: "plaintext", To: "agent", Service: "agents", Addr: "192.168.0.7:9100"}},
		"pod of another network is not found by address": {mesh(pod("web", "10.0.0.2", onNetwork("far"))), "", "10.0.0.2:80",
			route{Kind: "passthrough", Addr: "10.0.0.2:80"}},

		"service maps the port": {mesh(pod("web", "10.0.0.2", of("shop/web")), service("web", "10.96.0.1", 80, 8080)), "", "10.96.0.1:80",
			route{Kind: "hbone", To: "web", Service: "web", Addr: "10.0.0.2:8080", Tunnel: "10.0.0.2:15008", Authority: "10.0.0.2:8080", SANs: []string{spiffe("web")}}},
		"the endpoint's own mapping comes first": {mesh(pod("web", "10.0.0.2", of("shop/web", 80, 9090)), service("web", "10.96.0.1", 80, 8080)), "", "10.96.0.1:80",
			route{Kind: "hbone", To: "web", Service: "web", Addr: "10.0.0.2:9090", Tunnel: "10.0.0.2:15008", Authority: "10.0.0.2:9090", SANs: []string{spiffe("web")}}},
		"named target port: only the endpoint knows it": {mesh(pod("web", "10.0.0.2", of("shop/web", 80, 9090)), service("web", "10.96.0.1", 80, 0)), "", "10.96.0.1:80",
			route{Kind: "hbone", To: "web", Service: "web", Addr: "10.0.0.2:9090", Tunnel: "10.0.0.2:15008", Authority: "10.0.0.2:9090", SANs: []string{spiffe("web")}}},
		"named target port that the endpoint lacks": {mesh(pod("web", "10.0.0.2", of("shop/web", 81, 9090)), service("web", "10.96.0.1", 80, 0)), "", "10.96.0.1:80",
			route{Kind: "refused", Service: "web", Reason: "service shop/web has no healthy endpoint that serves the port"}},
		"service names are added to the SANs": {mesh(pod("web", "10.0.0.2", of("shop/web")),
			with(service("web", "10.96.0.1", 80, 8080), func(s *workload.Service) { s.SubjectAltNames = []string{"spiffe://other/ns/a/sa/b"} })), "", "10.96.0.1:80",
			route{Kind: "hbone", To: "web", Service: "web", Addr: "10.0.0.2:8080", Tunnel: "10.0.0.2:15008", Authority: "10.0.0.2:8080",
				SANs: []string{spiffe("web"), "spiffe://other/ns/a/sa/b"}}},
		"service port that does not exist": {mesh(pod("web", "10.0.0.2", of("shop/web")), service("web", "10.96.0.1", 80, 8080)), "", "10.96.0.1:81",
			route{Kind: "refused", Service: "web", Reason: "service shop/web has no port 81"}},
		"service without endpoints": {mesh(service("web", "10.96.0.1", 80, 8080)), "", "10.96.0.1:80",
			route{Kind: "refused", Service: "web", Reason: "service shop/web has no endpoint"}},
		"service with sick endpoints only": {mesh(pod("web", "10.0.0.2", of("shop/web"), unhealthyPod), service("web", "10.96.0.1", 80, 8080)), "", "10.96.0.1:80",
			route{Kind: "refused", Service: "web", Reason: "service shop/web has no healthy endpoint"}},
		"service that takes sick endpoints": {mesh(pod("web", "10.0.0.2", of("shop/web"), unhealthyPod, plainTCP),
			with(service("web", "10.96.0.1", 80, 8080), func(s *workload.Service) {
				s.LoadBalancing = &workload.LoadBalancing{HealthPolicy: workload.LoadBalancing_ALLOW_ALL}
			})), "", "10.96.0.1:80",
			route{Kind: "plaintext", To: "web", Service: "web", Addr: "10.0.0.2:8080"}},
		"sick endpoints are left out": {mesh(pod("a", "10.0.0.2", of("shop/web"), unhealthyPod), pod("b", "10.0.0.3", of("shop/web"), plainTCP), service("web", "10.96.0.1", 80, 8080)), "", "10.96.0.1:80",
			route{Kind: "plaintext", To: "b", Service: "web", Addr: "10.0.0.3:8080"}},
		"endpoints without capacity are left out": {mesh(pod("a", "10.0.0.2", of("shop/web"), func(w *workload.Workload) { w.Capacity = wrapperspb.UInt32(0) }),
			pod("b", "10.0.0.3", of("shop/web"), plainTCP), service("web", "10.96.0.1", 80, 8080)), "", "10.96.0.1:80",
			route{Kind: "plaintext", To: "b", Service: "web", Addr: "10.0.0.3:8080"}},
		"no endpoint has capacity": {mesh(pod("a", "10.0.0.2", of("shop/web"), func(w *workload.Workload) { w.Capacity = wrapperspb.UInt32(0) }), service("web", "10.96.0.1", 80, 8080)), "", "10.96.0.1:80",
			route{Kind: "refused", Service: "web", Reason: "service shop/web has no endpoint with capacity"}},
		"endpoint on another network": {mesh(pod("web", "10.0.0.2", of("shop/web"), onNetwork("far")), service("web", "10.96.0.1", 80, 8080)), "", "10.96.0.1:80",
			route{Kind: "refused", Service: "web", Reason: "service shop/web has healthy endpoints only on other networks, which cannot be reached yet"}},
		"endpoint by host name": {mesh(pod("ext", "", of("shop/web"), plainTCP, func(w *workload.Workload) { w.Hostname = "example.com" }), service("web", "10.96.0.1", 80, 8080)), "", "10.96.0.1:80",
			route{Kind: "refused", Service: "web", Reason: "service shop/web has endpoints only by host name, which cannot be resolved yet"}},
		"VIP shared with a pod's address is the service": {mesh(pod("a", "10.0.0.2"), pod("b", "10.0.0.3", of("shop/web"), plainTCP), service("web", "10.0.0.2", 80, 8080)), "", "10.0.0.2:80",
			route{Kind: "plaintext", To: "b", Service: "web", Addr: "10.0.0.3:8080"}},
		"passthrough service": {mesh(with(service("web", "10.96.0.1", 80, 8080), lb(workload.LoadBalancing_PASSTHROUGH))), "", "10.96.0.1:80",
			route{Kind: "passthrough", Service: "web", Addr: "10.96.0.1:80"}},
		"VIP range": {mesh(pod("a", "10.0.0.2", of("shop/web"), plainTCP), with(service("web", "10.96.0.0", 80, 8080), func(s *workload.Service) {
			s.Addresses[0].Length = proto.Uint32(24)
		})), "", "10.96.0.77:80", route{Kind: "plaintext", To: "a", Service: "web", Addr: "10.0.0.2:8080"}},
		"dual stack endpoint, family asked for": {mesh(pod("web", "10.0.0.2", of("shop/web"), plainTCP, func(w *workload.Workload) {
			w.Addresses = append(w.Addresses, ipBytes("fd00::2"))
		}), with(service("web", "10.96.0.1", 80, 8080), func(s *workload.Service) {
			s.Addresses = append(s.Addresses, &workload.NetworkAddress{Address: ipBytes("fd96::1")})
		})), "", "[fd96::1]:80", route{Kind: "plaintext", To: "web", Service: "web", Addr: "[fd00::2]:8080"}},
		"dual stack endpoint, service is v4 only": {mesh(pod("web", "fd00::2", of("shop/web"), plainTCP, func(w *workload.Workload) {
			w.Addresses = append(w.Addresses, ipBytes("10.0.0.2"))
		}), with(service("web", "fd96::1", 80, 8080), func(s *workload.Service) { s.IpFamilies = workload.IPFamilies_IPV4_ONLY })), "", "[fd96::1]:80",
			route{Kind: "plaintext", To: "web", Service: "web", Addr: "10.0.0.2:8080"}},

		"failover takes the nearest": {mesh(pod("near", "10.0.0.2", of("shop/web"), plainTCP, at("r", "z1")), pod("far", "10.0.0.3", of("shop/web"), plainTCP, at("r", "z2")),
			with(service("web", "10.96.0.1", 80, 8080), lb(workload.LoadBalancing_FAILOVER, workload.LoadBalancing_REGION, workload.LoadBalancing_ZONE)),
			pod("src", "10.0.0.8", at("r", "z1"))), "src", "10.96.0.1:80",
			route{Kind: "plaintext", To: "near", Service: "web", Addr: "10.0.0.2:8080"}},
		"failover takes the next nearest": {mesh(pod("near", "10.0.0.2", of("shop/web"), plainTCP, at("r", "z1"), unhealthyPod),
			pod("mid", "10.0.0.3", of("shop/web"), plainTCP, at("r", "z2")), pod("far", "10.0.0.4", of("shop/web"), plainTCP, at("q", "z1")),
			with(service("web", "10.96.0.1", 80, 8080), lb(workload.LoadBalancing_FAILOVER, workload.LoadBalancing_REGION, workload.LoadBalancing_ZONE)),
			pod("src", "10.0.0.8", at("r", "z1"))), "src", "10.96.0.1:80",
			route{Kind: "plaintext", To: "mid", Service: "web", Addr: "10.0.0.3:8080"}},
		"scopes are compared in order": {mesh(pod("a", "10.0.0.2", of("shop/web"), plainTCP, at("other", "z1")), pod("b", "10.0.0.3", of("shop/web"), plainTCP, at("r", "z9")),
			with(service("web", "10.96.0.1", 80, 8080), lb(workload.LoadBalancing_FAILOVER, workload.LoadBalancing_REGION, workload.LoadBalancing_ZONE)),
			pod("src", "10.0.0.8", at("r", "z1"))), "src", "10.96.0.1:80",
			route{Kind: "plaintext", To: "b", Service: "web", Addr: "10.0.0.3:8080"}},
		"strict refuses what is elsewhere": {mesh(pod("far", "10.0.0.3", of("shop/web"), plainTCP, func(w *workload.Workload) { w.Node = "node-2" }),
			with(service("web", "10.96.0.1", 80, 8080), lb(workload.LoadBalancing_STRICT, workload.LoadBalancing_NODE))), "", "10.96.0.1:80",
			route{Kind: "refused", Service: "web", Reason: "service shop/web has no healthy endpoint where its load balancing demands one"}},
		"strict takes what is here": {mesh(pod("near", "10.0.0.2", of("shop/web"), plainTCP), pod("far", "10.0.0.3", of("shop/web"), plainTCP, func(w *workload.Workload) { w.Node = "node-2" }),
			with(service("web", "10.96.0.1", 80, 8080), lb(workload.LoadBalancing_STRICT, workload.LoadBalancing_NODE))), "", "10.96.0.1:80",
			route{Kind: "plaintext", To: "near", Service: "web", Addr: "10.0.0.2:8080"}},

		"service waypoint by host name": {mesh(wp, wpService, pod("web", "10.0.0.2", of("shop/web")), with(service("web", "10.96.0.1", 80, 8080), viaWaypoint(byHostname("shop", "wp")))), "", "10.96.0.1:80",
			route{Kind: "hbone", To: "wp", Service: "web", Addr: "10.96.0.1:80", Tunnel: "10.0.0.99:15008", Authority: "10.96.0.1:80", SANs: []string{spiffe("wp")}, Waypoint: true}},
		"service waypoint by VIP": {mesh(wp, wpService, with(service("web", "10.96.0.1", 80, 8080), viaWaypoint(byAddress("10.96.0.99")))), "", "10.96.0.1:80",
			route{Kind: "hbone", To: "wp", Service: "web", Addr: "10.96.0.1:80", Tunnel: "10.0.0.99:15008", Authority: "10.96.0.1:80", SANs: []string{spiffe("wp")}, Waypoint: true}},
		"service waypoint by pod address": {mesh(wp, with(service("web", "10.96.0.1", 80, 8080), viaWaypoint(byAddress("10.0.0.99")))), "", "10.96.0.1:80",
			route{Kind: "hbone", To: "wp", Service: "web", Addr: "10.96.0.1:80", Tunnel: "10.0.0.99:15008", Authority: "10.96.0.1:80", SANs: []string{spiffe("wp")}, Waypoint: true}},
		"waypoint maps its port and adds its names": {mesh(pod("wp", "10.0.0.99", of("shop/wp")), with(service("wp", "", 15008, 16008), func(s *workload.Service) { s.SubjectAltNames = []string{"spiffe://x/ns/y/sa/z"} }),
			with(service("web", "10.96.0.1", 80, 8080), viaWaypoint(byHostname("shop", "wp")))), "", "10.96.0.1:80",
			route{Kind: "hbone", To: "wp", Service: "web", Addr: "10.96.0.1:80", Tunnel: "10.0.0.99:16008", Authority: "10.96.0.1:80", SANs: []string{spiffe("wp"), "spiffe://x/ns/y/sa/z"}, Waypoint: true}},
		"waypoint with an application tunnel needs no port": {mesh(pod("wp", "10.0.0.99", of("shop/wp"), func(w *workload.Workload) {
			w.ApplicationTunnel = &workload.ApplicationTunnel{Protocol: workload.ApplicationTunnel_PROXY, Port: 15088}
		}), service("wp", ""), with(service("web", "10.96.0.1", 80, 8080), viaWaypoint(byHostname("shop", "wp")))), "", "10.96.0.1:80",
			route{Kind: "hbone", To: "wp", Service: "web", Addr: "10.96.0.1:80", Tunnel: "10.0.0.99:15008", Authority: "10.96.0.1:80", SANs: []string{spiffe("wp")}, Waypoint: true}},
		"unknown waypoint refuses": {mesh(pod("web", "10.0.0.2", of("shop/web")), with(service("web", "10.96.0.1", 80, 8080), viaWaypoint(byHostname("shop", "wp")))), "", "10.96.0.1:80",
			route{Kind: "refused", Service: "web", Reason: "waypoint shop/wp is not known"}},
		"waypoint without endpoints refuses": {mesh(wpService, pod("web", "10.0.0.2", of("shop/web")), with(service("web", "10.96.0.1", 80, 8080), viaWaypoint(byHostname("shop", "wp")))), "", "10.96.0.1:80",
			route{Kind: "refused", Service: "web", Reason: "waypoint shop/wp has no endpoint"}},
		"the waypoint itself goes straight to the service": {mesh(wp, wpService, pod("web", "10.0.0.2", of("shop/web")), with(service("web", "10.96.0.1", 80, 8080), viaWaypoint(byHostname("shop", "wp")))), "wp", "10.96.0.1:80",
			route{Kind: "hbone", To: "web", Service: "web", Addr: "10.0.0.2:8080", Tunnel: "10.0.0.2:15008", Authority: "10.0.0.2:8080", SANs: []string{spiffe("web")}}},
		"weighted waypoints replace the one": {mesh(wp, wpService, with(service("web", "10.96.0.1", 80, 8080), func(s *workload.Service) {
			s.Waypoint = byHostname("shop", "missing")
			s.WeightedWaypoints = []*workload.WeightedWaypoint{{Destination: byHostname("shop", "gone"), Weight: 0}, {Destination: byHostname("shop", "wp"), Weight: 3}}
		})), "", "10.96.0.1:80",
			route{Kind: "hbone", To: "wp", Service: "web", Addr: "10.96.0.1:80", Tunnel: "10.0.0.99:15008", Authority: "10.96.0.1:80", SANs: []string{spiffe("wp")}, Waypoint: true}},
		"workload waypoint": {mesh(wp, wpService, pod("web", "10.0.0.2", func(w *workload.Workload) { w.Waypoint = byHostname("shop", "wp") })), "", "10.0.0.2:8080",
			route{Kind: "hbone", To: "wp", Addr: "10.0.0.2:8080", Tunnel: "10.0.0.99:15008", Authority: "10.0.0.2:8080", SANs: []string{spiffe("wp")}, Waypoint: true}},
		"workload waypoint is not used for its service": {mesh(wp, wpService, service("web", "10.96.0.1", 80, 8080),
			pod("web", "10.0.0.2", of("shop/web"), func(w *workload.Workload) { w.Waypoint = byHostname("shop", "wp") })), "", "10.96.0.1:80",
			route{Kind: "hbone", To: "web", Service: "web", Addr: "10.0.0.2:8080", Tunnel: "10.0.0.2:15008", Authority: "10.0.0.2:8080", SANs: []string{spiffe("web")}}},
		"the waypoint itself goes straight to the workload": {mesh(wp, wpService, pod("web", "10.0.0.2", func(w *workload.Workload) { w.Waypoint = byHostname("shop", "wp") })), "wp", "10.0.0.2:8080",
			route{Kind: "hbone", To: "web", Addr: "10.0.0.2:8080", Tunnel: "10.0.0.2:15008", Authority: "10.0.0.2:8080", SANs: []string{spiffe("web")}}},
		"waypoint that is a workload by host name": {mesh(pod("wp", "10.0.0.99", func(w *workload.Workload) { w.Hostname = "wp.example" }),
			with(service("web", "10.96.0.1", 80, 8080), viaWaypoint(byHostname("shop", "wp.example")))), "", "10.96.0.1:80",
			route{Kind: "hbone", To: "wp", Service: "web", Addr: "10.96.0.1:80", Tunnel: "10.0.0.99:15008", Authority: "10.96.0.1:80", SANs: []string{spiffe("wp")}, Waypoint: true}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore()
			apply(t, s, tc.mesh...)
			v := s.Snapshot()
			if tc.src == "" {
				tc.src = "client"
			}
			for range 20 { // there is chance in it
				u, err := v.Resolve(v.WorkloadByName("shop", tc.src, ""), netip.MustParseAddrPort(tc.dst))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.want, routeOf(u)); diff != "" {
					t.Fatalf("route (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestResolveWithoutSource(t *testing.T) {
	_, err := newStore().Snapshot().Resolve(nil, netip.MustParseAddrPort("10.0.0.1:80"))
	if err == nil || !strings.Contains(err.Error(), "source workload is not known") {
		t.Errorf("error = %v", err)
	}
}

// TestChoiceIsWeighted: shares follow capacity, in the fast and in the slow path.
func TestChoiceIsWeighted(t *testing.T) {
	for name, tc := range map[string]struct {
		capacity []uint32
		want     []float64
	}{
		"equal, slow path": {[]uint32{1, 1, 1, 1}, []float64{.25, .25, .25, .25}},
		"equal, fast path": {[]uint32{1, 1, 1, 1, 1, 1, 1, 1}, []float64{.125, .125, .125, .125, .125, .125, .125, .125}},
		"weighted":         {[]uint32{1, 3, 0, 4}, []float64{.125, .375, 0, .5}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore()
			in := []proto.Message{service("web", "10.96.0.1", 80, 8080), pod("client", "10.1.0.1")}
			for i, c := range tc.capacity {
				in = append(in, pod(string(rune('a'+i)), netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}).String(), of("shop/web"),
					func(w *workload.Workload) { w.Capacity = wrapperspb.UInt32(c) }))
			}
			apply(t, s, in...)
			v := s.Snapshot()
			const n = 20000
			got := map[string]int{}
			for range n {
				u, err := v.Resolve(v.WorkloadByName("shop", "client", ""), netip.MustParseAddrPort("10.96.0.1:80"))
				if err != nil || u.Workload == nil {
					t.Fatal(u, err)
				}
				got[u.Workload.Name]++
			}
			for i, want := range tc.want {
				share := float64(got[string(rune('a'+i))]) / n
				// Six standard deviations of the widest case: fails once in a billion runs.
				if share < want-.022 || share > want+.022 || want == 0 && share != 0 {
					t.Errorf("endpoint %d got %.3f of the connections, want %.3f", i, share, want)
				}
			}
		})
	}
}
