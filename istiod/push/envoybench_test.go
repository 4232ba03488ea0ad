package push_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/istiod/push"
	"github.com/ambit-mesh/ambit/istiod/push/pushtest"
)

// BenchmarkEnvoyChange is what one change costs when it goes to ten proxies that
// hold 1,000 services each (cluster, endpoints, scope and table): the CPU time of
// the whole process, clients included, and the time until the last proxy has it.
func BenchmarkEnvoyChange(b *testing.B) {
	const services, streams = 1000, 10
	for _, kind := range []string{"endpoints", "route", "cluster+route"} {
		b.Run(kind, func(b *testing.B) {
			e := newEnvoys(b, noGrace())
			var rs []*push.Resource
			var names, tables []string
			for i := range services {
				name := fmt.Sprintf("outbound|8080||service-%d.namespace.svc.cluster.local", i)
				table := fmt.Sprintf("namespace/service-%d.namespace.svc.cluster.local:8080", i)
				names, tables = append(names, name), append(tables, table)
				rs = append(rs, edsCluster(b, name, 0), endpoints(b, name, "10.0.0.1:8080"), scopeOf(b, table, table), routeTo(b, table, name))
			}
			e.cache.Apply(upsert(rs...))
			e.cache.Synced()
			clients := make([]*pushtest.Client, streams)
			for i := range clients {
				clients[i] = e.open()
				fill(clients[i], names, tables)
			}
			change := func(i int) (apply []*push.Resource, responses int) {
				switch kind {
				case "endpoints":
					return []*push.Resource{endpoints(b, names[7], fmt.Sprintf("10.0.0.%d:8080", 2+i%2))}, 1
				case "route":
					return []*push.Resource{routeTo(b, tables[7], names[8+i%2])}, 1
				default: // the cluster, its endpoints again, and the table
					return []*push.Resource{edsCluster(b, names[7], 1+i%2), routeTo(b, tables[7], names[8+i%2])}, 3
				}
			}
			var wall time.Duration
			b.ResetTimer()
			cpu := processTime(b)
			for i := range b.N {
				rs, responses := change(i)
				start := time.Now()
				e.cache.Apply(upsert(rs...))
				for range responses {
					for _, c := range clients {
						c.Next()
					}
				}
				wall += time.Since(start)
			}
			b.ReportMetric(float64((processTime(b)-cpu).Microseconds())/1000/float64(b.N), "cpu-ms/change")
			b.ReportMetric(float64(wall.Microseconds())/1000/float64(b.N), "ms/change")
		})
	}
}

// fill subscribes as Envoy does and takes everything.
func fill(c *pushtest.Client, names, tables []string) {
	c.Subscribe(push.TypeCluster, nil)
	takeAll(c, push.TypeCluster, len(names))
	c.Names(push.TypeEndpoints, names, nil, nil)
	takeAll(c, push.TypeEndpoints, len(names))
	c.Subscribe(push.TypeScope, nil)
	takeAll(c, push.TypeScope, len(tables))
	c.Names(push.TypeRoute, tables, nil, nil)
	takeAll(c, push.TypeRoute, len(tables))
}

func takeAll(c *pushtest.Client, typeURL string, n int) {
	for len(c.Held[typeURL]) < n {
		c.Next()
	}
}

// processTime is the CPU time that the process has used.
func processTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
