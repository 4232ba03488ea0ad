package route

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
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
		ClearRouteCache:     e.ClearRouteCache,
		FilterEnabledMetadata: match.Metadata(rbacMetadata, []string{customPrefix(e.Name) + matchedPolicy},
			match.Present()),
		AllowedHeaders: headerPatterns(e.IncludeHeaders),
	}
	// Envoy knows some statuses and no others; its default is 403.
	if _, known := typev3.StatusCode_name[int32(e.StatusOnError)]; known && e.StatusOnError != 0 {
		out.StatusOnError = &typev3.HttpStatus{Code: typev3.StatusCode(e.StatusOnError)}
	}
	if e.GRPC {
		out.Services = &authzv3.ExtAuthz_GrpcService{GrpcService: authzGRPC(&e.ExtAuthz, e.Cluster)}
	} else {
		out.Services = &authzv3.ExtAuthz_HttpService{HttpService: authzHTTP(&e.ExtAuthz, e.Cluster)}
	}
	return out
}

// authServer finds the server of a rule in the filter chain.
func (b *builder) authServer(e *model.ExtAuthz, cluster string) (string, error) {
	for _, there := range b.proxy.HTTP.ExtAuthz {
		if cluster != "" && there.Cluster == cluster && (e.Name == "" || e.Name == there.Name) && e.GRPC == there.GRPC {
			return there.Name, nil
		}
	}
	return "", fmt.Errorf("ask authorization server %q: it is not in the filter chain", e.Backend.Host)
}

// askAlways has a server asked about every request.
func askAlways(name string) *rbachttpv3.RBACPerRoute {
	return &rbachttpv3.RBACPerRoute{Rbac: &rbachttpv3.RBAC{
		ShadowRulesStatPrefix: customPrefix(name),
		ShadowRules: &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{"route": {
			Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}},
			Principals:  []*rbacv3.Principal{{Identifier: &rbacv3.Principal_Any{Any: true}}},
		}}},
	}}
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
