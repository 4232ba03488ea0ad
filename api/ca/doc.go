// Package ca is the certificate-signing service, wire-compatible with Istio's istio.v1.auth.
// istiod/ca serves it, internal/identity/ca calls it. Only generated code lives here.
package ca
