package ratelimit

import (
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratev3 "github.com/envoyproxy/go-control-plane/envoy/config/ratelimit/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	globalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	exprv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rate_limit_descriptors/expr/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// defaultTimeout bounds the question to the server if the limit says nothing: requests wait for it.
const defaultTimeout = 100 * time.Millisecond

// Name is that of the filter that asks a server.
func Name(c *model.RateLimitCluster) string {
	return names.FilterGlobalLimit + "." + c.Cluster + "." + c.Domain
}

// Find gives the server that a limit asks, or nil. Servers differ by where they are and by domain; how long they are
// waited for, and what happens without them, is the same for all limits that ask them.
func Find(servers []model.RateLimitCluster, g *model.GlobalLimit) *model.RateLimitCluster {
	for i := range servers {
		s := &servers[i]
		// Without a port, the server's only one is meant.
		a, b := s.Backend, g.Backend
		if a.Port == 0 || b.Port == 0 {
			a.Port, b.Port = 0, 0
		}
		a.Namespace, b.Namespace = "", ""
		if s.Cluster != "" && a == b && s.Domain == g.Domain {
			return s
		}
	}
	return nil
}

func timeout(g *model.GlobalLimit) time.Duration {
	if g.Timeout > 0 {
		return g.Timeout
	}
	return defaultTimeout
}

// Server writes the filter that asks a server. Without descriptors, which routes bring, it asks nothing.
func Server(c *model.RateLimitCluster) *globalv3.RateLimit {
	return &globalv3.RateLimit{
		Domain:                         c.Domain,
		Timeout:                        durationpb.New(timeout(&c.GlobalLimit)),
		FailureModeDeny:                !c.FailOpen,
		RateLimitedAsResourceExhausted: true,
		EnableXRatelimitHeaders:        globalv3.RateLimit_DRAFT_VERSION_03,
		RateLimitService: &ratev3.RateLimitServiceConfig{
			TransportApiVersion: corev3.ApiVersion_V3,
			GrpcService: &corev3.GrpcService{
				Timeout: durationpb.New(timeout(&c.GlobalLimit)),
				TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
					ClusterName: c.Cluster, Authority: c.Backend.Host,
				}},
			},
		},
	}
}

// Global writes what a server is asked. Envoy leaves out a descriptor whose header a request does not have.
func Global(limits []*model.GlobalLimit, waypoint bool) (*globalv3.RateLimitPerRoute, error) {
	out := &globalv3.RateLimitPerRoute{}
	for _, g := range limits {
		for i, d := range g.Descriptors {
			limit := &routev3.RateLimit{}
			for _, e := range d {
				a, err := entry(e, waypoint)
				if err != nil {
					return nil, fmt.Errorf("write descriptor %d of domain %q: %w", i, g.Domain, err)
				}
				limit.Actions = append(limit.Actions, a)
			}
			if len(limit.Actions) > 0 {
				out.RateLimits = append(out.RateLimits, limit)
			}
		}
	}
	return out, nil
}

// entry writes one entry of a descriptor.
func entry(e model.LimitEntry, waypoint bool) (*routev3.RateLimit_Action, error) {
	key := func(otherwise string) string {
		if e.Key != "" {
			return e.Key
		}
		return otherwise
	}
	switch {
	case e.Header != "":
		return requestHeader(key(e.Header), e.Header), nil
	case e.Path:
		return expression(key("path"), "request.url_path")
	case e.Method:
		return requestHeader(key("method"), ":method"), nil
	case e.SourcePrincipal && waypoint:
		return expression(key("source_principal"), stateExpression(names.StatePeer))
	case e.SourcePrincipal:
		return expression(key("source_principal"), "connection.uri_san_peer_certificate")
	case e.SourceAddress && waypoint:
		return expression(key(keyRemoteAddress), stateExpression(names.StateSourceIP))
	case e.SourceAddress && (e.Key == "" || e.Key == keyRemoteAddress):
		return remoteAddress(), nil
	case e.SourceAddress:
		return expression(e.Key, "source.address")
	case e.Value != "":
		return genericKey(key("generic_key"), e.Value), nil
	}
	return nil, fmt.Errorf("write entry %q: it has no source", e.Key)
}

// stateExpression reads filter state.
func stateExpression(key string) string { return fmt.Sprintf("filter_state[%q]", key) }

// expression takes a value from an expression in CEL.
func expression(key, text string) (*routev3.RateLimit_Action, error) {
	any, err := anypb.New(&exprv3.Descriptor{DescriptorKey: key, ExprSpecifier: &exprv3.Descriptor_Text{Text: text}})
	if err != nil {
		return nil, err
	}
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_Extension{Extension: &corev3.TypedExtensionConfig{
		Name: "envoy.rate_limit_descriptors.expr", TypedConfig: any,
	}}}, nil
}
