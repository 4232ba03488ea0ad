package config

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// balance chooses the algorithm. It comes after discovery, because where clients choose the endpoint there is none.
func balance(lb *model.LoadBalancer, out *clusterv3.Cluster) {
	if lb == nil {
		lb = &model.LoadBalancer{}
	}
	if out.LbPolicy == clusterv3.Cluster_CLUSTER_PROVIDED {
		return
	}
	switch lb.Kind {
	case model.LBRoundRobin:
		out.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		if s := slowStart(lb); s != nil {
			out.LbConfig = &clusterv3.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &clusterv3.Cluster_RoundRobinLbConfig{SlowStartConfig: s}}
		}
	case model.LBRandom:
		out.LbPolicy = clusterv3.Cluster_RANDOM
	case model.LBConsistentHash:
		hash(lb.Hash, out)
	default:
		// Istio's default, and better than round robin wherever endpoints differ in speed.
		out.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
		if s := slowStart(lb); s != nil {
			out.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{SlowStartConfig: s}}
		}
	}
}

func hash(h *model.HashPolicy, out *clusterv3.Cluster) {
	if h == nil {
		h = &model.HashPolicy{}
	}
	if h.Maglev {
		out.LbPolicy = clusterv3.Cluster_MAGLEV
		if h.TableSize > 0 {
			out.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{
				TableSize: wrapperspb.UInt64(min(h.TableSize, maxMaglevTable)),
			}}
		}
		return
	}
	size := h.MinRing
	if size == 0 {
		size = defaultRingSize
	}
	out.LbPolicy = clusterv3.Cluster_RING_HASH
	out.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{
		MinimumRingSize: wrapperspb.UInt64(min(size, maxRingSize)),
	}}
}

func slowStart(lb *model.LoadBalancer) *clusterv3.Cluster_SlowStartConfig {
	if lb.WarmUp == 0 {
		return nil
	}
	s := &clusterv3.Cluster_SlowStartConfig{SlowStartWindow: duration(lb.WarmUp)}
	if lb.Aggression > 0 {
		s.Aggression = &corev3.RuntimeDouble{DefaultValue: lb.Aggression, RuntimeKey: "ambit.slow_start_aggression"}
	}
	if lb.MinPercent > 0 {
		s.MinWeightPercent = &typev3.Percent{Value: float64(lb.MinPercent)}
	}
	return s
}

// commonLB is never in panic unless the user asks for it: Envoy's default sends requests to endpoints that are known to
// be bad when half of them are (Istio sets 0 too).
func commonLB(p *model.TrafficPolicy) *clusterv3.Cluster_CommonLbConfig {
	out := &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}}
	if p.Outlier != nil {
		out.HealthyPanicThreshold.Value = float64(min(p.Outlier.MinHealthPercent, 100))
	}
	if lb := p.LB; lb != nil && prefers(lb.Locality) && len(lb.Locality.Distribute) > 0 {
		out.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
			LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
		}
	}
	return out
}
