// Package config writes what package istiod/layer7 decided for a waypoint or a
// gateway as Envoy's configuration. istiod's wiring calls it for every proxy and
// every part that changed; package route, below, writes the route tables.
//
// The layout (stock Envoy, no extension of ours):
//
//	a pod's ztunnel ─mTLS, CONNECT→ connect_terminate :15008
//	    route table "connect" chooses by authority:
//	      main_http    requests; scoped routes choose the table of the service port
//	      main_tcp     connections; a filter chain per service port
//	      main_auto    looks at the first bytes, then one of the two
//	      main_direct  workloads addressed themselves
//	    → cluster of the service → connect_originate ─mTLS, CONNECT→ the pod's ztunnel
//
// A gateway has ordinary listeners in place of the first two steps. Listeners
// stay as they are while HTTP services come and go: a service is a few scopes,
// a route table, clusters and endpoints.
//
// What always holds: the functions are pure, and the same input gives the same
// bytes; the peer of a tunnel must have exactly the identity that the endpoint
// names; what belongs to one source's identity is never sent through a tunnel
// that another one uses (see sourceGuard); headers by which a pod could pose as
// another, or steer Envoy, do not get in; what is not listed is refused.
//
// It looks nothing up, keeps nothing, and does not check what users wrote: that
// is for istiod/translate. An error means that the input cannot be written.
package config
