package config

import (
	"net/netip"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

const connectUpgrade = "CONNECT"

// terminateListener takes tunnels apart, and remembers of each who opened it and where to.
func (b *builder) terminateListener() *listenerv3.Listener {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix:           names.ConnectTerminate,
		CodecType:            hcmv3.HttpConnectionManager_HTTP2,
		StreamIdleTimeout:    duration(0),
		DelayedCloseTimeout:  duration(delayedClose),
		Http2ProtocolOptions: tunnelHTTP2(),
		UpgradeConfigs:       []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: connectUpgrade}},
		AccessLog:            b.failureLogs(),
		HttpFilters: append(b.sourceReader(),
			b.httpFilter("ambit.filters.http.tunnel_state", b.tunnelState()),
			// Without rules; routes bring them (see connectPolicy).
			b.httpFilter(names.FilterRBACDeny, &httprbacv3.RBAC{}),
			b.httpFilter(names.FilterRBACAllow, &httprbacv3.RBAC{}),
			b.httpFilter(names.FilterRouter, &routerv3.Router{}),
		),
	}
	table(m, names.RouteConnect)
	l := b.socketListener(names.ConnectTerminate, ports.HBONE)
	l.FilterChains = []*listenerv3.FilterChain{{
		Name: names.ConnectTerminate, TransportSocket: b.meshServerTLS(), Filters: []*listenerv3.Filter{b.managerFilter(m)},
	}}
	return l
}

func (b *builder) httpFilter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(m)}}
}

// tunnelState is all of it hashable: see sourceGuard.
func (b *builder) tunnelState() *httpstatev3.Config {
	state := func(key, format string) *statev3.FilterStateValue {
		v := stateValue(key, format)
		v.FactoryKey = names.HashableString
		return v
	}
	return &httpstatev3.Config{OnRequestHeaders: append([]*statev3.FilterStateValue{
		stateValue(names.OriginalLocal, "%REQ(:AUTHORITY)%"),
		stateValue(names.OriginalRemote, "%DOWNSTREAM_REMOTE_ADDRESS%"),
		state(names.StateAuthority, "%REQ(:AUTHORITY)%"),
		state(names.StatePeer, "%DOWNSTREAM_PEER_URI_SAN%"),
		state(names.StateLocal, "%DOWNSTREAM_LOCAL_URI_SAN%"),
		state(names.StateSourceIP, "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
		state(names.StateBaggage, "%REQ(baggage)%"),
		state(names.StateUpstreamPeer, routeMetadata(names.KeyPrincipal)),
	}, b.sourceState()...)}
}

// socketListener listens on the pod's addresses.
func (b *builder) socketListener(name string, port uint16) *listenerv3.Listener {
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	l := &listenerv3.Listener{
		Name: name, Address: socketAddress(netip.AddrPortFrom(any4, port)),
		// Connections are few and carry much: without this, the kernel may give all of them to one worker.
		ConnectionBalanceConfig: &listenerv3.Listener_ConnectionBalanceConfig{
			BalanceType: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance_{
				ExactBalance: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance{},
			},
		},
	}
	if f := b.proxy.Families; f == model.FamiliesV6 || f == model.FamiliesDual {
		l.Address = socketAddress(netip.AddrPortFrom(any6, port))
		l.Address.GetSocketAddress().Ipv4Compat = f == model.FamiliesDual
	}
	return l
}

// connectRoutes chooses the Main listener of a CONNECT. HTTP is where everything goes that is not listed, unless
// workloads are served too: scopes know all services, so what is none of them gets 404 there.
func (b *builder) connectRoutes() *routev3.RouteConfiguration {
	p := b.proxy
	byTarget := map[string][]string{}
	taken := map[string]bool{}
	out := &routev3.RouteConfiguration{Name: names.RouteConnect}
	for i := range p.Scopes {
		s := &p.Scopes[i]
		var domains []string
		for _, a := range s.Authorities {
			if a = strings.ToLower(a); !taken[a] {
				taken[a] = true
				domains = append(domains, a)
			}
		}
		target := mainListener(s.Kind)
		if s.Kind == model.ScopeTCP && len(domains) > 0 {
			if policy := b.connectPolicy(s.TCP); policy != nil {
				host := connectHost(target+"/"+s.Name, domains, target, "")
				host.TypedPerFilterConfig = policy
				out.VirtualHosts = append(out.VirtualHosts, host)
				continue
			}
		}
		byTarget[target] = append(byTarget[target], domains...)
	}
	for _, target := range []string{names.MainTCP, names.MainAuto} {
		if domains := byTarget[target]; len(domains) > 0 {
			slices.Sort(domains)
			out.VirtualHosts = append(out.VirtualHosts, connectHost(target, domains, target, ""))
		}
	}
	if p.Direct {
		// A headless service has the addresses of its workloads: where it has a port, it wins.
		if domains := byTarget[names.MainHTTP]; len(domains) > 0 {
			slices.Sort(domains)
			out.VirtualHosts = append(out.VirtualHosts, connectHost("services", domains, names.MainHTTP, ""))
		}
		for _, w := range p.Workloads {
			domain := directDomain(w.Address)
			if !taken[domain] {
				taken[domain] = true
				out.VirtualHosts = append(out.VirtualHosts, connectHost("workload/"+w.Address.String(), []string{domain}, names.MainDirect, w.Identity))
			}
		}
	}
	out.VirtualHosts = append(out.VirtualHosts, connectHost(names.MainHTTP, []string{"*"}, names.MainHTTP, ""))
	return out
}

// directDomain matches every port of an address. Services' own addresses are longer matches and win.
func directDomain(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]:*"
	}
	return a.String() + ":*"
}

