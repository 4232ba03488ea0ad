package config

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/istiod/model"
)

func connectTimeout(p *model.ConnectionPool) time.Duration {
	if p == nil || p.ConnectTimeout == 0 {
		return defaultConnectTimeout
	}
	return p.ConnectTimeout
}

// breakers bound what one proxy does to a cluster, as far as a user asks for it.
func breakers(p *model.ConnectionPool, budget *model.RetryBudget) *clusterv3.CircuitBreakers {
	if p == nil {
		p = &model.ConnectionPool{}
	}
	bound := func(n uint32) uint32 {
		if n == 0 {
			return unlimited
		}
		return n
	}
	t := &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections:     u32(bound(p.MaxConnections)),
		MaxPendingRequests: u32(bound(p.MaxPending)),
		MaxRequests:        u32(bound(p.MaxRequests)),
		MaxRetries:         u32(bound(p.MaxRetries)),
		TrackRemaining:     true,
	}
	if budget != nil {
		t.RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
			BudgetPercent:       &typev3.Percent{Value: budget.Percent},
			MinRetryConcurrency: u32OrNil(budget.Min),
		}
	}
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{t}}
}

// outlier takes failing endpoints out. Only what counts consecutive errors is on, as in Istio: success rates say nothing
// about a service with a few endpoints.
func outlier(o *model.Outlier) *clusterv3.OutlierDetection {
	if o == nil {
		return nil
	}
	out := &clusterv3.OutlierDetection{
		EnforcingSuccessRate: u32(0),
		Interval:             durationOrNil(o.Interval),
		BaseEjectionTime:     durationOrNil(o.BaseEjection),
	}
	if o.MaxEjectionPercent != nil {
		out.MaxEjectionPercent = u32(*o.MaxEjectionPercent)
	}
	if n := o.Consecutive5xx; n != nil {
		out.Consecutive_5Xx, out.EnforcingConsecutive_5Xx = u32(*n), u32(always(*n))
	}
	if n := o.ConsecutiveGateway; n != nil {
		out.ConsecutiveGatewayFailure, out.EnforcingConsecutiveGatewayFailure = u32(*n), u32(always(*n))
	}
	if o.SplitLocal {
		out.SplitExternalLocalOriginErrors = true
		out.EnforcingLocalOriginSuccessRate = u32(0)
		if n := o.ConsecutiveLocal; n != nil {
			out.ConsecutiveLocalOriginFailure, out.EnforcingConsecutiveLocalOriginFailure = u32(*n), u32(always(*n))
		}
	}
	return out
}

// always is the percentage of detections that are acted upon; a limit of 0 turns one off.
func always(limit uint32) uint32 {
	if limit == 0 {
		return 0
	}
	return 100
}

func connectionOptions(p *model.ConnectionPool) *clusterv3.UpstreamConnectionOptions {
	if p == nil || p.Keepalive == nil {
		return nil
	}
	return &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
		KeepaliveProbes:   u32OrNil(p.Keepalive.Probes),
		KeepaliveTime:     u32OrNil(uint32(p.Keepalive.Time / time.Second)),
		KeepaliveInterval: u32OrNil(uint32(p.Keepalive.Interval / time.Second)),
	}}
}

// protocol is a cluster's map of options, of which there is one.
func (b *builder) protocol(o *upstreamhttpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": b.pack(o)}
}

// httpOptions say how requests are sent to a cluster.
func (b *builder) httpOptions(c *model.Cluster) *upstreamhttpv3.HttpProtocolOptions {
	pool := c.Policy.Pool
	if pool == nil {
		pool = &model.ConnectionPool{}
	}
	out := &upstreamhttpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout:              durationOrNil(pool.HTTPIdle),
			MaxConnectionDuration:    durationOrNil(pool.MaxConnectionDuration),
			MaxRequestsPerConnection: u32OrNil(pool.MaxRequestsPerConnection),
		},
	}
	http2 := &corev3.Http2ProtocolOptions{MaxConcurrentStreams: u32OrNil(pool.MaxStreams)}
	if pool.PingInterval > 0 {
		http2.ConnectionKeepalive = &corev3.KeepaliveSettings{Interval: duration(pool.PingInterval), Timeout: duration(pingTimeout(pool))}
	}
	switch b.httpVersion(c, pool) {
	case versionClients:
		both := clientsProtocol()
		both.UseDownstreamProtocolConfig.Http2ProtocolOptions = http2
		out.UpstreamProtocolOptions = both
	case version2:
		out.UpstreamProtocolOptions = explicit(&upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: http2},
		})
	default:
		out.UpstreamProtocolOptions = explicit(&upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
				HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
			},
		})
	}
	out.UpstreamHttpProtocolOptions = autoSNI(c)
	return out
}

// autoSNI takes the server name, and the name that its certificate must have, from the request's host: where nothing else
// is given, and where the host is the destination.
func autoSNI(c *model.Cluster) *corev3.UpstreamHttpProtocolOptions {
	switch {
	case c.Kind == model.ClusterDynamic:
		return &corev3.UpstreamHttpProtocolOptions{AutoSni: true, AutoSanValidation: true}
	case c.TLS != nil && c.TLS.SNI == "" && (c.TLS.Mode == model.TLSSimple || c.TLS.Mode == model.TLSMutual):
		return &corev3.UpstreamHttpProtocolOptions{AutoSni: true, AutoSanValidation: verifiesName(c.TLS)}
	}
	return nil
}

type httpVersion uint8

const (
	version1 httpVersion = iota
	version2
	versionClients
)

// httpVersion is what the port says; else a waypoint keeps what client and server agreed on, and a gateway, whose clients
// know nothing of the servers, speaks HTTP/1.1.
func (b *builder) httpVersion(c *model.Cluster, pool *model.ConnectionPool) httpVersion {
	switch {
	case c.Protocol == model.ProtocolHTTP2 || c.Protocol == model.ProtocolGRPC:
		return version2
	case pool.ClientProtocol:
		return versionClients
	case pool.H2Upgrade != nil && *pool.H2Upgrade:
		return version2
	case pool.H2Upgrade != nil:
		return version1
	case b.proxy.Waypoint && c.Kind != model.ClusterDynamic:
		return versionClients
	}
	return version1
}

func explicit(c *upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig) *upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_ {
	return &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: c}
}

func clientsProtocol() *upstreamhttpv3.HttpProtocolOptions_UseDownstreamProtocolConfig {
	return &upstreamhttpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
		UseDownstreamProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
			HttpProtocolOptions:  &corev3.Http1ProtocolOptions{},
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
		},
	}
}

// pingTimeout is the user's, or that of tunnels.
func pingTimeout(p *model.ConnectionPool) time.Duration {
	if p.PingTimeout == 0 {
		return keepaliveTimeout
	}
	return p.PingTimeout
}
