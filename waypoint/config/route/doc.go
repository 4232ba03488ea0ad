// Package route writes the HTTP side of a proxy: route tables from the resolved
// rules of istiod's model, the filter chain that they rely on, and network filters
// that enforce policy on connections without requests. waypoint/config calls it.
//
// It is pure and deterministic: equal input gives equal bytes. The filter chain is
// the same for all tables of a proxy, and what differs between hosts and rules is
// configuration per route, so that a service's change does not touch listeners. A
// rule that Envoy could not load is answered with 500 and reported by Build; the
// rules beside it are not disturbed. Where policy cannot be written, requests are
// refused.
//
// Subpackages: match (comparisons), rbac (AuthorizationPolicy), ratelimit. It
// resolves nothing: which rules, clusters and policies apply is decided before.
package route
