package layer7

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/push"
)

// A rule that cannot be rendered is named in the log, among the problems and on its proxy's Gateway, and leaves the rest
// of its table to the proxy.
func TestRuleThatCannotBeRendered(t *testing.T) {
	w := newWorld(t)
	var log bytes.Buffer
	w.engine.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	w.feed(common(t))
	w.feed([]byte(service(1, "/a")))
	w.synced()
	const table = "shop/s1.shop.svc.cluster.local:80"
	condition := func() model.Condition {
		t.Helper()
		w.engine.Flush()
		for _, c := range w.told.statuses["Gateway shop/waypoint"].Conditions {
			if c.Type == conditionConfig {
				return c
			}
		}
		return model.Condition{}
	}
	if c := condition(); c != (model.Condition{}) {
		t.Fatalf("before: %+v", c)
	}
	cache := w.caches.Get(waypointKey)
	before := cache.Get(push.TypeRoute, table).Version
	w.render.flaw[table] = errors.New(`write rule "shop/s1" of host "web": too odd`)
	w.feed([]byte(route(1, "/b")))
	if cache.Get(push.TypeRoute, table).Version == before {
		t.Error("the rest of the table did not reach the proxy")
	}
	const want = `cannot be written for the proxy: Service/shop/s1: write rule "shop/s1" of host "web": too odd`
	if c := condition(); c.OK || c.Reason != "NotRendered" || c.Message != want {
		t.Errorf("condition %+v", c)
	}
	if p := w.engine.Problems(); len(p) != 1 || !strings.Contains(p[0].Reason, "too odd") || p[0].LastGood {
		t.Errorf("problems %+v", p)
	}
	w.feed([]byte(route(1, "/c")))
	if n := strings.Count(log.String(), "too odd"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, log.String())
	}
	delete(w.render.flaw, table)
	w.feed([]byte(route(1, "/d")))
	if c, p := condition(), w.engine.Problems(); c != (model.Condition{}) || len(p) != 0 {
		t.Errorf("after it was mended: %+v, %+v", c, p)
	}
}
