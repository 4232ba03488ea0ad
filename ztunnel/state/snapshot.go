package state

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/ztunnel/state/pmap"
)

// Snapshot is an immutable view of the mesh.
type Snapshot struct {
	// Generation grows with each snapshot.
	Generation uint64
	// PolicyGeneration grows whenever a verdict may have changed for a connection to
	// a workload of this node: policies changed, or which of them a workload names.
	PolicyGeneration uint64

	superseded chan struct{}

	workloads pmap.Map[string, *Workload]       // by UID
	byIP      pmap.Map[addressKey, []*Workload] // best first
	byName    pmap.Map[string, []*Workload]     // namespace/name, this node's only
	byHost    pmap.Map[string, *Workload]       // namespace/hostname
	services  pmap.Map[string, *Service]        // namespace/hostname
	svcByVIP  pmap.Map[addressKey, []*Service]  // single addresses
	svcByHost pmap.Map[string, []*Service]      // all namespaces
	endpoints pmap.Map[string, *endpointSet]    // by service key, whether or not the service is known
	ranges    []serviceRange                    // VIPs that are ranges; few
	policies  policies
}

type addressKey struct {
	network string
	ip      netip.Addr
}

type serviceRange struct {
	vip     NetworkPrefix
	service *Service
}

// endpointSet is the endpoints of one service.
type endpointSet struct {
	list    []endpoint
	uniform bool // all have the default capacity
}

type endpoint struct {
	w     *Workload
	ports []Port // the workload's own mapping for this service
}

func emptySnapshot() *Snapshot {
	v := &Snapshot{
		superseded: make(chan struct{}),
		workloads:  pmap.New[string, *Workload](), byIP: pmap.New[addressKey, []*Workload](),
		byName: pmap.New[string, []*Workload](), byHost: pmap.New[string, *Workload](),
		services: pmap.New[string, *Service](), svcByVIP: pmap.New[addressKey, []*Service](),
		svcByHost: pmap.New[string, []*Service](), endpoints: pmap.New[string, *endpointSet](),
		policies: policies{}.clone(),
	}
	v.policies.index()
	return v
}

// Superseded is closed once a newer snapshot exists.
func (v *Snapshot) Superseded() <-chan struct{} { return v.superseded }

// WorkloadByIP finds the workload at ip. Workloads on a host's network are not found
// so: the address is the host's. Of several that claim one address, a pod comes
// before anything else, then one in the mesh, then the first by UID.
func (v *Snapshot) WorkloadByIP(network string, ip netip.Addr) *Workload {
	list, _ := v.byIP.Get(addressKey{network, plain(ip)})
	if len(list) == 0 {
		return nil
	}
	return list[0]
}

// WorkloadByUID finds a workload.
func (v *Snapshot) WorkloadByUID(uid string) *Workload {
	w, _ := v.workloads.Get(uid)
	return w
}

// WorkloadByName finds the workload of a pod on this node. An empty service account
// matches any.
func (v *Snapshot) WorkloadByName(namespace, name, serviceAccount string) *Workload {
	list, _ := v.byName.Get(namespace + "/" + name)
	for _, w := range list {
		if serviceAccount == "" || w.ServiceAccount == serviceAccount {
			return w
		}
	}
	return nil
}

// ServiceByKey finds a service by namespace/hostname.
func (v *Snapshot) ServiceByKey(key string) *Service {
	s, _ := v.services.Get(key)
	return s
}

// ServiceByVIP finds the service at ip that a client in namespace ns sees best: one
// of its own namespace, then the canonical one, then the first by name. A service
// that has ip as a whole comes before one whose range holds it; of ranges, one in
// the own namespace comes before the longest.
func (v *Snapshot) ServiceByVIP(network string, ip netip.Addr, ns string) *Service {
	ip = plain(ip)
	list, _ := v.svcByVIP.Get(addressKey{network, ip})
	if s := best(list, ns); s != nil {
		return s
	}
	var found *serviceRange
	for i := range v.ranges {
		r := &v.ranges[i]
		if r.vip.Network == network && r.vip.Prefix.Contains(ip) && r.service.visible(ns) && (found == nil || r.before(found, ns)) {
			found = r
		}
	}
	if found == nil {
		return nil
	}
	return found.service
}

func (r *serviceRange) before(o *serviceRange, ns string) bool {
	if a, b := r.service.Namespace == ns, o.service.Namespace == ns; a != b {
		return a
	}
	if a, b := r.vip.Prefix.Bits(), o.vip.Prefix.Bits(); a != b {
		return a > b
	}
	if r.service.Canonical != o.service.Canonical {
		return r.service.Canonical
	}
	return r.service.Key() < o.service.Key()
}

// ServiceByHostname finds the service that a client in namespace ns sees best, in
// the same order as ServiceByVIP.
func (v *Snapshot) ServiceByHostname(hostname, ns string) *Service {
	list, _ := v.svcByHost.Get(hostname)
	return best(list, ns)
}

func best(list []*Service, ns string) *Service {
	var found *Service
	for _, s := range list {
		switch {
		case !s.visible(ns):
		case s.Namespace == ns:
			return s
		case found == nil || s.Canonical && !found.Canonical:
			found = s
		}
	}
	return found
}

func (s *Service) visible(ns string) bool { return !s.NamespaceOnly || s.Namespace == ns }

// Endpoints calls f for each endpoint of the service with that key until it returns
// false.
func (v *Snapshot) Endpoints(key string, f func(*Workload) bool) {
	set, ok := v.endpoints.Get(key)
	if !ok {
		return
	}
	for i := range set.list {
		if !f(set.list[i].w) {
			return
		}
	}
}

// Workloads calls f for each workload, in no particular order, until it returns false.
func (v *Snapshot) Workloads(f func(*Workload) bool) {
	for _, w := range v.workloads.All() {
		if !f(w) {
			return
		}
	}
}

// Services calls f for each service, in no particular order, until it returns false.
func (v *Snapshot) Services(f func(*Service) bool) {
	for _, s := range v.services.All() {
		if !f(s) {
			return
		}
	}
}

// Counts is the number of workloads, services and policies.
func (v *Snapshot) Counts() (workloads, services, policies int) {
	return v.workloads.Len(), v.services.Len(), len(v.policies.byName)
}

// plain strips what must not matter in a lookup: the zone, and the v6 form of a v4
// address that a dual-stack socket reports.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