func mainListener(k model.ScopeKind) string {
	switch k {
	case model.ScopeTCP:
		return names.MainTCP
	case model.ScopeAuto:
		return names.MainAuto
	default:
		return names.MainHTTP
	}
}

// connectHost ends the CONNECT of some authorities and sends the bytes to an internal listener.
func connectHost(name string, domains []string, cluster, principal string) *routev3.VirtualHost {
	r := &routev3.Route{
		Name:  name,
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
			Timeout:          duration(0),
			UpgradeConfigs: []*routev3.RouteAction_UpgradeConfig{{
				UpgradeType: connectUpgrade, ConnectConfig: &routev3.RouteAction_UpgradeConfig_ConnectConfig{},
			}},
		}},
	}
	if principal != "" {
		r.Metadata = metadata(names.MetadataMesh, textMetadata(map[string]string{names.KeyPrincipal: principal}))
	}
	return &routev3.VirtualHost{Name: name, Domains: domains, Routes: []*routev3.Route{r}}
}

func metadata(key string, s *structpb.Struct) *corev3.Metadata {
	if s == nil {
		return nil
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{key: s}}
}

// toInternal is the static cluster that leads to an internal listener, with the filter state that is shared.
func (b *builder) toInternal(name, listener string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       duration(tunnelConnectTimeout),
		LoadAssignment:       oneEndpoint(name, internalAddress(listener, "")),
		CircuitBreakers:      breakers(nil, nil),
		TransportSocket:      b.throughInternal(b.plain(), false),
	}
}

// waypoint adds what does not depend on the services' number, except for chains of TCP.
func (b *builder) waypoint() {
	b.listener(b.terminateListener())
	b.listener(b.mainHTTP())
	b.listener(b.mainAuto())
	b.listener(b.mainTCP())
	for _, name := range []string{names.MainHTTP, names.MainAuto, names.MainTCP} {
		b.cluster(b.toInternal(name, name))
	}
	if b.proxy.Direct {
		b.direct()
	}
	b.add(names.TypeRoute, names.RouteConnect, b.connectRoutes())
}

func (b *builder) listener(l *listenerv3.Listener) { b.add(names.TypeListener, l.Name, l) }
func (b *builder) cluster(c *clusterv3.Cluster)    { b.add(names.TypeCluster, c.Name, c) }
