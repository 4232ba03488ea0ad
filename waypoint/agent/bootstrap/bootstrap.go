// Package bootstrap makes what Envoy is started with: who it is, where its
// configuration comes from, which statistics it keeps and how much it may take on.
// The agent writes it to a file before it starts Envoy.
//
// It always holds that Envoy gets everything else over one unix socket (ADS, which
// the agent relays to istiod, and the agent's own SDS), that its admin pages bind
// loopback, and that there is no secret in it.
//
// It names no listener and no service: istiod does.
package bootstrap

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

const (
	// connectTimeout bounds a connect to the agent's socket, which is local.
	connectTimeout = time.Second
	// retryBase and retryMax bound Envoy's wait before it opens its stream anew. The relay behind the socket has its
	// own, so this one only keeps Envoy from spinning.
	retryBase = 200 * time.Millisecond
	retryMax  = 5 * time.Second
	// maxStreams bounds streams to the agent: one for ADS and one for each listener and cluster that uses SDS.
	maxStreams = 100_000
	// internalBufferKB is how much an internal connection holds in each direction, Istio's value: bytes pass two of
	// them, and more only delays the sender's knowing that the receiver is slow.
	internalBufferKB = 64
	// regexProgramSize bounds compiled regular expressions, Istio's value: Envoy's own (100) refuses ordinary routes.
	regexProgramSize = 32768
)

// Config says who the proxy is and what it may use.
type Config struct {
	// Kind is "waypoint" or "router"; with IP, Pod, Namespace and Domain it makes the node's id.
	Kind, IP, Pod, Namespace, Domain                      string
	Gateway, ServiceAccount, ClusterID, Network, NodeName string
	Labels                                                map[string]string
	// Socket is the agent's.
	Socket string
	// Admin is where Envoy's admin pages are; it must be loopback.
	Admin netip.AddrPort
	// MaxConnections from outside, MemoryLimit in bytes (0 is none).
	MaxConnections int64
	MemoryLimit    uint64
	// StatsPrefixes keep further statistics.
	StatsPrefixes []string
	// JSON makes Envoy log JSON.
	JSON bool
}

// New makes the bootstrap.
func New(c Config) (*bootstrapv3.Bootstrap, error) {
	if !c.Admin.Addr().IsLoopback() {
		return nil, fmt.Errorf("make bootstrap: admin address %q is not loopback", c.Admin)
	}
	if c.MaxConnections <= 0 {
		return nil, fmt.Errorf("make bootstrap: %d connections would be allowed", c.MaxConnections)
	}
	node, err := c.node()
	if err != nil {
		return nil, err
	}
	var errs []error
	pack := func(m proto.Message) *anypb.Any {
		a, err := anypb.New(m)
		errs = append(errs, err)
		return a
	}
	overload := c.overload(pack)
	b := &bootstrapv3.Bootstrap{
		Node: node,
		Admin: &bootstrapv3.Admin{
			Address: socketAddress(c.Admin), IgnoreGlobalConnLimit: true, // an overloaded proxy must still be seen and drained
		},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			AdsConfig: ads(), LdsConfig: overADS(), CdsConfig: overADS(),
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{agentCluster(c.Socket, pack)}},
		BootstrapExtensions: []*corev3.TypedExtensionConfig{{
			Name:        "envoy.bootstrap.internal_listener",
			TypedConfig: pack(&internalv3.InternalListener{BufferSizeKb: wrapperspb.UInt32(internalBufferKB)}),
		}},
		StatsConfig: stats(c.StatsPrefixes),
		// Counters of a cluster exist once it has traffic: most of a thousand never do in one replica.
		DeferredStatOptions:  &bootstrapv3.Bootstrap_DeferredStatOptions{EnableDeferredCreationStats: true},
		OverloadManager:      overload,
		ApplicationLogConfig: logFormat(c.JSON),
	}
	if b.LayeredRuntime, err = runtime(); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("make bootstrap: %w", err)
	}
	if err := b.ValidateAll(); err != nil {
		return nil, fmt.Errorf("make bootstrap: %w", err)
	}
	return b, nil
}

