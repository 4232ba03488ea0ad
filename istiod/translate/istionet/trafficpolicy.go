package istionet

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

const (
	// defaultRing is Istio's smallest hash ring, in entries.
	defaultRing = 1024
	// maxMaglev is Envoy's bound of a Maglev table, in entries.
	maxMaglev = 5_000_011
	// wholePercent is what the weights of a distribution add up to.
	wholePercent = 100
)

// Labels of places, which failover by region already orders.
const (
	labelRegion  = "topology.kubernetes.io/region"
	labelZone    = "topology.kubernetes.io/zone"
	labelSubzone = "topology.istio.io/subzone"
)

func (o *object) loadBalancer(field string, in *networking.LoadBalancerSettings) *model.LoadBalancer {
	if in == nil {
		return nil
	}
	out := &model.LoadBalancer{Locality: o.locality(field+".localityLbSetting", in.GetLocalityLbSetting())}
	o.unset(field+".zoneAwareLbSetting", in.GetZoneAwareLbSetting() != nil)
	switch lb := in.GetLbPolicy().(type) {
	case *networking.LoadBalancerSettings_Simple:
		out.Kind = o.simple(field+".simple", lb.Simple)
	case *networking.LoadBalancerSettings_ConsistentHash:
		out.Kind, out.Hash = model.LBConsistentHash, o.hash(field+".consistentHash", lb.ConsistentHash)
	}
	out.WarmUp = o.duration(field+".warmupDurationSecs", in.GetWarmupDurationSecs())
	if w := in.GetWarmup(); w != nil {
		at := field + ".warmup"
		if w.GetDuration() == nil {
			o.fail(at+".duration", "is required")
		}
		out.WarmUp = o.duration(at+".duration", w.GetDuration())
		if p := w.GetMinimumPercent(); p != nil {
			if v := p.GetValue(); v >= 0 && v <= 100 {
				out.MinPercent = uint32(math.Round(v))
			} else {
				o.fail(at+".minimumPercent", "%v is not within 0 and 100", v)
			}
		}
		if a := w.GetAggression(); a != nil {
			if out.Aggression = a.GetValue(); math.IsNaN(out.Aggression) || math.IsInf(out.Aggression, 0) || out.Aggression <= 0 {
				o.fail(at+".aggression", "%v is not above 0", out.Aggression)
			}
		}
	}
	return out
}

func (o *object) simple(field string, in networking.LoadBalancerSettings_SimpleLB) model.LBKind {
	switch in {
	case networking.LoadBalancerSettings_UNSPECIFIED:
		return model.LBUnset
	//lint:ignore SA1019 The old name is still in use.
	case networking.LoadBalancerSettings_LEAST_CONN, networking.LoadBalancerSettings_LEAST_REQUEST:
		return model.LBLeastRequest
	case networking.LoadBalancerSettings_RANDOM:
		return model.LBRandom
	case networking.LoadBalancerSettings_PASSTHROUGH:
		return model.LBPassthrough
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		return model.LBRoundRobin
	}
	o.fail(field, "%d is unknown", in)
	return model.LBUnset
}

func (o *object) hash(field string, in *networking.LoadBalancerSettings_ConsistentHashLB) *model.HashPolicy {
	out := &model.HashPolicy{}
	switch k := in.GetHashKey().(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		o.token(field+".httpHeaderName", k.HttpHeaderName)
		out.Header = k.HttpHeaderName
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		if out.Query = k.HttpQueryParameterName; out.Query == "" {
			o.fail(field+".httpQueryParameterName", "is empty")
		}
	case *networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		if out.SourceIP = k.UseSourceIp; !out.SourceIP {
			o.fail(field+".useSourceIp", "is false, so that nothing is hashed")
		}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		out.Cookie = o.cookie(field+".httpCookie", k.HttpCookie)
	default:
		o.fail(field, "httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName is required")
	}
	//lint:ignore SA1019 The old field is still in use.
	old := in.GetMinimumRingSize()
	if old != 0 && in.GetHashAlgorithm() != nil {
		o.fail(field+".minimumRingSize", "excludes ringHash and maglev")
	}
	switch a := in.GetHashAlgorithm().(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_Maglev:
		out.Maglev, out.TableSize = true, a.Maglev.GetTableSize()
		if n := out.TableSize; n >= maxMaglev || !isPrime(n) {
			o.fail(field+".maglev.tableSize", "%d is not a prime number below %d", n, maxMaglev)
		}
		return out
	case *networking.LoadBalancerSettings_ConsistentHashLB_RingHash_:
		old = a.RingHash.GetMinimumRingSize()
	}
	if out.MinRing = old; old == 0 {
		out.MinRing = defaultRing
	}
	return out
}

