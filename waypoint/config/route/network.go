package route

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	rbacnetv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/route/match"
	"github.com/ambit-mesh/ambit/waypoint/config/route/rbac"
)

const (
	filterNetworkRBAC  = "envoy.filters.network.rbac"
	filterNetworkAuthz = "envoy.filters.network.ext_authz"
	networkStatPrefix  = "tcp." // as Istio's
)

// NetworkAuthz writes filters that enforce policies on connections, in the order that HTTP has. Of rules that need a
// request, those that allow do not apply, and of the others the rest holds: a mistake refuses. Servers that speak
// HTTP only are not asked about connections (as in Istio).
func NetworkAuthz(p *model.Proxy, authz []*model.Authorization) ([]*listenerv3.Filter, error) {
	o := rbacOptions(p)
	o.TCP = true
	r := rbac.Build(authz, o)
	n := &network{}
	for _, c := range r.Custom {
		for i := range p.HTTP.ExtAuthz {
			if e := &p.HTTP.ExtAuthz[i]; e.Name == c.Provider && e.GRPC {
				n.rbac(nil, c.Rules, customPrefix(e.Name))
				n.add(filterNetworkAuthz, networkProvider(e))
				break
			}
		}
	}
	n.rbac(r.Audit, r.DryCustom, dryCustomPrefix)
	n.rbac(r.Deny, r.DryDeny, dryDenyPrefix)
	n.rbac(r.Allow, r.DryAllow, dryAllowPrefix)
	return n.filters, n.err
}

type network struct {
	filters []*listenerv3.Filter
	err     error
}

func (n *network) add(name string, m proto.Message) {
	any, err := pack(m)
	if err != nil && n.err == nil {
		n.err = err
	}
	n.filters = append(n.filters, &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: any}})
}

func (n *network) rbac(rules, shadow *rbacv3.RBAC, prefix string) {
	if rules == nil && shadow == nil {
		return
	}
	f := &rbacnetv3.RBAC{StatPrefix: networkStatPrefix, Rules: rules, ShadowRules: shadow}
	if shadow != nil {
		f.ShadowRulesStatPrefix = prefix
	}
	n.add(filterNetworkRBAC, f)
}

// networkProvider asks a server about connections that the filter before it has noted.
func networkProvider(e *model.ExtAuthzCluster) *authzv3.ExtAuthz {
	return &authzv3.ExtAuthz{
		StatPrefix:            networkStatPrefix,
		FailureModeAllow:      e.FailOpen,
		TransportApiVersion:   corev3.ApiVersion_V3,
		GrpcService:           authzGRPC(&e.ExtAuthz, e.Cluster),
		FilterEnabledMetadata: match.Metadata(filterNetworkRBAC, []string{customPrefix(e.Name) + matchedPolicy}, match.Present()),
	}
}
