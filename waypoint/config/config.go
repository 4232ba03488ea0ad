package config

import (
	"fmt"
	"net/netip"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route"
)

// Resource is one xDS resource. Type is the full type URL.
type Resource struct {
	Type, Name string
	Message    proto.Message
	// Problems are parts that could not be written; the message says instead what Envoy has to answer in their place.
	Problems []error
}

// RouteTable writes one RDS resource.
func RouteTable(p *model.Proxy, t *model.RouteTable) ([]Resource, error) {
	table, problems := route.Build(p, t)
	out := Resource{Type: names.TypeRoute, Name: t.Name, Message: table}
	for _, problem := range problems {
		out.Problems = append(out.Problems, problem)
	}
	return []Resource{out}, nil
}

// builder collects resources, and the first error of packing a message: a string that is not UTF-8 cannot be sent.
type builder struct {
	proxy *model.Proxy
	out   []Resource
	seen  map[[2]string]bool
	err   error
}

func newBuilder(p *model.Proxy) *builder {
	return &builder{proxy: p, seen: map[[2]string]bool{}}
}

// add appends a resource once.
func (b *builder) add(typ, name string, m proto.Message) {
	key := [2]string{typ, name}
	if b.seen[key] {
		return
	}
	b.seen[key] = true
	b.out = append(b.out, Resource{Type: typ, Name: name, Message: m})
}

// fail keeps the first error.
func (b *builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// result returns what was built, or the error.
func (b *builder) result(kind, name string) ([]Resource, error) {
	if b.err != nil {
		return nil, fmt.Errorf("write %s %q: %w", kind, name, b.err)
	}
	return b.out, nil
}

// pack wraps a message. Equal messages give equal bytes.
func (b *builder) pack(m proto.Message) *anypb.Any {
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		b.fail(fmt.Errorf("pack %s: %w", m.ProtoReflect().Descriptor().Name(), err))
	}
	return a
}

// extension names a typed configuration.
func (b *builder) extension(name string, m proto.Message) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: name, TypedConfig: b.pack(m)}
}

func (b *builder) socket(name string, m proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: name, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.pack(m)}}
}

// spiffeID is the proxy's own.
func spiffeID(p *model.Proxy) string {
	return "spiffe://" + p.TrustDomain + "/ns/" + p.Namespace + "/sa/" + p.ServiceAccount
}

func duration(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

// durationOrNil leaves Envoy's default for 0.
func durationOrNil(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func u32(n uint32) *wrapperspb.UInt32Value { return wrapperspb.UInt32(n) }

// u32OrNil leaves Envoy's default for 0.
func u32OrNil(n uint32) *wrapperspb.UInt32Value {
	if n == 0 {
		return nil
	}
	return wrapperspb.UInt32(n)
}

func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

func socketAddress(a netip.AddrPort) *corev3.Address { return hostAddress(a.Addr().String(), a.Port()) }

func hostAddress(host string, port uint16) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

func internalAddress(listener, id string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
		AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: listener},
		EndpointId:           id,
	}}}
}

// textMetadata leaves empty values out; it is nil if nothing is left.
func textMetadata(values map[string]string) *structpb.Struct {
	s := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for k, v := range values {
		if v != "" {
			s.Fields[k] = structpb.NewStringValue(v)
		}
	}
	if len(s.Fields) == 0 {
		return nil
	}
	return s
}
