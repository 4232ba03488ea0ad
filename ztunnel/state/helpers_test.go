package state

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
)

const testNode = "node-1"

func newStore() *Store {
	return NewStore(Config{Node: testNode, Log: slog.New(slog.DiscardHandler)})
}

func resource(t testing.TB, name, typeURL string, m proto.Message) *discovery.Resource {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &discovery.Resource{Name: name, Resource: &anypb.Any{TypeUrl: typeURL, Value: b}}
}

// addresses makes resources of *workload.Workload and *workload.Service.
func addresses(t testing.TB, in ...proto.Message) []*discovery.Resource {
	t.Helper()
	var out []*discovery.Resource
	for _, m := range in {
		switch m := m.(type) {
		case *workload.Workload:
			out = append(out, resource(t, m.Uid, ports.TypeAddress, &workload.Address{Type: &workload.Address_Workload{Workload: m}}))
		case *workload.Service:
			out = append(out, resource(t, m.Namespace+"/"+m.Hostname, ports.TypeAddress, &workload.Address{Type: &workload.Address_Service{Service: m}}))
		default:
			t.Fatalf("unexpected %T", m)
		}
	}
	return out
}

// apply sends one update that must be accepted as a whole.
func apply(t testing.TB, s *Store, in ...proto.Message) {
	t.Helper()
	if rejected := s.HandleAddress(xds.Update{Type: ports.TypeAddress, Resources: addresses(t, in...)}); len(rejected) > 0 {
		t.Fatalf("rejected: %v", rejected)
	}
}

func drop(t testing.TB, s *Store, names ...string) {
	t.Helper()
	if rejected := s.HandleAddress(xds.Update{Type: ports.TypeAddress, Removed: names}); len(rejected) > 0 {
		t.Fatalf("rejected: %v", rejected)
	}
}

func applyPolicy(t testing.TB, s *Store, in ...*security.Authorization) {
	t.Helper()
	var u xds.Update
	for _, a := range in {
		u.Resources = append(u.Resources, resource(t, a.Namespace+"/"+a.Name, ports.TypeAuthorization, a))
	}
	if rejected := s.HandleAuthorization(u); len(rejected) > 0 {
		t.Fatalf("rejected: %v", rejected)
	}
}

func ipBytes(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

type discoveryResource = discovery.Resource

type option func(*workload.Workload)

// pod is an HBONE pod in namespace shop on this node.
func pod(name, ip string, opts ...option) *workload.Workload {
	w := &workload.Workload{
		Uid: "c1//Pod/shop/" + name, Name: name, Namespace: "shop", ServiceAccount: name, Node: testNode,
		TunnelProtocol: workload.TunnelProtocol_HBONE, ClusterId: "c1",
	}
	if ip != "" {
		w.Addresses = [][]byte{ipBytes(ip)}
	}
	for _, o := range opts {
		o(w)
	}
	return w
}

// of makes the workload an endpoint; pairs are service port, target port.
func of(key string, pairs ...uint32) option {
	return func(w *workload.Workload) {
		if w.Services == nil {
			w.Services = map[string]*workload.PortList{}
		}
		w.Services[key] = &workload.PortList{Ports: portList(pairs)}
	}
}

func portList(pairs []uint32) []*workload.Port {
	var out []*workload.Port
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, &workload.Port{ServicePort: pairs[i], TargetPort: pairs[i+1]})
	}
	return out
}

func plainTCP(w *workload.Workload)     { w.TunnelProtocol = workload.TunnelProtocol_NONE }
func unhealthyPod(w *workload.Workload) { w.Status = workload.WorkloadStatus_UNHEALTHY }
func onHost(w *workload.Workload)       { w.NetworkMode = workload.NetworkMode_HOST_NETWORK }
func onNetwork(n string) option         { return func(w *workload.Workload) { w.Network = n } }
func at(region, zone string) option {
	return func(w *workload.Workload) { w.Locality = &workload.Locality{Region: region, Zone: zone} }
}

// service is in namespace shop; its host name is name alone, for short tests.
func service(name, vip string, pairs ...uint32) *workload.Service {
	s := &workload.Service{Name: name, Namespace: "shop", Hostname: name, Ports: portList(pairs)}
	if vip != "" {
		s.Addresses = []*workload.NetworkAddress{{Address: ipBytes(vip)}}
	}
	return s
}

func byHostname(ns, host string) *workload.GatewayAddress {
	return &workload.GatewayAddress{HboneMtlsPort: 15008, Destination: &workload.GatewayAddress_Hostname{
		Hostname: &workload.NamespacedHostname{Namespace: ns, Hostname: host}}}
}

func byAddress(ip string) *workload.GatewayAddress {
	return &workload.GatewayAddress{HboneMtlsPort: 15008, Destination: &workload.GatewayAddress_Address{
		Address: &workload.NetworkAddress{Address: ipBytes(ip)}}}
}

func spiffe(sa string) string { return fmt.Sprintf("spiffe://cluster.local/ns/shop/sa/%s", sa) }
