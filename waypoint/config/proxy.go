package config

import (
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// Proxy writes what a proxy has apart from services: its listeners, the clusters between them, the route table that
// takes tunnels apart, and the secrets of a gateway's certificates.
func Proxy(p *model.Proxy) ([]Resource, error) {
	b := newBuilder(p)
	if p.Waypoint {
		b.waypoint()
	} else {
		b.gateway()
	}
	b.listener(b.originateListener())
	b.cluster(b.originateCluster())
	return b.result("proxy", p.Key.String())
}

// Scope writes the SRDS resources of a service port, one per authority. A port without HTTP has none.
func Scope(_ *model.Proxy, s *model.Scope) []Resource {
	if s.Kind == model.ScopeTCP {
		return nil
	}
	var out []Resource
	taken := map[string]bool{}
	for _, a := range s.Authorities {
		if taken[a] {
			continue
		}
		taken[a] = true
		name := s.Name + "@" + a
		out = append(out, Resource{Type: names.TypeScopedRoute, Name: name, Message: &routev3.ScopedRouteConfiguration{
			Name:                   name,
			RouteConfigurationName: s.Name,
			Key: &routev3.ScopedRouteConfiguration_Key{Fragments: []*routev3.ScopedRouteConfiguration_Key_Fragment{{
				Type: &routev3.ScopedRouteConfiguration_Key_Fragment_StringKey{StringKey: a},
			}}},
		}})
	}
	return out
}
