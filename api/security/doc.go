// Package security is the L4 authorization messages that istiod sends to node proxies,
// wire-compatible with Istio's istio.security. Only generated code lives here; ztunnel/policy gives
// them their meaning.
package security
