package kube

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"
)

// secretKeys are the keys that gateways read of a Secret: those of kubernetes.io/tls, and the generic ones of Istio.
var secretKeys = map[string]bool{
	corev1.TLSCertKey: true, corev1.TLSPrivateKeyKey: true, "ca.crt": true, "ca.crl": true,
	"cert": true, "key": true, "cacert": true, "crl": true,
}

// configMapKeys are the keys that are read of a ConfigMap: roots of a CA, the mesh's configuration, and what a
// Gateway's parametersRef lays over the objects made for it.
var configMapKeys = map[string]bool{
	"ca.crt": true, "ca.crl": true, "mesh": true,
	"deployment": true, "service": true, "serviceAccount": true, "podDisruptionBudget": true, "horizontalPodAutoscaler": true,
}

// SecretsSelector leaves out the two types of Secrets that are many and of no use to a gateway: Helm's releases and
// the tokens of service accounts.
func SecretsSelector() string {
	return fields.AndSelectors(
		fields.OneTermNotEqualSelector("type", "helm.sh/release.v1"),
		fields.OneTermNotEqualSelector("type", string(corev1.SecretTypeServiceAccountToken)),
	).String()
}

var _ cache.TransformFunc = StripCredentials

// StripCredentials is Strip for Secrets and ConfigMaps: a cache holds only the keys that a gateway reads, so that
// a process that needs certificates does not also keep every password of the cluster.
func StripCredentials(obj any) (any, error) {
	obj, err := Strip(obj)
	if err != nil {
		return obj, err
	}
	switch o := obj.(type) {
	case *corev1.Secret:
		o.Data = keep(o.Data, secretKeys)
		o.StringData = nil
	case *corev1.ConfigMap:
		o.Data = keep(o.Data, configMapKeys)
		o.BinaryData = nil
	}
	return obj, nil
}

func keep[V any](data map[string]V, keys map[string]bool) map[string]V {
	var out map[string]V
	for k, v := range data {
		if keys[k] {
			if out == nil {
				out = map[string]V{}
			}
			out[k] = v
		}
	}
	return out
}