// node is who istiod is told that Envoy is. Istio's form, with the gateway's name, by which istiod finds what it serves.
func (c Config) node() (*corev3.Node, error) {
	labels := map[string]any{}
	for k, v := range c.Labels {
		labels[k] = v
	}
	md, err := structpb.NewStruct(map[string]any{
		"NAMESPACE": c.Namespace, "NAME": c.Pod, "GATEWAY_NAME": c.Gateway, "SERVICE_ACCOUNT": c.ServiceAccount,
		"CLUSTER_ID": c.ClusterID, "NODE_NAME": c.NodeName, "NETWORK": c.Network, "INSTANCE_IPS": c.IP, "LABELS": labels,
	})
	if err != nil {
		return nil, fmt.Errorf("make node metadata of %q: %w", c.Pod, err)
	}
	return &corev3.Node{
		Id:       fmt.Sprintf("%s~%s~%s.%s~%s.svc.%s", c.Kind, c.IP, c.Pod, c.Namespace, c.Namespace, c.Domain),
		Cluster:  c.Gateway + "." + c.Namespace,
		Metadata: md,
	}, nil
}

func ads() *corev3.ApiConfigSource {
	return &corev3.ApiConfigSource{
		ApiType: corev3.ApiConfigSource_DELTA_GRPC, TransportApiVersion: corev3.ApiVersion_V3, SetNodeOnFirstMessageOnly: true,
		GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
			ClusterName: names.XDS,
			RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
				BaseInterval: durationpb.New(retryBase), MaxInterval: durationpb.New(retryMax),
			}},
		}}}},
	}
}

// overADS waits for the first answer as long as it takes: an Envoy that is live without configuration would be ready to
// refuse everything.
func overADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion: corev3.ApiVersion_V3, InitialFetchTimeout: durationpb.New(0),
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

func agentCluster(socket string, pack func(proto.Message) *anypb.Any) *clusterv3.Cluster {
	var limits []*clusterv3.CircuitBreakers_Thresholds
	for _, p := range []corev3.RoutingPriority{corev3.RoutingPriority_DEFAULT, corev3.RoutingPriority_HIGH} {
		limits = append(limits, &clusterv3.CircuitBreakers_Thresholds{
			Priority: p, MaxConnections: wrapperspb.UInt32(maxStreams), MaxPendingRequests: wrapperspb.UInt32(maxStreams), MaxRequests: wrapperspb.UInt32(maxStreams),
		})
	}
	return &clusterv3.Cluster{
		Name: names.XDS, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout: durationpb.New(connectTimeout), CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: limits},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(&httpv3.HttpProtocolOptions{
				UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
					ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
				}},
			}),
		},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: names.XDS,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
					Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: socket}}},
				}},
			}}}},
		},
	}
}

func socketAddress(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

func runtime() (*bootstrapv3.LayeredRuntime, error) {
	static, err := structpb.NewStruct(map[string]any{"re2.max_program_size.error_level": regexProgramSize})
	if err != nil {
		return nil, fmt.Errorf("make runtime: %w", err)
	}
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{
		{Name: "mesh", LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: static}},
		{Name: "admin", LayerSpecifier: &bootstrapv3.RuntimeLayer_AdminLayer_{AdminLayer: &bootstrapv3.RuntimeLayer_AdminLayer{}}},
	}}, nil
}

// logFormat makes Envoy's log lines like the agent's.
func logFormat(json bool) *bootstrapv3.Bootstrap_ApplicationLogConfig {
	f := &bootstrapv3.Bootstrap_ApplicationLogConfig_LogFormat{
		LogFormat: &bootstrapv3.Bootstrap_ApplicationLogConfig_LogFormat_TextFormat{
			TextFormat: `time=%Y-%m-%dT%T.%eZ level=%l scope=envoy.%n msg="%j"`,
		},
	}
	if json {
		fields := &structpb.Struct{Fields: map[string]*structpb.Value{
			"time": structpb.NewStringValue("%Y-%m-%dT%T.%eZ"), "level": structpb.NewStringValue("%l"),
			"scope": structpb.NewStringValue("envoy.%n"), "msg": structpb.NewStringValue("%j"),
		}}
		f.LogFormat = &bootstrapv3.Bootstrap_ApplicationLogConfig_LogFormat_JsonFormat{JsonFormat: fields}
	}
	return &bootstrapv3.Bootstrap_ApplicationLogConfig{LogFormat: f}
}

// Write stores b as JSON at path, at once or not at all.
func Write(path string, b *bootstrapv3.Bootstrap) error {
	text, err := protojson.MarshalOptions{Multiline: true, Indent: " ", UseProtoNames: true}.Marshal(b)
	if err != nil {
		return fmt.Errorf("encode bootstrap: %w", err)
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	return nil
}
