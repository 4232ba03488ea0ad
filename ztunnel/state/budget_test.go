package state

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// realistic makes n pods in services of 100, with names of usual length.
func realistic(n int) []proto.Message {
	var out []proto.Message
	for i := range n {
		app := i / 100
		ns, name := fmt.Sprintf("team-%02d", app%20), fmt.Sprintf("checkout-%03d", app)
		host := name + "." + ns + ".svc.cluster.local"
		if i%100 == 0 {
			out = append(out, &workload.Service{Name: name, Namespace: ns, Hostname: host,
				Addresses: []*workload.NetworkAddress{{Address: []byte{10, 96, byte(app >> 8), byte(app)}}},
				Ports:     portList([]uint32{80, 8080, 443, 8443})})
		}
		podName := fmt.Sprintf("%s-7d9c5b8f6d-%05x", name, i)
		out = append(out, &workload.Workload{
			Uid: "Kubernetes//Pod/" + ns + "/" + podName, Name: podName, Namespace: ns, ServiceAccount: name,
			Addresses: [][]byte{{10, byte(i >> 16), byte(i >> 8), byte(i)}}, TunnelProtocol: workload.TunnelProtocol_HBONE,
			Node: fmt.Sprintf("ip-10-0-%d-%d.eu-central-1.compute.internal", i%100/10, i%10), WorkloadName: name, CanonicalName: name,
			CanonicalRevision: "v1", ClusterId: "Kubernetes", AuthorizationPolicies: []string{"istio-system/istio_converted_static_strict"},
			Locality: &workload.Locality{Region: "eu-central-1", Zone: fmt.Sprintf("eu-central-1%c", 'a'+i%3)},
			Services: map[string]*workload.PortList{ns + "/" + host: {Ports: portList([]uint32{80, 8080, 443, 8443})}},
		})
	}
	return out
}

// maxBytesPerWorkload is what one workload may cost in live heap: the workload, its
// share of five indexes, and its place among a service's endpoints. Measured 664
// (October 2026); Istio's ztunnel is sized for 2.5 KiB. If this trips, look for a
// string that is not interned or an index that holds its keys twice before raising it.
const maxBytesPerWorkload = 900

func TestHeapPerWorkload(t *testing.T) {
	const n = 10_000
	resources := addresses(t, realistic(n)...)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := newStore()
	for batch := range slices.Chunk(resources, 1000) { // as a server sends it, in messages of bounded size
		if rejected := s.HandleAddress(xds.Update{Type: ports.TypeAddress, Resources: batch}); len(rejected) > 0 {
			t.Fatal(rejected)
		}
	}
	after := heap()
	runtime.KeepAlive(resources) // in both measurements
	per := (int64(after) - int64(before)) / n
	t.Logf("%d bytes per workload", per)
	if per > maxBytesPerWorkload || per < 100 {
		t.Errorf("%d bytes per workload, want 100 to %d", per, maxBytesPerWorkload)
	}
	if w, _, _ := s.Snapshot().Counts(); w != n {
		t.Errorf("%d workloads, want %d", w, n)
	}
}

func loaded(b testing.TB, n int) (*Store, []proto.Message) {
	s, messages := newStore(), realistic(n)
	apply(b, s, messages...)
	return s, messages
}

// BenchmarkUpdateOne is one pod's event among 10,000.
func BenchmarkUpdateOne(b *testing.B) {
	s, messages := loaded(b, 10_000)
	resources := addresses(b, messages...)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if rejected := s.HandleAddress(xds.Update{Resources: resources[i%len(resources) : i%len(resources)+1]}); len(rejected) > 0 {
			b.Fatal(rejected)
		}
		i++
	}
}

// BenchmarkLoad is the first response of a mesh of 10,000 pods.
func BenchmarkLoad(b *testing.B) {
	resources := addresses(b, realistic(10_000)...)
	b.ReportAllocs()
	for b.Loop() {
		if rejected := newStore().HandleAddress(xds.Update{Resources: resources}); len(rejected) > 0 {
			b.Fatal(rejected)
		}
	}
}

// BenchmarkResolve is a connection to a service of 100 pods, and of 10,000.
func BenchmarkResolve(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := newStore()
			in := []proto.Message{service("web", "10.96.0.1", 80, 8080), pod("client", "10.250.0.1")}
			for i := range n {
				in = append(in, pod(fmt.Sprintf("p%d", i), netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String(), of("shop/web")))
			}
			apply(b, s, in...)
			v := s.Snapshot()
			src, dst := v.WorkloadByName("shop", "client", ""), netip.MustParseAddrPort("10.96.0.1:80")
			b.ReportAllocs()
			for b.Loop() {
				if u, err := v.Resolve(src, dst); err != nil || u.Kind != HBONE {
					b.Fatal(u, err)
				}
			}
		})
	}
}
