package route

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/route/match"
)

// authzTimeout bounds the question to a server if the provider says nothing (Istio's default).
const authzTimeout = 600 * time.Second

// provider writes the filter that asks an external server about the requests that the RBAC filter before it has noted.
func provider(e *model.ExtAuthzCluster) *authzv3.ExtAuthz {
	out := &authzv3.ExtAuthz{
		TransportApiVersion: corev3.ApiVersion_V3,
		FailureModeAllow:    e.FailOpen,
		WithRequestBody:     body(&e.ExtAuthz),
		FilterEnabledMetadata: match.Metadata(rbacMetadata, []string{customPrefix(e.Name) + matchedPolicy},
			match.Present()),
		AllowedHeaders: headerPatterns(e.IncludeHeaders),
	}
	if e.StatusOnError != 0 {
		out.StatusOnError = &typev3.HttpStatus{Code: typev3.StatusCode(e.StatusOnError)}
	}
	if e.GRPC {
		out.Services = &authzv3.ExtAuthz_GrpcService{GrpcService: authzGRPC(&e.ExtAuthz, e.Cluster)}
	} else {
		out.Services = &authzv3.ExtAuthz_HttpService{HttpService: authzHTTP(&e.ExtAuthz, e.Cluster)}
	}
	return out
}

// routeAuthz is off unless a route names a server. Without one it would refuse everything.
func routeAuthz() *authzv3.ExtAuthz {
	return &authzv3.ExtAuthz{
		TransportApiVersion: corev3.ApiVersion_V3,
		// Routes cannot choose headers: the server sees what the backend will see.
		AllowedHeaders: &matcherv3.ListStringMatcher{Patterns: []*matcherv3.StringMatcher{match.Regex(".*")}},
		Services:       &authzv3.ExtAuthz_HttpService{HttpService: authzHTTP(&model.ExtAuthz{}, noCluster)},
	}
}

// externalAuth names the server that a rule asks.
func externalAuth(e *model.ExtAuthz, cluster string) (*authzv3.ExtAuthzPerRoute, error) {
	if cluster == "" {
		return nil, fmt.Errorf("ask authorization server %q: it has no cluster", e.Backend.Host)
	}
	s := &authzv3.CheckSettings{WithRequestBody: body(e)}
	if e.GRPC {
		s.ServiceOverride = &authzv3.CheckSettings_GrpcService{GrpcService: authzGRPC(e, cluster)}
	} else {
		s.ServiceOverride = &authzv3.CheckSettings_HttpService{HttpService: authzHTTP(e, cluster)}
	}
	return &authzv3.ExtAuthzPerRoute{Override: &authzv3.ExtAuthzPerRoute_CheckSettings{CheckSettings: s}}, nil
}

func authzGRPC(e *model.ExtAuthz, cluster string) *corev3.GrpcService {
	out := &corev3.GrpcService{
		Timeout: durationpb.New(cmp.Or(e.Timeout, authzTimeout)),
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
			ClusterName: cluster, Authority: e.Backend.Host,
		}},
	}
	for _, h := range e.AddHeaders {
		out.InitialMetadata = append(out.InitialMetadata, &corev3.HeaderValue{Key: h.Name, Value: h.Value})
	}
	return out
}

func authzHTTP(e *model.ExtAuthz, cluster string) *authzv3.HttpService {
	out := &authzv3.HttpService{
		ServerUri: &corev3.HttpUri{
			// The cluster decides where to; the URI must be there.
			Uri: "http://" + cmp.Or(e.Backend.Host, "none"), Timeout: durationpb.New(cmp.Or(e.Timeout, authzTimeout)),
			HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster},
		},
		PathPrefix: strings.TrimRight(e.PathPrefix, "/"),
	}
	if len(e.AddHeaders) > 0 {
		out.AuthorizationRequest = &authzv3.AuthorizationRequest{}
		for _, h := range e.AddHeaders {
			out.AuthorizationRequest.HeadersToAdd = append(out.AuthorizationRequest.HeadersToAdd, &corev3.HeaderValue{Key: h.Name, Value: h.Value})
		}
	}
	if len(e.ToUpstreamOnAllow)+len(e.ToDownstreamOnDeny)+len(e.ToDownstreamOnAllow) > 0 {
		out.AuthorizationResponse = &authzv3.AuthorizationResponse{
			AllowedUpstreamHeaders:        headerPatterns(e.ToUpstreamOnAllow),
			AllowedClientHeaders:          headerPatterns(e.ToDownstreamOnDeny),
			AllowedClientHeadersOnSuccess: headerPatterns(e.ToDownstreamOnAllow),
		}
	}
	return out
}

// headerPatterns matches names of headers.
func headerPatterns(patterns []string) *matcherv3.ListStringMatcher {
	if len(patterns) == 0 {
		return nil
	}
	out := &matcherv3.ListStringMatcher{}
	for _, p := range patterns {
		out.Patterns = append(out.Patterns, match.Pattern(p, true))
	}
	return out
}

func body(e *model.ExtAuthz) *authzv3.BufferSettings {
	if e.Body == 0 {
		return nil
	}
	return &authzv3.BufferSettings{MaxRequestBytes: e.Body, AllowPartialMessage: e.BodyPartial, PackAsBytes: e.BodyBytes}
}
