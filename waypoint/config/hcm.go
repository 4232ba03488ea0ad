package config

import (
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route"
)

const hcmFilter = "envoy.filters.network.http_connection_manager"

// manager is what every HTTP connection manager that serves requests has in common. The caller says where routes are.
func (b *builder) manager(prefix string) *hcmv3.HttpConnectionManager {
	filters, err := route.HTTPFilters(b.proxy)
	if err != nil {
		b.fail(err)
	}
	m := &hcmv3.HttpConnectionManager{
		StatPrefix:  prefix,
		HttpFilters: filters,
		AccessLog:   append(b.accessLogs(), b.httpMetrics()...),
		Tracing:     b.tracing(),
		// Extended CONNECT (RFC 8441) is how WebSockets come over HTTP/2.
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{AllowConnect: true},
		UpgradeConfigs:       []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		MaxRequestHeadersKb:  u32(maxHeadersKB),
		// Istio sets neither limit: streams may be silent for as long as their ends like. Routes have timeouts.
		StreamIdleTimeout:   duration(0),
		DelayedCloseTimeout: duration(delayedClose),
		// Istio's pathNormalization BASE, its default: RFC 3986 and nothing more, so that policy sees what the
		// application will see.
		NormalizePath: wrapperspb.Bool(true),
	}
	if b.proxy.Waypoint {
		b.waypointManager(m)
	} else {
		b.gatewayManager(m)
	}
	return m
}

// waypointManager serves pods. Who they are came with the tunnel; nothing that they say of themselves counts.
func (b *builder) waypointManager(m *hcmv3.HttpConnectionManager) {
	m.UseRemoteAddress = wrapperspb.Bool(false)
	m.ServerHeaderTransformation = hcmv3.HttpConnectionManager_PASS_THROUGH
	// Overwritten by the first HTTP filter, with the identities of the tunnel.
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY
	b.early(m, append(route.RemoveForgeries(),
		removeHeader(names.HeaderBaggage),
		overwriteHeader(names.HeaderAuthority, filterState(names.StateAuthority)),
	)...)
}

// gatewayManager serves the outside. The client's address is the connection's, as numTrustedProxies: 0 in Istio says.
func (b *builder) gatewayManager(m *hcmv3.HttpConnectionManager) {
	m.UseRemoteAddress = wrapperspb.Bool(true)
	m.ServerName = serverName
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
	m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
		Subject: wrapperspb.Bool(true), Cert: true, Dns: true, Uri: true,
	}
	b.early(m, route.RemoveForgeries()...)
}

// early edits headers before Envoy itself reads or adds any, and before the route is chosen.
func (b *builder) early(m *hcmv3.HttpConnectionManager, mutations ...*mutationv3.HeaderMutation) {
	m.EarlyHeaderMutationExtensions = []*corev3.TypedExtensionConfig{
		b.extension("envoy.http.early_header_mutation.header_mutation", &earlyv3.HeaderMutation{Mutations: mutations}),
	}
}

func removeHeader(name string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: name}}
}

func overwriteHeader(name, value string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Append{Append: setHeader(name, value)}}
}

func setHeader(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// scoped chooses the route table by the service port that the tunnel was opened for: so the listener does not know of
// services, and one more is one small message.
func scoped(m *hcmv3.HttpConnectionManager) {
	m.RouteSpecifier = &hcmv3.HttpConnectionManager_ScopedRoutes{ScopedRoutes: &hcmv3.ScopedRoutes{
		Name: names.ScopedRoutes,
		ScopeKeyBuilder: &hcmv3.ScopedRoutes_ScopeKeyBuilder{Fragments: []*hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder{{
			Type: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_{
				HeaderValueExtractor: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor{
					Name: names.HeaderAuthority,
					ExtractType: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_Index{
						Index: 0,
					},
				},
			},
		}}},
		RdsConfigSource: ads(),
		ConfigSpecifier: &hcmv3.ScopedRoutes_ScopedRds{ScopedRds: &hcmv3.ScopedRds{ScopedRdsConfigSource: ads()}},
	}}
}

// table takes routes from one RDS resource.
func table(m *hcmv3.HttpConnectionManager, name string) {
	m.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: name}}
}

func (b *builder) managerFilter(m *hcmv3.HttpConnectionManager) *listenerv3.Filter {
	return &listenerv3.Filter{Name: hcmFilter, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: b.pack(m)}}
}
