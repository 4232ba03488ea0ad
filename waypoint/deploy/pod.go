package deploy

import (
	"maps"
	"path"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/api/ports"
)

const (
	// container is the name of the proxy's container, which overlays merge by; Istio's.
	container = "istio-proxy"
	// proxyUser is who the proxy runs as, as in Istio's images.
	proxyUser = 1337
	// graceSeconds is how long a stopping proxy may finish requests: longer than most, shorter than an impatient drain.
	graceSeconds = 60
	// tokenSeconds is the life of the token for istiod; the kubelet renews it at 80 %. Istio's value.
	tokenSeconds = 43200
	// startSeconds is how long a proxy may wait for its first configuration before the kubelet starts it anew. A
	// control plane that is being installed or moved takes less.
	startSeconds = 120
	// readySeconds is how often readiness is asked once started, and readyFailures how often in a row it may fail.
	readySeconds  = 3
	readyFailures = 3
	// probeTimeout is in seconds; the answer takes microseconds, but a node can be busy.
	probeTimeout = 3
	// The defaults of Istio's proxies. A waypoint of a thousand services was measured to need 170 MB. The limit of
	// CPU is also the number of Envoy's worker threads, which would else be that of the node's cores.
	defaultRequestCPU    = "100m"
	defaultRequestMemory = "128Mi"
	defaultLimitCPU      = "2"
	defaultLimitMemory   = "1Gi"
)

// Paths in the container.
const (
	runDir     = "/var/run/ambit"
	podInfoDir = "/etc/istio/pod"
)

// labelTunnel tells istiod and ztunnels that the pod speaks HBONE by itself.
const (
	labelTunnel     = "networking.istio.io/tunnel"
	labelTunnelHTTP = "http"
)

// sysctlPorts lets a process without privileges listen on the ports of a gateway. Kubernetes counts it as safe.
const sysctlPorts = "net.ipv4.ip_unprivileged_port_start"

func (b *builder) deployment() *appsv1.Deployment {
	none := intstr.FromInt32(0)
	surge := intstr.FromString("25%") // Kubernetes rounds it up: a single pod gets its successor first
	out := &appsv1.Deployment{
		TypeMeta: typeMeta("apps/v1", "Deployment"), ObjectMeta: b.meta(b.name),
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: b.selector()},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &none},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: b.podLabels(), Annotations: b.podAnnotations()},
				Spec:       b.pod(),
			},
		},
	}
	if b.replicas > 0 {
		out.Spec.Replicas = &b.replicas
	}
	return out
}

// podLabels: what a user says of the infrastructure goes before the defaults, and what makes the pod work before both.
func (b *builder) podLabels() map[string]string {
	out := map[string]string{
		ports.LabelDataplaneMode:     ports.DataplaneModeNone,
		ports.LabelCanonicalName:     b.name,
		ports.LabelCanonicalRevision: "latest",
	}
	maps.Copy(out, b.labels)
	maps.Copy(out, b.objectLabels())
	if b.g.Waypoint {
		// Captured by its own node, a waypoint would have its tunnels wrapped in tunnels.
		out[ports.LabelDataplaneMode] = ports.DataplaneModeNone
		out[labelTunnel] = labelTunnelHTTP
	}
	// A waypoint has none: what it sends has been judged.
	delete(out, ports.LabelUseWaypoint)
	delete(out, ports.LabelUseWaypointNamespace)
	return out
}

func (b *builder) podAnnotations() map[string]string {
	out := map[string]string{
		"prometheus.io/scrape": "true",
		"prometheus.io/port":   portText(ports.Metrics),
		"prometheus.io/path":   "/stats/prometheus",
	}
	maps.Copy(out, b.notes)
	return out
}

