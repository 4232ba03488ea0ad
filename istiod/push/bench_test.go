package push_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/push/pushtest"
)

// BenchmarkEventToDelta is the time from a change until the last of N proxies has
// it, through real gRPC streams in one process. The batch delay is part of it.
func BenchmarkEventToDelta(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("streams=%d", n), func(b *testing.B) {
			w := newWorld(b, push.Config{})
			var rs []*push.Resource
			for i := range 1000 {
				rs = append(rs, pod(b, fmt.Sprintf("p%d", i), fmt.Sprintf("10.1.%d.%d", i>>8, i&255), "n1"))
			}
			w.address(rs...)
			w.cache.Synced()
			clients := make([]*pushtest.Client, n)
			for i := range clients {
				clients[i] = w.open(pushtest.Node(fmt.Sprintf("z%d", i), "n1"))
				clients[i].Subscribe(ports.TypeAddress, nil)
				for len(clients[i].Held[ports.TypeAddress]) < len(rs) {
					clients[i].Next()
				}
			}
			changes := []*push.Resource{pod(b, "p1", "10.2.0.1", "n1"), pod(b, "p1", "10.2.0.2", "n1")}
			var total time.Duration
			b.ResetTimer()
			for i := range b.N {
				start := time.Now()
				w.address(changes[i%2])
				for _, c := range clients {
					c.Next()
				}
				total += time.Since(start)
			}
			b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "ms/change")
		})
	}
}
