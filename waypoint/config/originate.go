package config

import (
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	netstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// sourceGuard is the guard against a leak between identities.
//
// A connection from a Main listener to connect_originate becomes a tunnel, and the tunnel's CONNECT says for whom it was
// opened (XFCC, see originateListener). Envoy keeps such connections in pools and gives them to the next request, which
// may be of another source: that request would then travel under the first one's name. So the name must be part of
// the pool's key. Envoy makes it so if, and only if, the filter state that holds it is a hashable string that is shared
// with the upstream connection: with envoy.string, or with a state that Envoy shares without hashing, the pools of all
// sources are one. A hashable string alone would not do either: ONCE keeps the state from going further than
// connect_originate, whose own pool of tunnels to a node is rightly shared by all (each CONNECT there is a stream of
// its own, and says itself for whom it is).
func sourceGuard(key string) *statev3.FilterStateValue {
	v := stateValue(key, filterState(key))
	v.FactoryKey = names.HashableString
	return v
}

// stateValue sets filter state from a format string and shares it with the next internal listener. No value, no state.
func stateValue(key, format string) *statev3.FilterStateValue {
	return &statev3.FilterStateValue{
		Key: &statev3.FilterStateValue_ObjectKey{ObjectKey: key},
		Value: &statev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: format},
			}},
			OmitEmptyValues: true,
		}},
		SkipIfEmpty:        true,
		SharedWithUpstream: statev3.FilterStateValue_ONCE,
	}
}

func (b *builder) stateFilter(name string, values ...*statev3.FilterStateValue) *listenerv3.Filter {
	return b.networkFilter(name, &netstatev3.Config{OnNewConnection: values})
}

// originateListener wraps a connection in a tunnel. Its local address is the one that the endpoint's metadata, or
// main_direct, names; that is what the CONNECT asks for.
func (b *builder) originateListener() *listenerv3.Listener {
	tunnel := &tcpv3.TcpProxy_TunnelingConfig{Hostname: "%DOWNSTREAM_LOCAL_ADDRESS%"}
	if b.proxy.Waypoint {
		// The other end sees the waypoint's certificate. On whose behalf it calls stands here; for requests, in each
		// request too.
		tunnel.HeadersToAdd = []*corev3.HeaderValueOption{
			setHeader(names.HeaderXFCC, "By="+formatLiteral(spiffeID(b.proxy))+";URI="+filterState(names.StatePeer)),
		}
	}
	return b.internalListener(names.ConnectOriginate, &listenerv3.FilterChain{
		Name: names.ConnectOriginate,
		Filters: []*listenerv3.Filter{
			// The peer must be exactly who the control plane said is there: an address that was given to another pod
			// meanwhile, or a node that poses as another, is refused. Istio compares the trust domain only.
			b.stateFilter("ambit.filters.network.pin_peer",
				stateOnly(names.UpstreamSANs, filterState(names.StateUpstreamPeer)),
				stateOnly(names.UpstreamSANs, "%DYNAMIC_METADATA("+names.MetadataMesh+":"+names.KeyPrincipal+")%")),
			b.networkFilter(tcpFilter, &tcpv3.TcpProxy{
				StatPrefix:       names.ConnectOriginate,
				ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: names.ConnectOriginate},
				TunnelingConfig:  tunnel,
				// Whoever opened the connection has a limit of its own, and closing it ends the tunnel.
				IdleTimeout: duration(0),
			}),
		},
	})
}

// stateOnly is stateValue that stays with this connection.
func stateOnly(key, format string) *statev3.FilterStateValue {
	v := stateValue(key, format)
	v.SharedWithUpstream = statev3.FilterStateValue_NONE
	return v
}

// formatLiteral keeps a text from being read as a format.
func formatLiteral(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// internalListener has one chain, and takes its addresses from whoever connects to it.
func (b *builder) internalListener(name string, chains ...*listenerv3.FilterChain) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name:              name,
		ListenerSpecifier: &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}},
		ListenerFilters: []*listenerv3.ListenerFilter{{
			Name:       names.OriginalDst,
			ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.pack(&originaldstv3.OriginalDst{})},
		}},
		FilterChains: chains,
	}
}

// originateCluster is the far ends of all tunnels: port 15008 of the address that is asked for, or of the waypoint
// that the endpoint's metadata names instead.
func (b *builder) originateCluster() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 names.ConnectOriginate,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:       duration(tunnelConnectTimeout),
		CleanupInterval:      duration(tunnelCleanup),
		LbConfig: &clusterv3.Cluster_OriginalDstLbConfig_{OriginalDstLbConfig: &clusterv3.Cluster_OriginalDstLbConfig{
			UpstreamPortOverride: u32(ports.HBONE),
			MetadataKey: &metadatav3.MetadataKey{Key: names.OriginalDst, Path: []*metadatav3.MetadataKey_PathSegment{
				{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: names.KeyWaypoint}},
			}},
		}},
		CircuitBreakers: breakers(nil, nil),
		TransportSocket: b.meshClientTLS(),
		TypedExtensionProtocolOptions: b.protocol(&upstreamhttpv3.HttpProtocolOptions{
			CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: duration(tunnelIdle)},
			UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
				ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
					ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
						Http2ProtocolOptions: tunnelHTTP2(),
					},
				},
			},
		}),
	}
}

// tunnelHTTP2 is HBONE's HTTP/2, for both sides.
func tunnelHTTP2() *corev3.Http2ProtocolOptions {
	return &corev3.Http2ProtocolOptions{
		AllowConnect:                true,
		MaxConcurrentStreams:        u32(maxTunnelStreams),
		InitialStreamWindowSize:     u32(streamWindow),
		InitialConnectionWindowSize: u32(connectionWindow),
		ConnectionKeepalive:         &corev3.KeepaliveSettings{Interval: duration(keepaliveInterval), Timeout: duration(keepaliveTimeout)},
	}
}
