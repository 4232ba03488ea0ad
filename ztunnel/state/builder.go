package state

import (
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/state/pmap"
)

// indexEndpointsFrom is the size of a service from which a batch that changes it
// repeatedly keeps a table of positions instead of searching the list each time.
const indexEndpointsFrom = 64

// builder makes the next snapshot from the last one. It copies only what changes.
type builder struct {
	base *Snapshot
	node string

	workloads *pmap.Editor[string, *Workload]
	byIP      *pmap.Editor[addressKey, []*Workload]
	byName    *pmap.Editor[string, []*Workload]
	byHost    *pmap.Editor[string, *Workload]
	services  *pmap.Editor[string, *Service]
	svcByVIP  *pmap.Editor[addressKey, []*Service]
	svcByHost *pmap.Editor[string, []*Service]
	endpoints *pmap.Editor[string, *endpointSet]

	ranges        []serviceRange
	rangesOwned   bool
	owned         map[string]*ownedEndpoints // endpoint sets that this builder may change
	policyChanged bool
}

func newBuilder(base *Snapshot, node string) *builder {
	return &builder{
		base: base, node: node,
		workloads: base.workloads.Edit(), byIP: base.byIP.Edit(), byName: base.byName.Edit(), byHost: base.byHost.Edit(),
		services: base.services.Edit(), svcByVIP: base.svcByVIP.Edit(), svcByHost: base.svcByHost.Edit(),
		endpoints: base.endpoints.Edit(), ranges: base.ranges, owned: map[string]*ownedEndpoints{},
	}
}

func (b *builder) snapshot() *Snapshot {
	next := *b.base
	for key, o := range b.owned {
		if len(o.set.list) == 0 {
			b.endpoints.Delete(key)
			continue
		}
		o.set.uniform = !slices.ContainsFunc(o.set.list, func(e endpoint) bool { return e.w.Capacity != defaultCapacity })
		b.endpoints.Set(key, o.set)
	}
	next.workloads, next.byIP, next.byName, next.byHost = b.workloads.Map(), b.byIP.Map(), b.byName.Map(), b.byHost.Map()
	next.services, next.svcByVIP, next.svcByHost = b.services.Map(), b.svcByVIP.Map(), b.svcByHost.Map()
	next.endpoints, next.ranges = b.endpoints.Map(), b.ranges
	if b.policyChanged {
		next.PolicyGeneration++
	}
	return &next
}

// remove drops what goes by this name: a workload's UID or a service's key. A name
// that is not known is none of our concern: the end is the same.
func (b *builder) remove(name string) {
	if w, ok := b.workloads.Get(name); ok {
		b.dropWorkload(w, nil)
		b.workloads.Delete(name)
		return
	}
	if s, ok := b.services.Get(name); ok {
		b.dropService(s)
		b.services.Delete(name)
	}
}

func (b *builder) setWorkload(w *Workload) {
	if old, ok := b.workloads.Get(w.UID); ok {
		b.dropWorkload(old, w)
	}
	b.workloads.Set(w.UID, w)
	if !w.HostNetwork {
		for _, ip := range w.Addresses {
			k := addressKey{w.Network, ip}
			list, _ := b.byIP.Get(k)
			b.byIP.Set(k, withWorkload(list, w))
		}
	}
	if b.local(w) {
		k := w.Namespace + "/" + w.Name
		list, _ := b.byName.Get(k)
		b.byName.Set(k, withWorkload(list, w))
	}
	if w.Hostname != "" {
		b.byHost.Set(w.Namespace+"/"+w.Hostname, w)
	}
	for _, m := range w.Services {
		b.own(m.Key).add(endpoint{w, m.Ports})
	}
}

// dropWorkload takes w out of every index but the one by UID. next is what takes its
// place, or nil.
func (b *builder) dropWorkload(w, next *Workload) {
	if !w.HostNetwork {
		for _, ip := range w.Addresses {
			k := addressKey{w.Network, ip}
			list, _ := b.byIP.Get(k)
			setOrDelete(b.byIP, k, withoutWorkload(list, w))
		}
	}
	if b.local(w) {
		k := w.Namespace + "/" + w.Name
		list, _ := b.byName.Get(k)
		setOrDelete(b.byName, k, withoutWorkload(list, w))
		if next == nil || !slices.Equal(w.Policies, next.Policies) {
			b.policyChanged = true
		}
	}
	if w.Hostname != "" {
		k := w.Namespace + "/" + w.Hostname
		if now, _ := b.byHost.Get(k); now == w {
			b.byHost.Delete(k)
		}
	}
	for _, m := range w.Services {
		b.own(m.Key).remove(w)
	}
}

func (b *builder) local(w *Workload) bool { return b.node == "" || w.Node == b.node }

