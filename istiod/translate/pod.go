package translate

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Labels by which owners mark the pods of one of their revisions, and Istio's
// override of the name that all this guesses.
const (
	labelTemplateHash        = "pod-template-hash"
	labelRolloutTemplateHash = "rollouts-pod-template-hash"
	labelWorkloadName        = "service.istio.io/workload-name"
	// labelTunnel marks an app that terminates HBONE itself.
	labelTunnel     = "networking.istio.io/tunnel"
	labelTunnelHTTP = "http"
)

// Pod reads a pod. A pod without address is valid: it owns an identity before it owns an address.
func Pod(p *corev1.Pod) (*model.Pod, error) {
	out := &model.Pod{
		Key:            model.Key{Namespace: p.Namespace, Name: p.Name},
		UID:            string(p.UID),
		Labels:         p.Labels,
		Node:           p.Spec.NodeName,
		ServiceAccount: p.Spec.ServiceAccountName,
		HostNetwork:    p.Spec.HostNetwork,
		Ready:          podReady(p),
		Finished:       p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		MeshLabel:      p.Labels[ports.LabelDataplaneMode],
		NativeTunnel:   p.Labels[labelTunnel] == labelTunnelHTTP,
		TCPPorts:       podPorts(p),
		Waypoint:       waypointRef(p.Labels, p.Namespace),
	}
	switch p.Annotations[ports.AnnotationRedirection] {
	case ports.AnnotationRedirectionEnabled:
		out.Tunnel, out.Enrolled = true, true
	case ports.AnnotationRedirectionPending:
		out.Enrolled = true
	}
	if out.ServiceAccount == "" {
		out.ServiceAccount = "default" // what the API server fills in; a directory has no API server
	}
	out.Owner, out.OwnerType = podOwner(p)

	ips := p.Status.PodIPs
	if len(ips) == 0 && p.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	for i, ip := range ips {
		a, err := parseAddr(fmt.Sprintf("status.podIPs[%d]", i), ip.IP)
		if err != nil {
			return nil, err
		}
		out.IPs = append(out.IPs, a)
	}
	return out, nil
}

func podReady(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// podPorts maps names to numbers of the TCP ports of all containers that live as
// long as the pod: apps and native sidecars. Of two ports with one name the first counts.
func podPorts(p *corev1.Pod) map[string]uint16 {
	var out map[string]uint16
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			tcp := port.Protocol == corev1.ProtocolTCP || port.Protocol == ""
			if port.Name == "" || !tcp || port.ContainerPort < 1 || port.ContainerPort > 65535 {
				continue
			}
			if out == nil {
				out = map[string]uint16{}
			}
			if _, taken := out[port.Name]; !taken {
				out[port.Name] = uint16(port.ContainerPort)
			}
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return out
}

// podOwner finds the name that people know the workload by. A pod tells only its
// direct owner, so a Deployment is recognised by the template hash that ends its
// ReplicaSet's name, and a CronJob by the time stamp that ends its Job's.
func podOwner(p *corev1.Pod) (string, model.OwnerType) {
	name, kind := p.Name, model.OwnerPod
	// Only a pod with a generated name has an owner that made it from a template.
	if owner := metav1.GetControllerOfNoCopy(p); owner != nil && p.GenerateName != "" {
		name = owner.Name
		switch owner.Kind {
		case "ReplicaSet":
			if base, ok := cutHash(owner.Name, p.Labels[labelTemplateHash]); ok {
				name, kind = base, model.OwnerDeployment
			} else if base, ok := cutHash(owner.Name, p.Labels[labelRolloutTemplateHash]); ok {
				name = base
			}
		case "Job":
			kind = model.OwnerJob
			if base, ok := cutTimestamp(owner.Name); ok {
				name, kind = base, model.OwnerCronJob
			}
		}
	}
	if set := p.Labels[labelWorkloadName]; set != "" {
		name = set
	}
	if name == "" {
		name = p.Name
	}
	return name, kind
}

func cutHash(name, hash string) (string, bool) {
	if hash == "" {
		return "", false
	}
	base, ok := strings.CutSuffix(name, "-"+hash)
	return base, ok && base != ""
}

// cutTimestamp removes the minutes since 1970 (8 digits for a century and a half)
// or older Kubernetes' seconds (10 digits) that a CronJob puts behind its Jobs' names.
func cutTimestamp(name string) (string, bool) {
	i := strings.LastIndexByte(name, '-')
	if i <= 0 {
		return "", false
	}
	digits := name[i+1:]
	if len(digits) < 8 || len(digits) > 10 || strings.Trim(digits, "0123456789") != "" {
		return "", false
	}
	return name[:i], true
}
