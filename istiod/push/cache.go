package push

import (
	"context"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// batchDelay is how long a change waits for others that belong to it: a rollout touches several
	// objects within milliseconds. Longer would only be latency; there is no other debounce.
	batchDelay = 5 * time.Millisecond
	// minCompact is the length of a log below which it is not worth compacting, in entries.
	minCompact = 1024
)

// Change is what one event did to the resources of one type.
type Change struct {
	Type    string
	Upsert  []*Resource
	Removed []string
}

// Cache holds the newest state of every type and the order in which names last
// changed. One writer applies changes, every stream reads from a position of its
// own; what a slow stream has not read yet costs nothing, since a name is in the
// log once, with its newest content.
type Cache struct {
	mu sync.RWMutex
	// seq numbers changes over all types, so that one number is a consistent cut through them.
	seq       uint64
	published uint64
	types     map[string]*collection
	readers   map[*reader]struct{}
	wake      chan struct{}
	synced    chan struct{}
	// changed tells whoever publishes that there is something to publish.
	changed func()
	dirty   chan struct{}
}

// collection is the log of one type, ordered by seq.
type collection struct {
	log  []entry
	live map[string]uint64
	// compactAt is the length at which the log is next compacted; it doubles with what stays, so that
	// the work per change is constant.
	compactAt int
	index     map[string]*bucket
}

// entry is the newest change of one name; dead once a newer one exists, a tombstone if res is nil.
type entry struct {
	seq  uint64
	at   time.Time
	name string
	res  *Resource
	dead bool
}

// bucket is a small set: nearly every name stands for one resource.
type bucket struct {
	one  *Resource
	many map[string]*Resource
}

// reader is a stream's position in one type's log.
type reader struct {
	typeURL string
	cursor  atomic.Uint64
}

// NewCache returns an empty cache that publishes nothing before Synced.
func NewCache(typeURLs ...string) *Cache {
	c := &Cache{
		types:   map[string]*collection{},
		readers: map[*reader]struct{}{},
		wake:    make(chan struct{}),
		synced:  make(chan struct{}),
		dirty:   make(chan struct{}, 1),
	}
	c.changed = func() { poke(c.dirty) }
	for _, t := range typeURLs {
		c.types[t] = &collection{live: map[string]uint64{}, compactAt: minCompact, index: map[string]*bucket{}}
	}
	return c
}

// Apply records changes that belong together: a stream sees all of them or none.
func (c *Cache) Apply(changes []Change) {
	now := time.Now()
	c.mu.Lock()
	for _, ch := range changes {
		col := c.types[ch.Type]
		for _, r := range ch.Upsert {
			c.seq++
			col.put(entry{seq: c.seq, at: now, name: r.Name, res: r})
		}
		for _, name := range ch.Removed {
			if col.get(name) == nil {
				continue
			}
			c.seq++
			col.put(entry{seq: c.seq, at: now, name: name})
		}
		c.compact(ch.Type, col)
	}
	c.mu.Unlock()
	c.changed()
}

// poke wakes whoever reads from ch, once for any number of calls.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Synced says that the state is complete, and may be called more than once.
func (c *Cache) Synced() {
	c.mu.Lock()
	select {
	case <-c.synced:
	default:
		c.published = c.seq
		close(c.synced)
	}
	c.mu.Unlock()
}

// Ready is closed once the state is complete.
func (c *Cache) Ready() <-chan struct{} { return c.synced }

// Run publishes changes in batches until ctx ends.
func (c *Cache) Run(ctx context.Context) error { return runBatches(ctx, c.dirty, c.publish) }

// runBatches calls publish a batch delay after each wake-up, until ctx ends.
func runBatches(ctx context.Context, dirty <-chan struct{}, publish func()) error {
	timer := time.NewTimer(batchDelay)
	defer timer.Stop()
	timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-dirty:
		}
		timer.Reset(batchDelay)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		publish()
	}
}

// publish moves the cut to the newest change and wakes every stream.
func (c *Cache) publish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.synced:
	default:
		return
	}
	c.published = c.seq
	close(c.wake)
	c.wake = make(chan struct{})
}

// head returns the published cut and a channel that is closed at the next one.
func (c *Cache) head() (uint64, <-chan struct{}) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.published, c.wake
}

// open registers a reader of one type, which starts at the beginning.
func (c *Cache) open(typeURL string) *reader {
	r := &reader{typeURL: typeURL}
	c.mu.Lock()
	c.readers[r] = struct{}{}
	c.mu.Unlock()
	return r
}

func (c *Cache) close(r *reader) {
	c.mu.Lock()
	delete(c.readers, r)
	c.mu.Unlock()
}

// tombstone is a name that was removed, and when. What a proxy still holds of it
// may be as old as from.
type tombstone struct {
	name      string
	seq, from uint64
}

// page is what a reader got of the log in one go.
type page struct {
	resources []*Resource
	removed   []tombstone
	// oldest is when the first change of the page happened.
	oldest time.Time
	// next is the reader's new position; more tells whether the cut is still ahead of it.
	next uint64
	more bool
}

// read returns entries after from and up to the cut to that want accepts, no more
// than maxBytes of them (but at least one).
func (c *Cache) read(typeURL string, from, to uint64, maxBytes int, want func(*entry) bool) page {
	c.mu.RLock()
	defer c.mu.RUnlock()
	col := c.types[typeURL]
	p := page{next: to}
	size := 0
	for i := col.after(from); i < len(col.log) && col.log[i].seq <= to; i++ {
		e := &col.log[i]
		if e.dead || !want(e) {
			continue
		}
		n := len(e.name)
		if e.res != nil {
			n = e.res.size
		}
		if size > 0 && size+n > maxBytes {
			p.next, p.more = e.seq-1, true
			return p
		}
		size += n
		if p.oldest.IsZero() {
			p.oldest = e.at
		}
		if e.res != nil {
			p.resources = append(p.resources, e.res)
		} else {
			p.removed = append(p.removed, tombstone{name: e.name, seq: e.seq})
		}
	}
	return p
}

