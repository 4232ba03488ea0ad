package push_test

import (
	"fmt"
	"testing"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/push"
)

// Under endless churn of names the log must not grow, or istiod would end after days.
func TestLogStaysBoundedUnderChurn(t *testing.T) {
	c := push.NewCache(push.Types()...)
	c.Synced()
	const alive = 100
	for i := range 50_000 {
		change := push.Change{Type: ports.TypeAddress, Upsert: []*push.Resource{pod(t, fmt.Sprintf("p%d", i), "10.0.0.1", "n1")}}
		if i >= alive {
			change.Removed = []string{fmt.Sprintf("c//Pod/ns/p%d", i-alive)}
		}
		c.Apply([]push.Change{change})
	}
	if n := push.LogLen(c, ports.TypeAddress); n > 2048 {
		t.Errorf("log of %d entries for %d live names", n, alive)
	}
	if got := len(c.All(ports.TypeAddress)); got != alive {
		t.Errorf("%d live names, want %d", got, alive)
	}
	if got := len(c.Expand(ports.TypeAddress, "/10.0.0.1")); got != alive {
		t.Errorf("address stands for %d resources, want %d", got, alive)
	}
}

func BenchmarkApply(b *testing.B) {
	c := push.NewCache(push.Types()...)
	c.Synced()
	for i := range 10_000 {
		c.Apply([]push.Change{{Type: ports.TypeAddress, Upsert: []*push.Resource{pod(b, fmt.Sprintf("p%d", i), "10.0.0.1", "n1")}}})
	}
	r := []*push.Resource{pod(b, "p5000", "10.0.0.2", "n1"), pod(b, "p5000", "10.0.0.3", "n1")}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		c.Apply([]push.Change{{Type: ports.TypeAddress, Upsert: r[i%2 : i%2+1]}})
	}
}
