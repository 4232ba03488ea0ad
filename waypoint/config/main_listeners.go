package config

import (
	"time"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route"
)

const (
	chainHTTP    = "http"
	chainTCP     = "tcp"
	chainUnknown = "unknown"
)

// shareSource is the first filter of every chain from which tunnels are opened: it shares the source with the next
// internal listener, as sourceGuard explains.
func (b *builder) shareSource(more ...*statev3.FilterStateValue) *listenerv3.Filter {
	return b.stateFilter("ambit.filters.network.source", append([]*statev3.FilterStateValue{sourceGuard(names.StatePeer)}, more...)...)
}

// httpChain serves requests of any service port.
func (b *builder) httpChain(prefix string) *listenerv3.FilterChain {
	m := b.manager(prefix)
	scoped(m)
	return &listenerv3.FilterChain{Name: chainHTTP, Filters: []*listenerv3.Filter{b.shareSource(), b.managerFilter(m)}}
}

// mainHTTP has no inspector: the service says that the port speaks HTTP.
func (b *builder) mainHTTP() *listenerv3.Listener {
	return b.internalListener(names.MainHTTP, b.httpChain(names.MainHTTP))
}

// mainTCP has no inspector either: the server may speak first, so nothing may wait for the client's bytes.
func (b *builder) mainTCP() *listenerv3.Listener {
	l := b.internalListener(names.MainTCP)
	l.FilterChainMatcher = b.tcpChains(l, model.ScopeTCP)
	return l
}

// mainAuto waits for the client's first bytes and then knows.
func (b *builder) mainAuto() *listenerv3.Listener {
	l := b.internalListener(names.MainAuto, b.httpChain(names.MainAuto))
	b.inspect(l)
	l.FilterChainMatcher = b.matchHTTP(b.tcpChains(l, model.ScopeAuto))
	return l
}

// inspect finds out whether a connection speaks HTTP.
func (b *builder) inspect(l *listenerv3.Listener) {
	l.ListenerFilters = append(l.ListenerFilters, &listenerv3.ListenerFilter{
		Name:       "envoy.filters.listener.http_inspector",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.pack(&inspectorv3.HttpInspector{})},
	})
	l.ListenerFiltersTimeout = duration(detectTimeout)
	l.ContinueOnListenerFiltersTimeout = true
}

// tcpChains adds a chain for every service port of a kind, and a last one that refuses; it returns how they are chosen.
// A change here replaces chains in place: connections of the others go on.
func (b *builder) tcpChains(l *listenerv3.Listener, kind model.ScopeKind) *xdsmatcher.Matcher {
	chains := map[string]*xdsmatcher.Matcher_OnMatch{}
	named := map[string]bool{}
	for i := range b.proxy.Scopes {
		s := &b.proxy.Scopes[i]
		if s.Kind != kind {
			continue
		}
		if name := chainTCP + "/" + s.Name; !named[name] {
			named[name] = true
			late := kind == model.ScopeAuto || s.TCP != nil && b.judgedLate(s.TCP.Authz)
			l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{
				Name: name, Filters: append([]*listenerv3.Filter{b.shareSource()}, b.forward(s.TCP, late)...),
			})
		}
		for _, a := range s.Authorities {
			if _, taken := chains[a]; !taken {
				chains[a] = b.toChain(chainTCP + "/" + s.Name)
			}
		}
	}
	l.DefaultFilterChain = &listenerv3.FilterChain{Name: chainUnknown, Filters: b.refuse()}
	if len(chains) == 0 {
		// Envoy wants a matcher to match something.
		chains[chainUnknown] = b.toChain(chainUnknown)
	}
	return b.matchExactly("authority", &networkv3.FilterStateInput{Key: names.StateAuthority}, chains, nil)
}

