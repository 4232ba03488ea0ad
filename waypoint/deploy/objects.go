package deploy

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Labels of what is deployed. The first two are Gateway API's (GEP-1762), the third is Istio's.
const (
	LabelGateway = "gateway.networking.k8s.io/gateway-name"
	LabelClass   = "gateway.networking.k8s.io/gateway-class-name"
	LabelManaged = "gateway.istio.io/managed"
	// ManagedGateway and ManagedWaypoint are the values of LabelManaged: the controllers' names, as a label can hold them.
	ManagedGateway  = "istio.io-gateway-controller"
	ManagedWaypoint = "istio.io-mesh-controller"
	// LabelClassDefaults on a ConfigMap in istiod's namespace makes it an overlay for every gateway of a class.
	LabelClassDefaults = "gateway.istio.io/defaults-for-class"
)

// Annotations of a Gateway that change what is deployed. All but the last two are Istio's.
const (
	annotationServiceType    = "networking.istio.io/service-type"
	annotationName           = "gateway.istio.io/name-override"
	annotationServiceAccount = "gateway.istio.io/service-account"
	annotationVersion        = "gateway.istio.io/controller-version"
	annotationLastApplied    = "kubectl.kubernetes.io/last-applied-configuration"
	// annotationReplicas fixes the number of pods; with annotationMaxReplicas it is the least, and an autoscaler decides.
	annotationReplicas    = "gateway.ambit.dev/replicas"
	annotationMaxReplicas = "gateway.ambit.dev/max-replicas"
)

const (
	// gatewayPrefix is reserved for what Gateway API itself puts on the objects of a gateway.
	gatewayPrefix = "gateway.networking.k8s.io/"
	// maxReplicas bounds the annotations: more pods than this for one gateway is a typing error.
	maxReplicas = 1000
	// targetCPU is the percentage of its CPU request at which an autoscaler adds a pod, as Istio's charts have it.
	targetCPU = 80
)

// ErrParameters is the error of parameters (overlays, annotations, names) that cannot be used. Trying again does not help.
var ErrParameters = errors.New("invalid parameters")

// Options are what objects take from the installation.
type Options struct {
	// Image is the proxy's full reference.
	Image       string
	PullPolicy  corev1.PullPolicy
	PullSecrets []string
	// Istiod is host:port of xDS and certificates.
	Istiod string
	// TrustDomain, ClusterID, Domain and Network are the mesh's.
	TrustDomain, ClusterID, Domain, Network string
	// LogLevel and LogFormat of the agent.
	LogLevel, LogFormat string
	// Overlays change the objects, in this order.
	Overlays []Overlay
}

// Managed tells whether g wants to be deployed: an Istio Gateway chooses pods that others deploy, and one
// with a host name for an address stands for a Service that exists (as Istio has it).
func Managed(g *model.Gateway) bool {
	if g.Kind == model.KindIstioGateway {
		return false
	}
	switch len(g.Addresses) {
	case 0:
		return true
	case 1:
		return g.Addresses[0].Type == "" || g.Addresses[0].Type == addressIP
	}
	return false
}

// Objects returns what to apply for g, the service account first, in a fixed order.
func Objects(g *model.Gateway, o Options) ([]*unstructured.Unstructured, error) {
	b, err := newBuilder(g, o)
	if err != nil {
		return nil, fmt.Errorf("deploy gateway %q: %w", g.Key, err)
	}
	out, err := b.objects()
	if err != nil {
		return nil, fmt.Errorf("deploy gateway %q: %w", g.Key, err)
	}
	return out, nil
}

// builder holds what the objects of one gateway share.
type builder struct {
	g                *model.Gateway
	o                Options
	name, account    string
	serviceType      corev1.ServiceType
	labels, notes    map[string]string // of spec.infrastructure, or the Gateway's own
	replicas, autoTo int32             // asked for by annotation; 0 is not
}

func newBuilder(g *model.Gateway, o Options) (*builder, error) {
	if g.UID == "" {
		return nil, errors.New("its UID is not known")
	}
	b := &builder{g: g, o: o, name: g.Name, serviceType: corev1.ServiceTypeLoadBalancer}
	if g.Waypoint {
		b.serviceType = corev1.ServiceTypeClusterIP
	} else {
		b.name += "-" + g.Class
	}
	notes := g.ObjectAnnotations
	if v := notes[annotationName]; v != "" {
		b.name = v
	}
	b.account = b.name
	if v := notes[annotationServiceAccount]; v != "" {
		b.account = v
	}
	if v := notes[annotationServiceType]; v != "" {
		b.serviceType = corev1.ServiceType(v)
	}
	var err error
	if b.replicas, err = count(notes, annotationReplicas); err != nil {
		return nil, err
	}
	if b.autoTo, err = count(notes, annotationMaxReplicas); err != nil {
		return nil, err
	}
	b.labels = inherited(g.Labels, g.ObjectLabels)
	b.notes = inherited(g.Annotations, g.ObjectAnnotations)
	for _, own := range []string{
		annotationLastApplied, annotationName, annotationServiceAccount, annotationVersion, annotationReplicas, annotationMaxReplicas,
	} {
		delete(b.notes, own)
	}
	return b, b.check()
}

