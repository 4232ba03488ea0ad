package config

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Labels that stand for places and are not necessarily among a pod's own.
const (
	labelRegion  = "topology.kubernetes.io/region"
	labelZone    = "topology.kubernetes.io/zone"
	labelSubzone = "topology.istio.io/subzone"
	labelCluster = "topology.istio.io/cluster"
)

const (
	// levels is more than nearness ever returns: it leaves room for it within one of the caller's priorities.
	levels = 32
	// shareScale makes room for places that split one share among them.
	shareScale = 1000
)

// prefers tells whether places matter; they do unless turned off.
func prefers(l *model.LocalityLB) bool { return l != nil && (l.Enabled == nil || *l.Enabled) }

// nearness is 0 for the endpoints that are tried first. The order is that of Istio's localityLbSetting: failoverPriority,
// else same subzone, zone, region, the region of failover, others. False leaves the endpoint out.
func nearness(e *model.Endpoints, p *model.ProxyEndpoint) (uint32, bool) {
	switch {
	case !prefers(e.Locality) || sharesFrom(e.Locality, e.From) != nil:
		return 0, true
	case len(e.Locality.Priority) > 0:
		return byLabels(e, p), true
	case e.From == (model.Locality{}):
		return 0, true
	}
	return byPlace(e, p.Locality), true
}

func byPlace(e *model.Endpoints, l model.Locality) uint32 {
	from := e.From
	switch {
	case l == from:
		return 0
	case l.Region == from.Region && l.Zone == from.Zone:
		return 1
	case l.Region == from.Region:
		return 2
	}
	if to := e.Locality.Failover[from.Region]; to != "" && to != l.Region {
		return 4
	}
	return 3
}

// byLabels counts how many of the labels agree before the first that does not.
func byLabels(e *model.Endpoints, p *model.ProxyEndpoint) uint32 {
	agree := 0
	for _, entry := range e.Locality.Priority {
		key, want, given := strings.Cut(entry, "=")
		if !given {
			want = placeLabel(key, e.FromLabels, e.From, "")
		}
		if placeLabel(key, p.Labels, p.Locality, p.Cluster) != want {
			break
		}
		agree++
	}
	return uint32(min(len(e.Locality.Priority)-agree, levels-1))
}

func placeLabel(key string, labels map[string]string, l model.Locality, cluster string) string {
	if v, ok := labels[key]; ok {
		return v
	}
	switch key {
	case labelRegion:
		return l.Region
	case labelZone:
		return l.Zone
	case labelSubzone:
		return l.Subzone
	case labelCluster:
		return cluster
	}
	return ""
}

// sharesFrom finds the shares of where the proxy is: the most precise entry, nil if there is none.
func sharesFrom(l *model.LocalityLB, from model.Locality) *model.LocalityShare {
	var best *model.LocalityShare
	for i := range l.Distribute {
		s := &l.Distribute[i]
		if inPlace(s.From, from) && (best == nil || precision(s.From) > precision(best.From)) {
			best = s
		}
	}
	return best
}

// inPlace compares a place with "region/zone/subzone"; missing parts and * match everything.
func inPlace(pattern string, l model.Locality) bool {
	have := []string{l.Region, l.Zone, l.Subzone}
	for i, part := range strings.Split(pattern, "/") {
		if part == "*" {
			return true
		}
		if i >= len(have) || part != have[i] {
			return false
		}
	}
	return true
}

// precision orders patterns: more parts win, and of equal many the one without *.
func precision(pattern string) int {
	n := 2 * (strings.Count(pattern, "/") + 1)
	if strings.HasSuffix(pattern, "*") {
		n--
	}
	return n
}

// weights of the groups: what is in them; or with shares, the share of the most precise pattern, split between the
// places that it matches by what is in these.
func (g *groups) weights(keys []groupKey, shares *model.LocalityShare) map[groupKey]uint32 {
	out := map[groupKey]uint32{}
	if shares == nil {
		for _, k := range keys {
			out[k] = uint32(min(g.index[k].weight, math.MaxUint32/uint64(len(keys))))
		}
		return out
	}
	patterns := slices.SortedFunc(maps.Keys(shares.To), func(a, b string) int {
		return cmp.Or(cmp.Compare(precision(b), precision(a)), cmp.Compare(a, b))
	})
	for _, pattern := range patterns {
		var matched []groupKey
		var total uint64
		for _, k := range keys {
			if _, taken := out[k]; !taken && inPlace(pattern, k.locality) {
				matched = append(matched, k)
				total += g.index[k].weight
			}
		}
		for _, k := range matched {
			out[k] = uint32(math.Ceil(float64(shares.To[pattern]) * shareScale * float64(g.index[k].weight) / float64(total)))
		}
	}
	return out
}
