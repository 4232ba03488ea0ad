// Package resolve computes what a proxy is told and what authors of objects are
// told: which listeners work, which routes attach where, which rules a service
// port has, where requests go and by which policy. Package layer7 calls it, once
// for each part that may have changed.
//
// What always holds: functions are pure but for the Reader's notes of what they
// asked; the same objects give the same output, whatever the order in which they
// came; every reference of the output is resolved. What cannot be resolved is
// answered with an error by the proxy and never falls through to another rule,
// and the object's condition says which part it was and why.
//
// It keeps nothing between calls and does not write Envoy's configuration
// (waypoint/config does).
package resolve

import (
	"cmp"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Target is the proxy that something is computed for.
type Target struct {
	model.Key
	Waypoint bool
	// Gateway is set for a Gateway of the Gateway API.
	Gateway *model.Gateway
	// Labels are those of the proxy's pods, by which policies and Istio's Gateways choose it.
	Labels map[string]string
	// ServiceAccount of its pods.
	ServiceAccount string
	// From is where its pods are, Services the names of the Services in front of them.
	From     model.Locality
	Services []model.Key
}

// Output is one part of a proxy's configuration, with what the proxy must hold for it.
type Output struct {
	Scopes []model.Scope
	Tables []*model.RouteTable
	Ports  []model.ProxyPort
	// TableNames are the route tables that Ports refer to.
	TableNames []string
	// Clusters are the names of those that are referred to, in order, each once.
	Clusters []string
	JWT      []model.JWTRequirement
	ExtAuthz []model.ExtAuthzCluster
	Limits   []model.RateLimitCluster
}

// builder computes one Output.
type builder struct {
	r        *index.Reader
	t        Target
	clusters map[string]bool
	jwt      map[string]model.JWTRequirement
	extAuthz map[string]model.ExtAuthzCluster
	limits   map[string]model.RateLimitCluster
}

func newBuilder(r *index.Reader, t Target) *builder {
	return &builder{
		r: r, t: t, clusters: map[string]bool{}, jwt: map[string]model.JWTRequirement{},
		extAuthz: map[string]model.ExtAuthzCluster{}, limits: map[string]model.RateLimitCluster{},
	}
}

// finish adds to an output what the builder collected beside it.
func (b *builder) finish(out Output) Output {
	out.Clusters = sortedKeys(b.clusters)
	for _, k := range sortedKeys(b.jwt) {
		out.JWT = append(out.JWT, b.jwt[k])
	}
	for _, k := range sortedKeys(b.extAuthz) {
		out.ExtAuthz = append(out.ExtAuthz, b.extAuthz[k])
	}
	for _, k := range sortedKeys(b.limits) {
		out.Limits = append(out.Limits, b.limits[k])
	}
	return out
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// condition makes a verdict.
func condition(kind, reason, message string, ok bool) model.Condition {
	return model.Condition{Type: kind, Reason: reason, Message: message, OK: ok}
}

// join lists messages, each once, in order.
func join(messages []string) string {
	slices.Sort(messages)
	return strings.Join(slices.Compact(messages), "; ")
}