func (b *builder) setService(s *Service) {
	if old, ok := b.services.Get(s.Key()); ok {
		b.dropService(old)
	}
	b.services.Set(s.Key(), s)
	for _, vip := range s.VIPs {
		if !vip.Prefix.IsSingleIP() {
			b.ownRanges()
			b.ranges = append(b.ranges, serviceRange{vip, s})
			continue
		}
		k := addressKey{vip.Network, vip.Prefix.Addr()}
		list, _ := b.svcByVIP.Get(k)
		b.svcByVIP.Set(k, withService(list, s))
	}
	list, _ := b.svcByHost.Get(s.Hostname)
	b.svcByHost.Set(s.Hostname, withService(list, s))
}

// dropService takes s out of every index but the one by key. Its endpoints stay:
// they belong to the workloads.
func (b *builder) dropService(s *Service) {
	for _, vip := range s.VIPs {
		if !vip.Prefix.IsSingleIP() {
			b.ownRanges()
			b.ranges = slices.DeleteFunc(b.ranges, func(r serviceRange) bool { return r.service == s })
			continue
		}
		k := addressKey{vip.Network, vip.Prefix.Addr()}
		list, _ := b.svcByVIP.Get(k)
		setOrDelete(b.svcByVIP, k, withoutService(list, s))
	}
	list, _ := b.svcByHost.Get(s.Hostname)
	setOrDelete(b.svcByHost, s.Hostname, withoutService(list, s))
}

func (b *builder) ownRanges() {
	if !b.rangesOwned {
		b.ranges, b.rangesOwned = slices.Clone(b.ranges), true
	}
}

// ownedEndpoints is an endpoint set being changed.
type ownedEndpoints struct {
	set *endpointSet
	at  map[*Workload]int // positions, once that pays
	ops int
}

func (b *builder) own(key string) *ownedEndpoints {
	o := b.owned[key]
	if o == nil {
		o = &ownedEndpoints{set: &endpointSet{}}
		if old, ok := b.endpoints.Get(key); ok {
			o.set.list = slices.Clone(old.list)
		}
		b.owned[key] = o
	}
	return o
}

func (o *ownedEndpoints) add(e endpoint) {
	if o.at != nil {
		o.at[e.w] = len(o.set.list)
	}
	o.set.list = append(o.set.list, e)
}

// remove swaps the last endpoint into the place of w's: the order means nothing.
func (o *ownedEndpoints) remove(w *Workload) {
	i := o.find(w)
	if i < 0 {
		return
	}
	last := len(o.set.list) - 1
	o.set.list[i] = o.set.list[last]
	if o.at != nil {
		o.at[o.set.list[i].w] = i
		delete(o.at, w)
	}
	o.set.list[last] = endpoint{}
	o.set.list = o.set.list[:last]
}

func (o *ownedEndpoints) find(w *Workload) int {
	if o.ops++; o.at == nil && o.ops > 1 && len(o.set.list) >= indexEndpointsFrom {
		o.at = make(map[*Workload]int, len(o.set.list))
		for i := range o.set.list {
			o.at[o.set.list[i].w] = i
		}
	}
	if o.at != nil {
		if i, ok := o.at[w]; ok {
			return i
		}
		return -1
	}
	return slices.IndexFunc(o.set.list, func(e endpoint) bool { return e.w == w })
}

// setOrDelete stores a list, or nothing if it is empty.
func setOrDelete[K comparable, T any](e *pmap.Editor[K, []T], k K, list []T) {
	if len(list) == 0 {
		e.Delete(k)
		return
	}
	e.Set(k, list)
}

// The four below never change the list they are given: snapshots share it.

// withWorkload keeps the list in order of trust: a pod before what only claims the
// pod's address, one in the mesh before one that is not, then by UID.
func withWorkload(list []*Workload, w *Workload) []*Workload {
	i, _ := slices.BinarySearchFunc(list, w, compareWorkloads)
	out := make([]*Workload, 0, len(list)+1)
	return append(append(append(out, list[:i]...), w), list[i:]...)
}

func compareWorkloads(a, b *Workload) int {
	rank := func(w *Workload) int {
		n := 0
		if !strings.Contains(w.UID, "//Pod/") {
			n += 2
		}
		if w.Protocol != ProtocolHBONE {
			n++
		}
		return n
	}
	if d := rank(a) - rank(b); d != 0 {
		return d
	}
	return strings.Compare(a.UID, b.UID)
}

func withoutWorkload(list []*Workload, w *Workload) []*Workload {
	return slices.DeleteFunc(slices.Clone(list), func(x *Workload) bool { return x == w })
}

func withService(list []*Service, s *Service) []*Service {
	i, _ := slices.BinarySearchFunc(list, s, func(a, b *Service) int { return strings.Compare(a.Key(), b.Key()) })
	out := make([]*Service, 0, len(list)+1)
	return append(append(append(out, list[:i]...), s), list[i:]...)
}

func withoutService(list []*Service, s *Service) []*Service {
	return slices.DeleteFunc(slices.Clone(list), func(x *Service) bool { return x == s })
}
