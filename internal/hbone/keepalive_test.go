package hbone

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestKeepalive(t *testing.T) {
	type event struct {
		at   time.Duration
		what string
	}
	run := func(t *testing.T, script func(k *keepalive, rx *atomic.Uint64), want []event) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			var mu sync.Mutex
			var got []event
			add := func(what string) func() {
				return func() {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, event{time.Since(begin), what})
				}
			}
			var rx atomic.Uint64
			k := &keepalive{
				interval: 10 * time.Second, timeout: 20 * time.Second, received: rx.Load,
				ping: add("ping"), dead: add("dead"),
			}
			k.start()
			script(k, &rx)
			k.stop()
			synctest.Wait()
			if len(got) != len(want) {
				t.Fatalf("got %v, want %v", got, want)
			}
			for i := range got {
				if got[i] != want[i] {
					t.Errorf("event %d: got %v, want %v", i, got[i], want[i])
				}
			}
		})
	}
	wait := func(d time.Duration) {
		<-time.NewTimer(d).C
		synctest.Wait()
	}
	const s = time.Second
	t.Run("answered", func(t *testing.T) {
		run(t, func(k *keepalive, _ *atomic.Uint64) {
			for range 3 {
				wait(10*s + s)
				k.acked()
			}
		}, []event{{10 * s, "ping"}, {21 * s, "ping"}, {32 * s, "ping"}})
	})
	t.Run("silent", func(t *testing.T) {
		run(t, func(*keepalive, *atomic.Uint64) { wait(100 * s) }, []event{{10 * s, "ping"}, {30 * s, "dead"}})
	})
	t.Run("bytes count as life", func(t *testing.T) {
		run(t, func(_ *keepalive, rx *atomic.Uint64) {
			wait(15 * s)
			rx.Store(1)
			wait(40 * s)
		}, []event{{10 * s, "ping"}, {40 * s, "ping"}})
	})
	t.Run("stopped", func(t *testing.T) {
		run(t, func(k *keepalive, _ *atomic.Uint64) {
			wait(11 * s)
			k.stop()
			wait(100 * s)
			k.start()
			wait(11 * s)
		}, []event{{10 * s, "ping"}, {121 * s, "ping"}})
	})
}
