package config

import (
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	directv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/direct_response/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/route"
)

const tcpFilter = "envoy.filters.network.tcp_proxy"

func (b *builder) networkFilter(name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: b.pack(m)}}
}

// refuse closes a connection at once.
func (b *builder) refuse() []*listenerv3.Filter {
	return []*listenerv3.Filter{b.networkFilter("envoy.filters.network.direct_response", &directv3.Config{})}
}

// forward checks policy and sends a connection to one of the clusters. With late, the server is called only once the
// client has sent something.
func (b *builder) forward(f *model.TCPForward, late bool) []*listenerv3.Filter {
	if f == nil || f.Refuse {
		return b.refuse()
	}
	proxy := &tcpv3.TcpProxy{
		StatPrefix:  f.Name,
		AccessLog:   append(b.connectionLogs(), b.tcpMetrics()...),
		IdleTimeout: durationOrNil(f.IdleTimeout),
	}
	if !spread(proxy, f.Clusters) {
		return b.refuse()
	}
	if f.HashSourceIP {
		proxy.HashPolicy = []*typev3.HashPolicy{{PolicySpecifier: &typev3.HashPolicy_SourceIp_{SourceIp: &typev3.HashPolicy_SourceIp{}}}}
	}
	return b.guarded(f.Authz, proxy, late)
}

// guarded puts policy before a TCP proxy.
func (b *builder) guarded(authz []*model.Authorization, proxy *tcpv3.TcpProxy, late bool) []*listenerv3.Filter {
	filters, err := route.NetworkAuthz(b.proxy, authz)
	if err != nil {
		b.fail(err)
	}
	if late && len(authz) > 0 {
		proxy.UpstreamConnectMode = tcpv3.UpstreamConnectMode_ON_DOWNSTREAM_DATA
		proxy.MaxEarlyDataBytes = u32(maxEarlyData)
	}
	// Without this the statistic of opened connections would be written at their end.
	proxy.AccessLogOptions = &tcpv3.TcpProxy_TcpAccessLogOptions{FlushAccessLogOnConnected: true}
	return append(filters, b.networkFilter(tcpFilter, proxy))
}

// spread says which clusters get which share; false if none gets any.
func spread(p *tcpv3.TcpProxy, clusters []model.WeightedCluster) bool {
	var shares []*tcpv3.TcpProxy_WeightedCluster_ClusterWeight
	for _, c := range clusters {
		if c.Weight > 0 {
			shares = append(shares, &tcpv3.TcpProxy_WeightedCluster_ClusterWeight{Name: c.Cluster, Weight: c.Weight})
		}
	}
	switch len(shares) {
	case 0:
		return false
	case 1:
		p.ClusterSpecifier = &tcpv3.TcpProxy_Cluster{Cluster: shares[0].Name}
	default:
		p.ClusterSpecifier = &tcpv3.TcpProxy_WeightedClusters{WeightedClusters: &tcpv3.TcpProxy_WeightedCluster{Clusters: shares}}
	}
	return true
}