// isPrime is for numbers below maxMaglev.
func isPrime(n uint64) bool {
	for f := uint64(2); f*f <= n; f++ {
		if n%f == 0 {
			return false
		}
	}
	return n > 1
}

func (o *object) cookie(field string, in *networking.LoadBalancerSettings_ConsistentHashLB_HTTPCookie) *model.HashCookie {
	out := &model.HashCookie{Name: in.GetName(), Path: in.GetPath(), TTL: o.durationOrOff(field+".ttl", in.GetTtl())}
	o.token(field+".name", in.GetName())
	o.headerText(field+".path", in.GetPath())
	seen := map[string]bool{}
	for i, a := range in.GetAttributes() {
		at := fmt.Sprintf("%s.attributes[%d]", field, i)
		o.token(at+".name", a.GetName())
		o.headerText(at+".value", a.GetValue())
		if seen[a.GetName()] {
			o.fail(at+".name", "%q is there twice", a.GetName())
		}
		seen[a.GetName()] = true
		out.Attributes = append(out.Attributes, model.Header{Name: a.GetName(), Value: a.GetValue()})
	}
	return out
}

func (o *object) locality(field string, in *networking.LocalityLoadBalancerSetting) *model.LocalityLB {
	if in == nil {
		return nil
	}
	out := &model.LocalityLB{Priority: in.GetFailoverPriority()}
	if in.GetEnabled() != nil {
		v := in.GetEnabled().GetValue()
		out.Enabled = &v
	}
	if len(in.GetDistribute()) > 0 && len(in.GetFailover()) > 0 {
		o.fail(field+".distribute", "excludes failover")
	}
	from := make([]string, 0, len(in.GetDistribute()))
	for i, d := range in.GetDistribute() {
		at := fmt.Sprintf("%s.distribute[%d]", field, i)
		from = append(from, d.GetFrom())
		to := slices.Sorted(maps.Keys(d.GetTo()))
		var total uint64
		for _, place := range to {
			if w := d.GetTo()[place]; w < 1 || w > wholePercent {
				o.fail(at+".to["+place+"]", "%d is not within 1 and %d", w, wholePercent)
			}
			total += uint64(d.GetTo()[place])
		}
		if total != wholePercent {
			o.fail(at+".to", "the weights add up to %d and not to %d", total, wholePercent)
		}
		o.places(at+".to", to)
		out.Distribute = append(out.Distribute, model.LocalityShare{From: d.GetFrom(), To: d.GetTo()})
	}
	o.places(field+".distribute", from)
	for i, f := range in.GetFailover() {
		at := fmt.Sprintf("%s.failover[%d]", field, i)
		if f.GetFrom() == f.GetTo() || strings.ContainsAny(f.GetFrom()+f.GetTo(), "/*") {
			o.fail(at, "%q to %q: two different regions are required", f.GetFrom(), f.GetTo())
		}
		if out.Failover == nil {
			out.Failover = map[string]string{}
		}
		out.Failover[f.GetFrom()] = f.GetTo()
	}
	for i, l := range in.GetFailoverPriority() {
		if len(out.Failover) > 0 && (l == labelRegion || l == labelZone || l == labelSubzone) {
			o.fail(fmt.Sprintf("%s.failoverPriority[%d]", field, i), "%q is ordered by failover already", l)
		}
	}
	return out
}

// places holds "region/zone/subzone" to its form, and finds what stands for the same places twice.
func (o *object) places(field string, in []string) {
	for i, p := range in {
		parts := strings.SplitN(p, "/", 3)
		if slices.Contains(parts, "") || strings.Contains(strings.TrimSuffix(p, "*"), "*") {
			o.fail(field, "%q is not region, region/zone or region/zone/subzone, with * at the end only", p)
		}
		for _, other := range in[:i] {
			a, b := strings.TrimSuffix(strings.TrimSuffix(p, "*"), "/"), strings.TrimSuffix(strings.TrimSuffix(other, "*"), "/")
			if a == "" || b == "" || a == b || strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/") {
				o.fail(field, "%q overlaps with %q", p, other)
			}
		}
	}
}