// matchHTTP chooses the chain of HTTP, else what the other matcher says.
func (b *builder) matchHTTP(otherwise *xdsmatcher.Matcher) *xdsmatcher.Matcher {
	onHTTP := map[string]*xdsmatcher.Matcher_OnMatch{}
	for _, protocol := range []string{"'http/1.0'", "'http/1.1'", "'h2c'"} {
		onHTTP[protocol] = b.toChain(chainHTTP)
	}
	var rest *xdsmatcher.Matcher_OnMatch
	if otherwise != nil {
		rest = &xdsmatcher.Matcher_OnMatch{OnMatch: &xdsmatcher.Matcher_OnMatch_Matcher{Matcher: otherwise}}
	} else {
		rest = b.toChain(chainTCP)
	}
	return b.matchExactly("protocol", &networkv3.ApplicationProtocolInput{}, onHTTP, rest)
}

func (b *builder) matchExactly(name string, input proto.Message, on map[string]*xdsmatcher.Matcher_OnMatch, otherwise *xdsmatcher.Matcher_OnMatch) *xdsmatcher.Matcher {
	return &xdsmatcher.Matcher{
		MatcherType: &xdsmatcher.Matcher_MatcherTree_{MatcherTree: &xdsmatcher.Matcher_MatcherTree{
			Input: &xdscore.TypedExtensionConfig{Name: name, TypedConfig: b.pack(input)},
			TreeType: &xdsmatcher.Matcher_MatcherTree_ExactMatchMap{
				ExactMatchMap: &xdsmatcher.Matcher_MatcherTree_MatchMap{Map: on},
			},
		}},
		OnNoMatch: otherwise,
	}
}

func (b *builder) toChain(name string) *xdsmatcher.Matcher_OnMatch {
	return &xdsmatcher.Matcher_OnMatch{OnMatch: &xdsmatcher.Matcher_OnMatch_Action{
		Action: &xdscore.TypedExtensionConfig{Name: "chain", TypedConfig: b.pack(wrapperspb.String(name))},
	}}
}

// direct serves workloads by their own address: the connection goes on to the address it was made for, which must
// answer as the workload that connectRoutes names.
func (b *builder) direct() {
	share := func() *listenerv3.Filter {
		upstream := sourceGuard(names.StateUpstreamPeer)
		return b.shareSource(upstream, stateValue(names.OriginalLocal, filterState(names.OriginalLocal)))
	}
	m := b.manager(names.MainDirect)
	table(m, names.RouteDirect)
	tcp := &tcpv3.TcpProxy{
		StatPrefix:       names.MainDirect,
		ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: names.Encap},
		AccessLog:        append(b.connectionLogs(), b.tcpMetrics()...),
	}
	l := b.internalListener(names.MainDirect,
		&listenerv3.FilterChain{Name: chainHTTP, Filters: []*listenerv3.Filter{share(), b.managerFilter(m)}},
		&listenerv3.FilterChain{Name: chainTCP, Filters: append([]*listenerv3.Filter{share()}, b.guarded(b.proxy.DirectPolicy.Authz, tcp, true)...)},
	)
	b.inspect(l)
	l.FilterChainMatcher = b.matchHTTP(nil)
	b.listener(l)
	b.cluster(b.toInternal(names.MainDirect, names.MainDirect))

	encap := b.toInternal(names.Encap, names.ConnectOriginate)
	encap.TypedExtensionProtocolOptions = b.protocol(&upstreamhttpv3.HttpProtocolOptions{UpstreamProtocolOptions: clientsProtocol()})
	b.cluster(encap)

	routes, err := route.Table(b.proxy, directTable(b.proxy))
	if err != nil {
		b.fail(err)
		return
	}
	b.add(names.TypeRoute, names.RouteDirect, routes)
}

// directTable sends every request on; what is checked before is the policy of workloads.
func directTable(p *model.Proxy) *model.RouteTable {
	var none time.Duration
	return &model.RouteTable{Name: names.RouteDirect, Hosts: []model.VirtualHost{{
		Name: names.RouteDirect, Domains: []string{"*"}, Policy: p.DirectPolicy,
		Rules: []model.RouteRule{{
			Name:     names.RouteDirect,
			Action:   model.HTTPRule{Timeout: &none},
			Clusters: []model.RouteCluster{{WeightedCluster: model.WeightedCluster{Cluster: names.Encap, Weight: 1}}},
		}},
	}}}
}
