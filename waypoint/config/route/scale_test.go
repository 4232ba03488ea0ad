package route

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// manyRules is one host with n rules of the usual kind.
func manyRules(n int) *model.RouteTable {
	h := model.VirtualHost{Name: "web", Domains: []string{"*"}, Policy: model.HTTPPolicy{
		Authz: []*model.Authorization{policy("allow", model.AuthzAllow, everything())},
	}}
	for i := range n {
		h.Rules = append(h.Rules, model.RouteRule{
			Name: fmt.Sprintf("shop/route-%d", i), Match: model.HTTPMatch{Path: segment(fmt.Sprintf("/path/%d", i)), Headers: []model.NamedMatch{named("x-version", exact("v2"))}},
			Clusters: append(share(clusterA, 90), share(clusterB, 10)...), Retry: retryDefault, Service: "web.shop.svc.cluster.local",
		})
	}
	return &model.RouteTable{Name: "shop/web.shop.svc.cluster.local:80", Hosts: []model.VirtualHost{h}}
}

// TestManyRulesTakeLinearTime: ten times the rules take about ten times as long, where a quadratic step anywhere would
// take a hundred times. The fastest of several runs is compared, since others share the machine.
func TestManyRulesTakeLinearTime(t *testing.T) {
	fastest := func(n int) time.Duration {
		table := manyRules(n)
		best := time.Hour
		for range 5 {
			begin := time.Now()
			out, problems := Build(waypointProxy(), table)
			best = min(best, time.Since(begin))
			if len(problems) > 0 || len(out.VirtualHosts[0].Routes) != 2*n+1 {
				t.Fatalf("%d rules became %d routes, %v", n, len(out.VirtualHosts[0].Routes), problems)
			}
		}
		return best
	}
	small, large := fastest(1000), fastest(10_000)
	if large > 40*small {
		t.Errorf("1,000 rules take %s and 10,000 rules %s", small, large)
	}
	t.Logf("1,000 rules take %s and 10,000 rules %s", small, large)
}

// TestEnvoyLoadsManyRules: 10,000 rules on one host.
func TestEnvoyLoadsManyRules(t *testing.T) {
	g := golden{name: "many", table: manyRules(10_000)}
	config := bootstrap(t, []object{g.listener(t)}, nil)
	begin := time.Now()
	out, err := validate(t, config)
	t.Logf("Envoy takes %d bytes of JSON in %s", len(config), time.Since(begin))
	if err != nil {
		t.Errorf("Envoy refuses it: %v\n%s", err, out)
	}
}

func BenchmarkTable(b *testing.B) {
	for _, n := range []int{2, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table := manyRules(n)
			b.ReportAllocs()
			for b.Loop() {
				out, err := Table(waypointProxy(), table)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(proto.Size(out)), "bytes")
			}
		})
	}
}
