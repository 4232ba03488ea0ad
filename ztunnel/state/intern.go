package state

import (
	"encoding/binary"
	"strings"
)

// sweepFloor is the number of interned values below which no sweep is worth it.
const sweepFloor = 4096

// interner holds values that many workloads share once: names of namespaces and
// nodes, lists of services and policies. It belongs to the Store's writer.
type interner struct {
	strings map[string]string
	lists   map[string][]string
	members map[string][]WorkloadService
	sweepAt int
}

func newInterner() *interner {
	return &interner{
		strings: map[string]string{}, lists: map[string][]string{}, members: map[string][]WorkloadService{}, sweepAt: sweepFloor,
	}
}

func (in *interner) str(s string) string {
	if s == "" {
		return ""
	}
	if known, ok := in.strings[s]; ok {
		return known
	}
	s = strings.Clone(s)
	in.strings[s] = s
	return s
}

func (in *interner) list(l []string) []string {
	if len(l) == 0 {
		return nil
	}
	key := strings.Join(l, "\x00")
	if known, ok := in.lists[key]; ok {
		return known
	}
	out := make([]string, len(l))
	for i := range l {
		out[i] = in.str(l[i])
	}
	in.lists[key] = out
	return out
}

func (in *interner) memberships(l []WorkloadService) []WorkloadService {
	var key []byte
	for _, m := range l {
		key = append(key, m.Key...)
		key = append(key, 0)
		key = binary.AppendUvarint(key, uint64(len(m.Ports)))
		for _, p := range m.Ports {
			key = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(key, p.Service), p.Target)
		}
	}
	if known, ok := in.members[string(key)]; ok {
		return known
	}
	in.members[string(key)] = l
	return l
}

// sweep forgets everything once the tables have doubled since the last sweep, and
// learns again what the given workloads use: values of pods that are gone must not
// stay for ever.
func (in *interner) sweep(workloads func(func(*Workload) bool)) {
	if len(in.strings)+len(in.lists)+len(in.members) < in.sweepAt {
		return
	}
	clear(in.strings)
	clear(in.lists)
	clear(in.members)
	workloads(func(w *Workload) bool {
		for _, s := range []string{
			w.Namespace, w.TrustDomain, w.ServiceAccount, w.Network, w.ClusterID, w.Node, w.WorkloadName,
			w.CanonicalName, w.CanonicalRevision, w.Locality.Region, w.Locality.Zone, w.Locality.Subzone,
		} {
			if s != "" {
				in.strings[s] = s
			}
		}
		for _, m := range w.Services {
			in.strings[m.Key] = m.Key
		}
		if len(w.Services) > 0 {
			in.memberships(w.Services)
		}
		if len(w.Policies) > 0 {
			in.lists[strings.Join(w.Policies, "\x00")] = w.Policies
		}
		return true
	})
	in.sweepAt = max(sweepFloor, 2*(len(in.strings)+len(in.lists)+len(in.members)))
}
