package deploy

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/cespare/xxhash/v2"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Names of the kinds that are deployed.
const (
	kindServiceAccount = "ServiceAccount"
	kindDeployment     = "Deployment"
	kindService        = "Service"
	kindAutoscaler     = "HorizontalPodAutoscaler"
	kindBudget         = "PodDisruptionBudget"
)

// fieldManager is our name in the managed fields of what is applied. It is Istio's, so that what an Istio
// control plane applied before is taken over whole: fields that only it set go away.
const fieldManager = "istio.io/gateway-controller"

// kind is what the Deployer does with one kind of object.
type kind struct {
	get      func(ctx context.Context, namespace, name string) (metav1.Object, error)
	apply    func(ctx context.Context, namespace, name string, data []byte) (metav1.Object, error)
	delete   func(ctx context.Context, namespace, name string, o metav1.DeleteOptions) error
	informer func(informers.SharedInformerFactory) cache.SharedIndexInformer
}

// client is the part of a typed client that all kinds have alike.
type client[T metav1.Object] interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (T, error)
	Patch(ctx context.Context, name string, pt types.PatchType, data []byte, o metav1.PatchOptions, subresources ...string) (T, error)
	Delete(ctx context.Context, name string, o metav1.DeleteOptions) error
}

func kindOf[T metav1.Object](in func(namespace string) client[T], informer func(informers.SharedInformerFactory) cache.SharedIndexInformer) kind {
	force := true
	return kind{
		get: func(ctx context.Context, namespace, name string) (metav1.Object, error) {
			return in(namespace).Get(ctx, name, metav1.GetOptions{})
		},
		apply: func(ctx context.Context, namespace, name string, data []byte) (metav1.Object, error) {
			return in(namespace).Patch(ctx, name, types.ApplyPatchType, data, metav1.PatchOptions{FieldManager: fieldManager, Force: &force})
		},
		delete: func(ctx context.Context, namespace, name string, o metav1.DeleteOptions) error {
			return in(namespace).Delete(ctx, name, o)
		},
		informer: informer,
	}
}

func kinds(c kubernetes.Interface) map[string]kind {
	return map[string]kind{
		kindServiceAccount: kindOf(
			func(ns string) client[*corev1.ServiceAccount] { return c.CoreV1().ServiceAccounts(ns) },
			func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
				return f.Core().V1().ServiceAccounts().Informer()
			}),
		kindService: kindOf(
			func(ns string) client[*corev1.Service] { return c.CoreV1().Services(ns) },
			func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
				return f.Core().V1().Services().Informer()
			}),
		kindDeployment: kindOf(
			func(ns string) client[*appsv1.Deployment] { return c.AppsV1().Deployments(ns) },
			func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
				return f.Apps().V1().Deployments().Informer()
			}),
		kindAutoscaler: kindOf(
			func(ns string) client[*autoscalingv2.HorizontalPodAutoscaler] {
				return c.AutoscalingV2().HorizontalPodAutoscalers(ns)
			},
			func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
				return f.Autoscaling().V2().HorizontalPodAutoscalers().Informer()
			}),
		kindBudget: kindOf(
			func(ns string) client[*policyv1.PodDisruptionBudget] {
				return c.PolicyV1().PodDisruptionBudgets(ns)
			},
			func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
				return f.Policy().V1().PodDisruptionBudgets().Informer()
			}),
	}
}

// fingerprint changes when somebody changes an object, and not when its status does.
func fingerprint(o metav1.Object) (uint64, error) {
	m, err := toMap(o)
	if err != nil {
		return 0, err
	}
	for _, key := range []string{"status", "metadata", "kind", "apiVersion"} {
		delete(m, key)
	}
	notes := map[string]string{}
	for k, v := range o.GetAnnotations() {
		if k != annotationLastApplied {
			notes[k] = v
		}
	}
	raw, err := json.Marshal([]any{m, o.GetLabels(), notes, o.GetOwnerReferences()})
	if err != nil {
		return 0, fmt.Errorf("encode object: %w", err)
	}
	return xxhash.Sum64(raw), nil
}
