package names

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	dfpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// dnsCache names the cache of names that requests themselves bring.
	dnsCache = "dynamic"
	// dnsCacheHosts bounds that cache: a client can ask for any name below a wildcard, and each takes some KiB.
	dnsCacheHosts = 1024
	// dnsCacheTTL is how long a name that nobody asks for is kept, Envoy's default.
	dnsCacheTTL = 5 * time.Minute
)

// DynamicDNS is the cache that a dynamic forward proxy's cluster and its HTTP filter share: Envoy wants the two to
// be equal to the letter.
func DynamicDNS() *dfpv3.DnsCacheConfig {
	return &dfpv3.DnsCacheConfig{
		Name:            dnsCache,
		DnsLookupFamily: clusterv3.Cluster_V4_PREFERRED,
		MaxHosts:        wrapperspb.UInt32(dnsCacheHosts),
		HostTtl:         durationpb.New(dnsCacheTTL),
	}
}