func (b *builder) pod() corev1.PodSpec {
	yes, no, grace, user := true, false, int64(graceSeconds), int64(proxyUser)
	security := &corev1.PodSecurityContext{
		RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user, FSGroup: &user,
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if !b.g.Waypoint {
		security.Sysctls = []corev1.Sysctl{{Name: sysctlPorts, Value: "0"}}
	}
	var secrets []corev1.LocalObjectReference
	for _, name := range b.o.PullSecrets {
		secrets = append(secrets, corev1.LocalObjectReference{Name: name})
	}
	return corev1.PodSpec{
		ServiceAccountName: b.account,
		// It talks to istiod only, with the projected token below, never to the API server.
		AutomountServiceAccountToken:  &no,
		TerminationGracePeriodSeconds: &grace,
		NodeSelector:                  map[string]string{corev1.LabelOSStable: string(corev1.Linux)},
		SecurityContext:               security,
		ImagePullSecrets:              secrets,
		TopologySpreadConstraints: []corev1.TopologySpreadConstraint{
			b.spread(corev1.LabelHostname), b.spread(corev1.LabelTopologyZone),
		},
		Containers: []corev1.Container{b.proxy()},
		Volumes:    volumes(),
	}
}

// spread puts the pods of one rollout on different nodes or zones as far as there are some.
func (b *builder) spread(key string) corev1.TopologySpreadConstraint {
	return corev1.TopologySpreadConstraint{
		MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: corev1.ScheduleAnyway,
		LabelSelector:  &metav1.LabelSelector{MatchLabels: b.selector()},
		MatchLabelKeys: []string{appsv1.DefaultDeploymentUniqueLabelKey},
	}
}

func (b *builder) proxy() corev1.Container {
	yes, no, user := true, false, int64(proxyUser)
	kind := "router"
	if b.g.Waypoint {
		kind = "waypoint"
	}
	probe := func(period, failures int32) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path: "/healthz/ready", Port: intstr.FromInt32(ports.Readiness), Scheme: corev1.URISchemeHTTP,
			}},
			PeriodSeconds: period, FailureThreshold: failures, TimeoutSeconds: probeTimeout, SuccessThreshold: 1,
		}
	}
	return corev1.Container{
		Name: container, Image: b.o.Image, ImagePullPolicy: b.o.PullPolicy,
		Args: []string{"proxy", kind},
		Env:  b.env(),
		Ports: []corev1.ContainerPort{
			{Name: "metrics", ContainerPort: ports.Metrics, Protocol: corev1.ProtocolTCP},
			{Name: statusPort, ContainerPort: ports.Readiness, Protocol: corev1.ProtocolTCP},
		},
		StartupProbe:   probe(1, startSeconds),
		ReadinessProbe: probe(readySeconds, readyFailures),
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse(defaultRequestCPU), corev1.ResourceMemory: resource.MustParse(defaultRequestMemory),
			},
			Limits: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse(defaultLimitCPU), corev1.ResourceMemory: resource.MustParse(defaultLimitMemory),
			},
		},
		SecurityContext: &corev1.SecurityContext{
			RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user,
			Privileged: &no, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "run", MountPath: runDir},
			{Name: "istio-token", MountPath: path.Dir(ports.TokenFile), ReadOnly: true},
			{Name: "istiod-ca-cert", MountPath: path.Dir(ports.RootCertFile), ReadOnly: true},
			{Name: "istio-podinfo", MountPath: podInfoDir, ReadOnly: true},
		},
	}
}

// env is how the agent learns who it is; package waypoint/agent reads these names.
func (b *builder) env() []corev1.EnvVar {
	fields := []struct{ name, path string }{
		{"POD_NAME", "metadata.name"}, {"POD_NAMESPACE", "metadata.namespace"}, {"INSTANCE_IP", "status.podIP"},
		{"NODE_NAME", "spec.nodeName"}, {"SERVICE_ACCOUNT", "spec.serviceAccountName"},
	}
	var out []corev1.EnvVar
	for _, f := range fields {
		out = append(out, corev1.EnvVar{Name: f.name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: f.path}}})
	}
	limits := []struct {
		name     string
		resource corev1.ResourceName
	}{{"CPU_LIMIT", corev1.ResourceLimitsCPU}, {"MEMORY_LIMIT", corev1.ResourceLimitsMemory}}
	for _, l := range limits {
		out = append(out, corev1.EnvVar{Name: l.name, ValueFrom: &corev1.EnvVarSource{
			ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: container, Resource: string(l.resource), Divisor: resource.MustParse("1")},
		}})
	}
	values := []struct{ name, value string }{
		{"GATEWAY_NAME", b.g.Name},
		{"XDS_ADDRESS", "https://" + b.o.Istiod},
		{"TRUST_DOMAIN", b.o.TrustDomain},
		{"CLUSTER_ID", b.o.ClusterID},
		{"DOMAIN_SUFFIX", b.o.Domain},
		{"NETWORK", b.o.Network},
		{"TERMINATION_GRACE_PERIOD_SECONDS", portText(graceSeconds)},
		{"LOG_LEVEL", b.o.LogLevel},
		{"LOG_FORMAT", b.o.LogFormat},
	}
	for _, v := range values {
		if v.value != "" {
			out = append(out, corev1.EnvVar{Name: v.name, Value: v.value})
		}
	}
	return out
}

func volumes() []corev1.Volume {
	seconds := int64(tokenSeconds)
	field := func(p string) *corev1.ObjectFieldSelector {
		return &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: p}
	}
	return []corev1.Volume{
		// Keys and sockets are in memory: nothing of an identity reaches a disk.
		{Name: "run", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		{Name: "istio-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{
			ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Path: path.Base(ports.TokenFile), Audience: ports.TokenAudience, ExpirationSeconds: &seconds,
			},
		}}}}},
		{Name: "istiod-ca-cert", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: ports.RootConfigMap},
		}}},
		{Name: "istio-podinfo", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: field("metadata.labels")},
			{Path: "annotations", FieldRef: field("metadata.annotations")},
		}}}},
	}
}
