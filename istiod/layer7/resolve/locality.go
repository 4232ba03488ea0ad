package resolve

import (
	"strings"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// place gives endpoints the priorities of locality failover, or leaves the shares of a distribution to
// waypoint/config. As with Istio, failover wants outlier detection, without which nobody would notice a failure.
func (b *builder) place(out *model.Endpoints, c *model.Cluster, s *index.Service) {
	out.From, out.FromLabels = b.t.From, b.t.Labels
	var lb *model.LocalityLB
	if c.Policy.LB != nil {
		lb = c.Policy.LB.Locality
	}
	if lb == nil {
		lb = b.r.Settings().LocalityLB
	}
	if lb != nil && lb.Enabled != nil && !*lb.Enabled {
		return
	}
	switch {
	case lb != nil && len(lb.Distribute) > 0:
		out.Locality = lb
		return
	case c.Policy.Outlier != nil && lb != nil && len(lb.Priority) > 0:
		out.Locality = lb
		b.byLabels(out, lb.Priority)
	case c.Policy.Outlier != nil && lb != nil:
		out.Locality = lb
		byLocality(out, lb.Failover)
	case s.Kube != nil && b.prefersClose(s):
		byLocality(out, nil)
	}
	dense(out)
}

// prefersClose is Kubernetes' trafficDistribution, of the service or its namespace.
func (b *builder) prefersClose(s *index.Service) bool {
	d := s.Kube.Distribution
	if d == model.DistributionUnset {
		if ns := b.r.NamespaceOf(s.Namespace); ns != nil {
			d = ns.Distribution
		}
	}
	return d == model.DistributionSameZone || d == model.DistributionSameNode
}

// From is where all replicas of a proxy are: what they agree on, since they share one configuration.
func From(r *index.Reader, pods []*model.Pod) model.Locality {
	if len(pods) == 0 {
		return model.Locality{}
	}
	out := r.Mesh.Locality(pods[0].Node)
	for _, p := range pods[1:] {
		l := r.Mesh.Locality(p.Node)
		switch {
		case l.Region != out.Region:
			return model.Locality{}
		case l.Zone != out.Zone:
			out.Zone, out.Subzone = "", ""
		case l.Subzone != out.Subzone:
			out.Subzone = ""
		}
	}
	return out
}

// byLocality: the closest first; the region that failover names before all others.
func byLocality(out *model.Endpoints, failover map[string]string) {
	from := out.From
	if from.Region == "" {
		return
	}
	for i := range out.Endpoints {
		e := &out.Endpoints[i]
		l := e.Locality
		switch {
		case l.Region == from.Region && l.Zone == from.Zone && l.Subzone == from.Subzone:
			e.Priority = 0
		case l.Region == from.Region && l.Zone == from.Zone:
			e.Priority = 1
		case l.Region == from.Region:
			e.Priority = 2
		case failover[from.Region] != "" && failover[from.Region] == l.Region:
			e.Priority = 3
		default:
			e.Priority = 4
		}
	}
}

// byLabels: the more of the labels agree, counted from the first, the earlier (Istio, failoverPriority).
func (b *builder) byLabels(out *model.Endpoints, priority []string) {
	from := withLocality(b.t.Labels, out.From)
	for i := range out.Endpoints {
		e := &out.Endpoints[i]
		labels := withLocality(e.Labels, e.Locality)
		n := 0
		for _, want := range priority {
			key, value, fixed := strings.Cut(want, "=")
			if !fixed {
				value = from[key]
			}
			if labels[key] != value {
				break
			}
			n++
		}
		e.Priority = uint32(len(priority) - n)
	}
}

// withLocality adds the well-known labels of places.
func withLocality(labels map[string]string, l model.Locality) map[string]string {
	out := map[string]string{"topology.kubernetes.io/region": l.Region, "topology.kubernetes.io/zone": l.Zone, "topology.istio.io/subzone": l.Subzone}
	for k, v := range labels {
		out[k] = v
	}
	return out
}

// dense numbers priorities without gaps, as Envoy wants them.
func dense(out *model.Endpoints) {
	used := map[uint32]bool{}
	for _, e := range out.Endpoints {
		used[e.Priority] = true
	}
	number := map[uint32]uint32{}
	for i, p := range sortedKeys(used) {
		number[p] = uint32(i)
	}
	for i := range out.Endpoints {
		out.Endpoints[i].Priority = number[out.Endpoints[i].Priority]
	}
}
