// Package v1alpha1 is the kind RateLimit of group policy.ambit.dev: how many
// requests waypoints and gateways let through. istiod reads it (package
// istiod/translate/istiopolicy translates it), users write it; the definition that
// Kubernetes checks objects against is charts/base/files/ratelimits.yaml, and a test
// here holds the two together.
//
//	apiVersion: policy.ambit.dev/v1alpha1
//	kind: RateLimit
//	metadata: {name: checkout, namespace: shop}
//	spec:
//	  targetRefs: [{kind: Service, name: checkout}]
//	  local:
//	  - name: orders-per-caller
//	    match: [{path: {prefix: /orders}, method: POST}]
//	    requests: 20
//	    per: 1m
//	    burst: 5
//	    perSource: true
//
// It holds plain structs that the API machinery of Kubernetes can carry, and no rules:
// defaults and what makes no sense are istiopolicy's.
package v1alpha1
