// Package pmap is a persistent hash map: a new version shares all but a few nodes
// with the old one, so that ztunnel/state can publish a snapshot of ten thousand
// workloads after each pod event for the price of a few hundred bytes.
//
// It is a hash array mapped trie of five bits per level with entries inside the
// nodes (Steindorff and Vinju's CHAMP layout). A Map is immutable and safe for
// concurrent use; an Editor makes the next version in place where it can and belongs
// to one goroutine. It keeps no order and does not shrink nodes to canonical form.
package pmap

import (
	"hash/maphash"
	"iter"
	"math/bits"
)

const (
	levelBits = 5
	levelMask = 1<<levelBits - 1
	// maxShift is where the 64 bits of the hash are used up; nodes there keep plain
	// lists of entries.
	maxShift = 65
)

// Map is one version. The zero Map is not usable; see New.
type Map[K comparable, V any] struct {
	root *node[K, V]
	size int
	hash func(K) uint64
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

// node holds the entries whose path ends here and the children of longer paths;
// the bitmaps say which of the 32 slots each takes, in the order of the slots. A
// node at maxShift ignores the bitmaps.
type node[K comparable, V any] struct {
	owner    *byte // of the Editor that may change it in place, until that calls Map
	entryMap uint32
	childMap uint32
	entries  []entry[K, V]
	children []*node[K, V]
}

// New makes an empty Map with a hash seed of its own.
func New[K comparable, V any]() Map[K, V] {
	seed := maphash.MakeSeed()
	return newWithHash[K, V](func(k K) uint64 { return maphash.Comparable(seed, k) })
}

func newWithHash[K comparable, V any](hash func(K) uint64) Map[K, V] {
	return Map[K, V]{root: &node[K, V]{}, hash: hash}
}

// Len is the number of keys.
func (m Map[K, V]) Len() int { return m.size }

// Get finds a key.
func (m Map[K, V]) Get(k K) (V, bool) {
	n, h := m.root, m.hash(k)
	for shift := uint(0); ; shift += levelBits {
		if shift >= maxShift {
			if i := n.find(k); i >= 0 {
				return n.entries[i].value, true
			}
			break
		}
		bit := uint32(1) << (h >> shift & levelMask)
		if n.entryMap&bit != 0 {
			if e := &n.entries[index(n.entryMap, bit)]; e.key == k {
				return e.value, true
			}
			break
		}
		if n.childMap&bit == 0 {
			break
		}
		n = n.children[index(n.childMap, bit)]
	}
	var zero V
	return zero, false
}

// All visits every key in no particular order.
func (m Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { m.root.visit(yield) }
}

func (n *node[K, V]) visit(yield func(K, V) bool) bool {
	for i := range n.entries {
		if !yield(n.entries[i].key, n.entries[i].value) {
			return false
		}
	}
	for _, c := range n.children {
		if !c.visit(yield) {
			return false
		}
	}
	return true
}

// index is the position in the packed slice of the slot that bit stands for.
func index(bitmap, bit uint32) int { return bits.OnesCount32(bitmap & (bit - 1)) }

func (n *node[K, V]) find(k K) int {
	for i := range n.entries {
		if n.entries[i].key == k {
			return i
		}
	}
	return -1
}

// Editor makes the next version of a Map.
type Editor[K comparable, V any] struct {
	m     Map[K, V]
	owner *byte
}

// Edit starts from m, which does not change.
func (m Map[K, V]) Edit() *Editor[K, V] { return &Editor[K, V]{m: m, owner: new(byte)} }

// Map ends the edit and returns the new version. Further calls of Set or Delete
// start the next one.
func (e *Editor[K, V]) Map() Map[K, V] {
	e.owner = new(byte)
	return e.m
}

// Get finds a key in what has been edited so far.
func (e *Editor[K, V]) Get(k K) (V, bool) { return e.m.Get(k) }

// Set adds or replaces a key.
func (e *Editor[K, V]) Set(k K, v V) {
	root, added := e.set(e.m.root, 0, e.m.hash(k), k, v)
	e.m.root = root
	if added {
		e.m.size++
	}
}

// Delete removes a key if it is there.
func (e *Editor[K, V]) Delete(k K) {
	root, removed := e.remove(e.m.root, 0, e.m.hash(k), k)
	if removed {
		e.m.root = root
		e.m.size--
	}
}

// own returns n if the editor may change it, else a copy that it may.
func (e *Editor[K, V]) own(n *node[K, V]) *node[K, V] {
	if n.owner == e.owner {
		return n
	}
	return &node[K, V]{
		owner: e.owner, entryMap: n.entryMap, childMap: n.childMap,
		entries: append([]entry[K, V](nil), n.entries...), children: append([]*node[K, V](nil), n.children...),
	}
}

func (e *Editor[K, V]) set(n *node[K, V], shift uint, h uint64, k K, v V) (*node[K, V], bool) {
	n = e.own(n)
	if shift >= maxShift {
		if i := n.find(k); i >= 0 {
			n.entries[i].value = v
			return n, false
		}
		n.entries = append(n.entries, entry[K, V]{k, v})
		return n, true
	}
	bit := uint32(1) << (h >> shift & levelMask)
	switch {
	case n.childMap&bit != 0:
		i := index(n.childMap, bit)
		child, added := e.set(n.children[i], shift+levelBits, h, k, v)
		n.children[i] = child
		return n, added
	case n.entryMap&bit == 0:
		n.entries = insert(n.entries, index(n.entryMap, bit), entry[K, V]{k, v})
		n.entryMap |= bit
		return n, true
	}
	i := index(n.entryMap, bit)
	if n.entries[i].key == k {
		n.entries[i].value = v
		return n, false
	}
	// Two keys in one slot: both move one level down.
	old := n.entries[i]
	n.entries = cut(n.entries, i)
	n.entryMap &^= bit
	child := &node[K, V]{owner: e.owner}
	child, _ = e.set(child, shift+levelBits, e.m.hash(old.key), old.key, old.value)
	child, _ = e.set(child, shift+levelBits, h, k, v)
	n.children = insert(n.children, index(n.childMap, bit), child)
	n.childMap |= bit
	return n, true
}

func (e *Editor[K, V]) remove(n *node[K, V], shift uint, h uint64, k K) (*node[K, V], bool) {
	if shift >= maxShift {
		i := n.find(k)
		if i < 0 {
			return n, false
		}
		n = e.own(n)
		n.entries = cut(n.entries, i)
		return n, true
	}
	bit := uint32(1) << (h >> shift & levelMask)
	if n.entryMap&bit != 0 {
		i := index(n.entryMap, bit)
		if n.entries[i].key != k {
			return n, false
		}
		n = e.own(n)
		n.entries = cut(n.entries, i)
		n.entryMap &^= bit
		return n, true
	}
	if n.childMap&bit == 0 {
		return n, false
	}
	i := index(n.childMap, bit)
	child, removed := e.remove(n.children[i], shift+levelBits, h, k)
	if !removed {
		return n, false
	}
	n = e.own(n)
	switch {
	case len(child.children) == 0 && len(child.entries) == 0:
		n.children = cut(n.children, i)
		n.childMap &^= bit
	case len(child.children) == 0 && len(child.entries) == 1:
		// A single entry needs no node of its own.
		n.children = cut(n.children, i)
		n.childMap &^= bit
		n.entries = insert(n.entries, index(n.entryMap, bit), child.entries[0])
		n.entryMap |= bit
	default:
		n.children[i] = child
	}
	return n, true
}

// insert and cut are like those of package slices, but leave no spare room behind:
// nodes live long and are many.
func insert[T any](s []T, i int, v T) []T {
	out := make([]T, len(s)+1)
	copy(out, s[:i])
	out[i] = v
	copy(out[i+1:], s[i:])
	return out
}

func cut[T any](s []T, i int) []T {
	if len(s) == 1 {
		return nil
	}
	out := make([]T, len(s)-1)
	copy(out, s[:i])
	copy(out[i:], s[i+1:])
	return out
}
