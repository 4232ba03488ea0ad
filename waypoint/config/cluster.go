package config

import (
	"cmp"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	dfpclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// Cluster writes a cluster, and the secrets that its TLS needs. A secret that several clusters of a proxy need comes with
// each of them, always under the same name: the caller sends it once, and withdraws it with the last of them.
func Cluster(p *model.Proxy, c *model.Cluster) ([]Resource, error) {
	b := newBuilder(p)
	out := &clusterv3.Cluster{
		Name:             c.Name,
		ConnectTimeout:   duration(connectTimeout(c.Policy.Pool)),
		CircuitBreakers:  breakers(c.Policy.Pool, c.Policy.RetryBudget),
		OutlierDetection: outlier(c.Policy.Outlier),
		CommonLbConfig:   commonLB(&c.Policy),
		Metadata: metadata(names.MetadataMesh, textMetadata(map[string]string{
			names.KeyHost: c.Host, names.KeyService: c.Service, names.KeyNamespace: c.Namespace,
		})),
		UpstreamConnectionOptions: connectionOptions(c.Policy.Pool),
		TransportSocket:           b.clusterSocket(c),
	}
	b.discovery(c, out)
	balance(c.Policy.LB, out)
	if c.HTTP {
		out.TypedExtensionProtocolOptions = b.protocol(b.httpOptions(c))
	}
	b.cluster(out)
	return b.result("cluster", c.Name)
}

// discovery says where endpoints come from, and in the case of pods wraps the socket so that it leads into tunnels.
func (b *builder) discovery(c *model.Cluster, out *clusterv3.Cluster) {
	kind := c.Kind
	if lb := c.Policy.LB; lb != nil && lb.Kind == model.LBPassthrough {
		kind = model.ClusterOriginalDst
	}
	switch kind {
	case model.ClusterDNS:
		out.ClusterDiscoveryType = b.customType("envoy.clusters.dns", &dnsclusterv3.DnsCluster{
			DnsLookupFamily: dnsv3.DnsLookupFamily_V4_PREFERRED,
			DnsRefreshRate:  duration(dnsRefresh),
			RespectDnsTtl:   true,
			// Envoy's logical DNS knows one name only.
			AllAddressesInSingleEndpoint: c.RoundRobinDNS && len(c.DNS) == 1,
		})
		out.LoadAssignment = dnsEndpoints(c)
	case model.ClusterOriginalDst:
		out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
		out.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
	case model.ClusterDynamic:
		out.ClusterDiscoveryType = b.customType("envoy.clusters.dynamic_forward_proxy", &dfpclusterv3.ClusterConfig{
			ClusterImplementationSpecifier: &dfpclusterv3.ClusterConfig_DnsCacheConfig{DnsCacheConfig: names.DynamicDNS()},
		})
		out.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
	default:
		out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
		out.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()}
		out.TransportSocket = b.throughInternal(out.TransportSocket, true)
	}
}

func (b *builder) customType(name string, m proto.Message) *clusterv3.Cluster_ClusterType {
	return &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{Name: name, TypedConfig: b.pack(m)}}
}

// throughInternal lets a cluster reach internal listeners, and gives them what its endpoints' metadata says. Endpoints
// with an ordinary address are not touched by it.
func (b *builder) throughInternal(inner *corev3.TransportSocket, metadata bool) *corev3.TransportSocket {
	t := &internalv3.InternalUpstreamTransport{TransportSocket: inner}
	if metadata {
		for _, key := range []string{names.OriginalDst, names.MetadataMesh} {
			t.PassthroughMetadata = append(t.PassthroughMetadata, &internalv3.InternalUpstreamTransport_MetadataValueSource{
				Name: key,
				Kind: &metadatav3.MetadataKind{Kind: &metadatav3.MetadataKind_Host_{Host: &metadatav3.MetadataKind_Host{}}},
			})
		}
	}
	return b.socket("envoy.transport_sockets.internal_upstream", t)
}

// dnsEndpoints are names, which Envoy resolves.
func dnsEndpoints(c *model.Cluster) *endpointv3.ClusterLoadAssignment {
	g := newGroups()
	for _, e := range c.DNS {
		g.add(e.Locality, 0, cmp.Or(e.Weight, 1), &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: hostAddress(e.Host, e.Port), Hostname: e.Host,
			}},
			LoadBalancingWeight: u32(cmp.Or(e.Weight, 1)),
		})
	}
	return &endpointv3.ClusterLoadAssignment{ClusterName: c.Name, Endpoints: g.localities(nil)}
}

func oneEndpoint(cluster string, a *corev3.Address) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{ClusterName: cluster, Endpoints: []*endpointv3.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}},
		}},
	}}}
}