// collect passes what changed after each reader's position, in the newest form, to
// change, then a look-up to done, and moves the readers to the newest
// change, which it returns. No change can come in between: what is seen of all
// types fits together.
func (c *Cache) collect(readers []*reader, change func(i int, e *entry), done func(i int, get func(typeURL, name string) *Resource)) uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	get := func(typeURL, name string) *Resource { return c.types[typeURL].get(name) }
	for i, r := range readers {
		col := c.types[r.typeURL]
		for j := col.after(r.cursor.Load()); j < len(col.log); j++ {
			if e := &col.log[j]; !e.dead {
				change(i, e)
			}
		}
		done(i, get)
		r.cursor.Store(c.seq)
	}
	return c.seq
}

// Get returns the current resource of a name, or nil.
func (c *Cache) Get(typeURL, name string) *Resource {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.types[typeURL].get(name)
}

// find is Get that also tells when the resource last changed.
func (c *Cache) find(typeURL, name string) (*Resource, uint64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	col := c.types[typeURL]
	return col.get(name), col.live[name]
}

// gone tells whether a removed name has been absent ever since.
func (c *Cache) gone(typeURL string, t tombstone) bool {
	r, seq := c.find(typeURL, t.name)
	return r == nil && seq <= t.seq
}

// Expand returns all that a name stands for, ordered by name: what has the name,
// alias or key, and what has the name of any of those as a key, as the endpoints
// of a service that was asked for by address.
func (c *Cache) Expand(typeURL, name string) []*Resource {
	c.mu.RLock()
	defer c.mu.RUnlock()
	col := c.types[typeURL]
	found := map[string]*Resource{}
	col.index[name].each(func(r *Resource) {
		found[r.Name] = r
		if r.Name != name {
			col.index[r.Name].each(func(r *Resource) { found[r.Name] = r })
		}
	})
	out := make([]*Resource, 0, len(found))
	for _, n := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[n])
	}
	return out
}

func (b *bucket) each(f func(*Resource)) {
	if b == nil {
		return
	}
	if b.one != nil {
		f(b.one)
	}
	for _, r := range b.many {
		f(r)
	}
}

// All returns every resource of a type, ordered by name.
func (c *Cache) All(typeURL string) []*Resource {
	c.mu.RLock()
	defer c.mu.RUnlock()
	col := c.types[typeURL]
	if col == nil {
		return nil
	}
	out := make([]*Resource, 0, len(col.live))
	for i := range col.log {
		if r := col.log[i].res; r != nil && !col.log[i].dead {
			out = append(out, r)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// missing returns those of the held names that no longer exist, ordered, as if removed at the cut.
func (c *Cache) missing(typeURL string, held map[string]string, cut uint64) []tombstone {
	c.mu.RLock()
	defer c.mu.RUnlock()
	col := c.types[typeURL]
	var out []tombstone
	for name := range held {
		if col.get(name) == nil {
			out = append(out, tombstone{name: name, seq: cut})
		}
	}
	slices.SortFunc(out, func(a, b tombstone) int { return strings.Compare(a.name, b.name) })
	return out
}

// after is the position of the first entry behind seq.
func (col *collection) after(seq uint64) int {
	return sort.Search(len(col.log), func(i int) bool { return col.log[i].seq > seq })
}

func (col *collection) get(name string) *Resource {
	seq, ok := col.live[name]
	if !ok {
		return nil
	}
	return col.log[col.after(seq-1)].res
}

// put appends e as the newest entry of its name.
func (col *collection) put(e entry) {
	if seq, ok := col.live[e.name]; ok {
		old := &col.log[col.after(seq-1)]
		if old.res != nil {
			col.unindex(old.res)
		}
		*old = entry{seq: seq, dead: true}
	}
	col.live[e.name] = e.seq
	col.log = append(col.log, e)
	if e.res != nil {
		col.indexAll(e.res)
	}
}

// compact drops replaced entries, and tombstones that every reader has passed.
func (c *Cache) compact(typeURL string, col *collection) {
	if len(col.log) < col.compactAt {
		return
	}
	passed := c.seq
	for r := range c.readers {
		if r.typeURL == typeURL {
			passed = min(passed, r.cursor.Load())
		}
	}
	kept := make([]entry, 0, len(col.live))
	for _, e := range col.log {
		switch {
		case e.dead:
		case e.res == nil && e.seq <= passed:
			delete(col.live, e.name)
		default:
			kept = append(kept, e)
		}
	}
	col.log = kept
	col.compactAt = max(minCompact, 2*len(kept))
}

func (col *collection) indexAll(r *Resource) {
	r.anyName(func(name string) bool {
		b := col.index[name]
		switch {
		case b == nil:
			col.index[name] = &bucket{one: r}
		case b.many == nil:
			b.many = map[string]*Resource{b.one.Name: b.one, r.Name: r}
			b.one = nil
		default:
			b.many[r.Name] = r
		}
		return false
	})
}

func (col *collection) unindex(r *Resource) {
	r.anyName(func(name string) bool {
		b := col.index[name]
		switch {
		case b == nil:
		case b.many == nil:
			if b.one == r {
				delete(col.index, name)
			}
		case b.many[r.Name] == r:
			delete(b.many, r.Name)
			if len(b.many) == 0 {
				delete(col.index, name)
			}
		}
		return false
	})
}
