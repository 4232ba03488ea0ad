package pmap

import (
	"maps"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func contents[K comparable, V any](m Map[K, V]) map[K]V { return maps.Collect(m.All()) }

func TestMap(t *testing.T) {
	const n = 5000
	m := New[string, int]()
	e := m.Edit()
	want := map[string]int{}
	for i := range n {
		e.Set(strconv.Itoa(i), i)
		want[strconv.Itoa(i)] = i
	}
	full := e.Map()
	if diff := cmp.Diff(want, contents(full)); diff != "" || full.Len() != n {
		t.Fatalf("after %d sets: len %d, content (-want +got):\n%s", n, full.Len(), diff)
	}
	if m.Len() != 0 || len(contents(m)) != 0 {
		t.Error("the empty version changed")
	}
	e.Delete("nobody")
	for i := range n {
		e.Delete(strconv.Itoa(i))
	}
	if empty := e.Map(); empty.Len() != 0 || len(contents(empty)) != 0 {
		t.Errorf("after deleting all: %v", contents(empty))
	}
	if diff := cmp.Diff(want, contents(full)); diff != "" {
		t.Errorf("an older version changed (-want +got):\n%s", diff)
	}
}

func TestAllStops(t *testing.T) {
	e := New[int, int]().Edit()
	for i := range 100 {
		e.Set(i, i)
	}
	seen := 0
	for range e.Map().All() {
		if seen++; seen == 7 {
			break
		}
	}
	if seen != 7 {
		t.Errorf("visited %d, want 7", seen)
	}
}

// FuzzAgainstMap runs random edits on several versions at once, with hashes that
// collide wholly or in part, and compares each version with a plain map.
func FuzzAgainstMap(f *testing.F) {
	f.Add(uint8(0), []byte("set some, delete some"))
	f.Add(uint8(1), []byte{0, 1, 2, 3, 128, 129, 130, 0, 0, 1})
	f.Add(uint8(2), []byte{0, 32, 64, 96, 160, 192, 224, 32})
	f.Fuzz(func(t *testing.T, mode uint8, ops []byte) {
		hash := []func(byte) uint64{
			func(k byte) uint64 { return uint64(k) * 0x9e3779b97f4a7c15 },
			func(byte) uint64 { return 42 },
			func(k byte) uint64 { return uint64(k&3) << 60 },
			func(k byte) uint64 { return uint64(k) << 30 },
		}[mode%4]
		e := newWithHash[byte, int](hash).Edit()
		now := map[byte]int{}
		type version struct {
			m    Map[byte, int]
			want map[byte]int
		}
		var versions []version
		for i, op := range ops {
			k := op & 0x3f
			switch {
			case op >= 0xc0:
				versions = append(versions, version{e.Map(), maps.Clone(now)})
			case op&0x40 != 0:
				e.Delete(k)
				delete(now, k)
			default:
				e.Set(k, i)
				now[k] = i
			}
			got, ok := e.Get(k)
			if want, there := now[k]; ok != there || got != want {
				t.Fatalf("step %d: Get(%d) = %d, %v; want %d, %v", i, k, got, ok, want, there)
			}
		}
		versions = append(versions, version{e.Map(), now})
		for i, v := range versions {
			if diff := cmp.Diff(v.want, contents(v.m)); diff != "" || v.m.Len() != len(v.want) {
				t.Fatalf("version %d: len %d (-want +got):\n%s", i, v.m.Len(), diff)
			}
			for k := range byte(64) {
				got, ok := v.m.Get(k)
				want, there := v.want[k]
				if ok != there || got != want {
					t.Fatalf("version %d: Get(%d) = %d, %v; want %d, %v", i, k, got, ok, want, there)
				}
			}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	e := New[string, int]().Edit()
	keys := make([]string, 10_000)
	for i := range keys {
		keys[i] = "cluster//Pod/namespace/pod-" + strconv.Itoa(i)
		e.Set(keys[i], i)
	}
	m := e.Map()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, ok := m.Get(keys[i%len(keys)]); !ok {
			b.Fatal("missing")
		}
		i++
	}
}

func BenchmarkSetOne(b *testing.B) {
	e := New[string, int]().Edit()
	keys := make([]string, 10_000)
	for i := range keys {
		keys[i] = "cluster//Pod/namespace/pod-" + strconv.Itoa(i)
		e.Set(keys[i], i)
	}
	m := e.Map()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		next := m.Edit()
		next.Set(keys[i%len(keys)], i)
		m = next.Map()
		i++
	}
}