// count reads a number of replicas; 0 is absent.
func count(notes map[string]string, key string) (int32, error) {
	v, ok := notes[key]
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || n < 1 || n > maxReplicas {
		return 0, fmt.Errorf("%w: annotation %s: %q is not a number from 1 to %d", ErrParameters, key, v, maxReplicas)
	}
	return int32(n), nil
}

// check refuses what the API server would refuse later, with words that name the cause.
func (b *builder) check() error {
	switch b.serviceType {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
	default:
		return fmt.Errorf("%w: annotation %s: %q is not ClusterIP, NodePort or LoadBalancer", ErrParameters, annotationServiceType, b.serviceType)
	}
	if problems := validation.IsDNS1035Label(b.name); len(problems) > 0 {
		return fmt.Errorf("%w: a Service cannot be named %q: %s", ErrParameters, b.name, problems[0])
	}
	if problems := validation.IsDNS1123Subdomain(b.account); len(problems) > 0 {
		return fmt.Errorf("%w: a ServiceAccount cannot be named %q: %s", ErrParameters, b.account, problems[0])
	}
	if problems := validation.IsValidLabelValue(b.g.Name); len(problems) > 0 {
		return fmt.Errorf("%w: a label cannot hold the gateway's name: %s", ErrParameters, problems[0])
	}
	if b.autoTo > 0 && b.autoTo < max(b.replicas, 1) {
		return fmt.Errorf("%w: annotation %s: %d is less than %s", ErrParameters, annotationMaxReplicas, b.autoTo, annotationReplicas)
	}
	return nil
}

// inherited copies the infrastructure's map, or the Gateway's own where there is none, as Istio does.
func inherited(infrastructure, own map[string]string) map[string]string {
	from := infrastructure
	if from == nil {
		from = own
	}
	out := map[string]string{}
	for k, v := range from {
		if !strings.HasPrefix(k, gatewayPrefix) {
			out[k] = v
		}
	}
	return out
}

func (b *builder) managed() string {
	if b.g.Waypoint {
		return ManagedWaypoint
	}
	return ManagedGateway
}

func (b *builder) selector() map[string]string { return map[string]string{LabelGateway: b.g.Name} }

// objectLabels are on every object.
func (b *builder) objectLabels() map[string]string {
	out := maps.Clone(b.labels)
	out[LabelGateway], out[LabelClass], out[LabelManaged] = b.g.Name, b.g.Class, b.managed()
	return out
}

func (b *builder) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: name, Namespace: b.g.Namespace, Labels: b.objectLabels(), Annotations: maps.Clone(b.notes),
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "gateway.networking.k8s.io/v1", Kind: "Gateway", Name: b.g.Name, UID: types.UID(b.g.UID),
		}},
	}
}

func typeMeta(apiVersion, kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
}

func (b *builder) objects() ([]*unstructured.Unstructured, error) {
	account, err := overlaid(b.serviceAccount(), keyServiceAccount, b.o.Overlays)
	if err != nil {
		return nil, err
	}
	deployment, err := overlaid(b.deployment(), keyDeployment, b.o.Overlays)
	if err != nil {
		return nil, err
	}
	service, err := overlaid(b.service(), keyService, b.o.Overlays)
	if err != nil {
		return nil, err
	}
	out := []any{account, deployment, service}
	least := int32(1)
	if deployment.Spec.Replicas != nil {
		least = *deployment.Spec.Replicas
	}
	if asks(b.o.Overlays, keyAutoscaler) || b.autoTo > 0 {
		scaler, err := overlaid(b.autoscaler(), keyAutoscaler, b.o.Overlays)
		if err != nil {
			return nil, err
		}
		// The autoscaler owns the number of pods: two writers of one field would fight.
		deployment.Spec.Replicas = nil
		least = 1
		if scaler.Spec.MinReplicas != nil {
			least = *scaler.Spec.MinReplicas
		}
		out = append(out, scaler)
	}
	// With one pod a budget would block every drain of its node.
	if asks(b.o.Overlays, keyBudget) || least > 1 {
		budget, err := overlaid(b.budget(), keyBudget, b.o.Overlays)
		if err != nil {
			return nil, err
		}
		if budget.Spec.MinAvailable == nil && budget.Spec.MaxUnavailable == nil {
			one := intstr.FromInt32(1)
			budget.Spec.MinAvailable = &one
		}
		out = append(out, budget)
	}
	return unstructure(out)
}

func (b *builder) serviceAccount() *corev1.ServiceAccount {
	return &corev1.ServiceAccount{TypeMeta: typeMeta("v1", "ServiceAccount"), ObjectMeta: b.meta(b.account)}
}

func (b *builder) autoscaler() *autoscalingv2.HorizontalPodAutoscaler {
	out := &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta: typeMeta("autoscaling/v2", "HorizontalPodAutoscaler"), ObjectMeta: b.meta(b.name),
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: appsv1.SchemeGroupVersion.String(), Kind: "Deployment", Name: b.name},
			MaxReplicas:    max(b.autoTo, b.replicas, 1),
		},
	}
	if b.replicas > 0 {
		out.Spec.MinReplicas = &b.replicas
	}
	if b.autoTo > 0 {
		target := int32(targetCPU)
		out.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name:   corev1.ResourceCPU,
			Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &target},
		}}}
	}
	return out
}

func (b *builder) budget() *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		TypeMeta: typeMeta("policy/v1", "PodDisruptionBudget"), ObjectMeta: b.meta(b.name),
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: b.selector()}},
	}
}