func (o *object) pool(field string, in *networking.ConnectionPoolSettings) *model.ConnectionPool {
	if in == nil {
		return nil
	}
	if in.GetTcp() == nil && in.GetHttp() == nil {
		o.fail(field, "tcp or http is required")
	}
	out := &model.ConnectionPool{}
	if t, at := in.GetTcp(), field+".tcp"; t != nil {
		out.MaxConnections = o.count(at+".maxConnections", t.GetMaxConnections())
		out.ConnectTimeout = o.duration(at+".connectTimeout", t.GetConnectTimeout())
		out.MaxConnectionDuration = o.duration(at+".maxConnectionDuration", t.GetMaxConnectionDuration())
		if idle := o.durationOrOff(at+".idleTimeout", t.GetIdleTimeout()); idle != nil {
			out.TCPIdle = *idle
		}
		if k := t.GetTcpKeepalive(); k != nil {
			out.Keepalive = &model.Keepalive{
				Probes:   k.GetProbes(),
				Time:     o.duration(at+".tcpKeepalive.time", k.GetTime()),
				Interval: o.duration(at+".tcpKeepalive.interval", k.GetInterval()),
			}
		}
	}
	if h := in.GetHttp(); h != nil {
		o.httpPool(field+".http", h, out)
	}
	return out
}

func (o *object) httpPool(field string, h *networking.ConnectionPoolSettings_HTTPSettings, out *model.ConnectionPool) {
	out.MaxPending = o.count(field+".http1MaxPendingRequests", h.GetHttp1MaxPendingRequests())
	out.MaxRequests = o.count(field+".http2MaxRequests", h.GetHttp2MaxRequests())
	out.MaxRequestsPerConnection = o.count(field+".maxRequestsPerConnection", h.GetMaxRequestsPerConnection())
	out.MaxRetries = o.count(field+".maxRetries", h.GetMaxRetries())
	out.MaxStreams = o.count(field+".maxConcurrentStreams", h.GetMaxConcurrentStreams())
	out.HTTPIdle = o.duration(field+".idleTimeout", h.GetIdleTimeout())
	out.ClientProtocol = h.GetUseClientProtocol()
	switch p := h.GetH2UpgradePolicy(); p {
	case networking.ConnectionPoolSettings_HTTPSettings_DEFAULT:
	case networking.ConnectionPoolSettings_HTTPSettings_DO_NOT_UPGRADE, networking.ConnectionPoolSettings_HTTPSettings_UPGRADE:
		upgrade := p == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE
		out.H2Upgrade = &upgrade
		if upgrade && out.ClientProtocol {
			o.fail(field+".useClientProtocol", "excludes h2UpgradePolicy UPGRADE")
		}
	default:
		o.fail(field+".h2UpgradePolicy", "%d is unknown", p)
	}
	if k := h.GetHttp2KeepAlive(); k != nil {
		if k.GetInterval() == nil || k.GetTimeout() == nil {
			o.fail(field+".http2KeepAlive", "interval and timeout are required")
		}
		out.PingInterval = o.duration(field+".http2KeepAlive.interval", k.GetInterval())
		out.PingTimeout = o.duration(field+".http2KeepAlive.timeout", k.GetTimeout())
	}
}

func (o *object) outlier(field string, in *networking.OutlierDetection) *model.Outlier {
	if in == nil {
		return nil
	}
	out := &model.Outlier{
		SplitLocal:       in.GetSplitExternalLocalOriginErrors(),
		Interval:         o.duration(field+".interval", in.GetInterval()),
		BaseEjection:     o.duration(field+".baseEjectionTime", in.GetBaseEjectionTime()),
		MinHealthPercent: o.wholePercent(field+".minHealthPercent", in.GetMinHealthPercent()),
	}
	o.unset(field+".outlierDetectionHttpErrorCodes", len(in.GetOutlierDetectionHttpErrorCodes()) > 0)
	//lint:ignore SA1019 The old field is still in use.
	if old := in.GetConsecutiveErrors(); old != 0 {
		v := o.count(field+".consecutiveErrors", old)
		out.ConsecutiveGateway = &v
	}
	if v := in.GetConsecutiveGatewayErrors(); v != nil {
		n := v.GetValue()
		out.ConsecutiveGateway = &n
	}
	if v := in.GetConsecutive_5XxErrors(); v != nil {
		n := v.GetValue()
		out.Consecutive5xx = &n
	}
	if v := in.GetConsecutiveLocalOriginFailures(); v != nil {
		n := v.GetValue()
		if n > 0 && !out.SplitLocal {
			o.fail(field+".consecutiveLocalOriginFailures", "needs splitExternalLocalOriginErrors")
		}
		out.ConsecutiveLocal = &n
	}
	// Istio takes 0 for Envoy's default.
	if n := o.wholePercent(field+".maxEjectionPercent", in.GetMaxEjectionPercent()); n > 0 {
		out.MaxEjectionPercent = &n
	}
	return out
}

func (o *object) wholePercent(field string, n int32) uint32 {
	if n < 0 || n > 100 {
		o.fail(field, "%d is not within 0 and 100", n)
		return 0
	}
	return uint32(n)
}
