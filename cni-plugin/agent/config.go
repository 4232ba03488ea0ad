package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/ports"
)

// systemNamespace holds what a node needs to come up; a mesh in its way could lock the node out of itself.
const systemNamespace = "kube-system"

// Config is everything that can be set from outside.
type Config struct {
	// NodeName is this node; only its pods are looked at. Namespace is the agent's own, DaemonSet its owner there.
	NodeName, Namespace, DaemonSet string
	// ExcludeNamespaces besides kube-system and the agent's own.
	ExcludeNamespaces []string
	// Kubeconfig is empty in a cluster.
	Kubeconfig string
	// CNIBinDir, CNIConfDir, NetNSDir and HostProc are the node's directories as this process sees them;
	// CNIConfName names the configuration file to join, empty the first one.
	CNIBinDir, CNIConfDir, CNIConfName, NetNSDir, HostProc string
	// PluginBinary is the CNI plugin in this image.
	PluginBinary string
	// BPFDir, CgroupRoot, StateDir and RedirectMode go to package redirect.
	BPFDir, CgroupRoot, StateDir, RedirectMode string
	// KubeletCgroups are the cgroup2 directories whose processes may probe pods; empty finds the kubelet by itself.
	// Distributions whose kubelet has another name (k3s) need it.
	KubeletCgroups []string
	// ZDSSocket and PluginSocket are the same path here and on the node.
	ZDSSocket, PluginSocket string
	// ReadinessAddr and MetricsAddr are listened on.
	ReadinessAddr, MetricsAddr string
}

// FromEnv reads the configuration from the environment, as the chart sets it.
func FromEnv(getenv func(string) string) Config {
	get := func(key, fallback string) string {
		if v := getenv(key); v != "" {
			return v
		}
		return fallback
	}
	return Config{
		NodeName:          get("NODE_NAME", ""),
		Namespace:         get("POD_NAMESPACE", ports.SystemNamespace),
		DaemonSet:         get("DAEMONSET_NAME", "istio-cni-node"),
		ExcludeNamespaces: split(getenv("EXCLUDE_NAMESPACES")),
		Kubeconfig:        getenv("KUBECONFIG"),
		CNIBinDir:         get("CNI_BIN_DIR", "/host/opt/cni/bin"),
		CNIConfDir:        get("CNI_CONF_DIR", "/host/etc/cni/net.d"),
		CNIConfName:       getenv("CNI_CONF_NAME"),
		NetNSDir:          get("NETNS_DIR", "/host/var/run/netns"),
		HostProc:          get("HOST_PROC", "/host/proc"),
		PluginBinary:      get("PLUGIN_BINARY", "/opt/cni/bin/ambit-cni"),
		BPFDir:            get("BPF_DIR", ports.BPFDir),
		CgroupRoot:        getenv("CGROUP_ROOT"),
		StateDir:          get("STATE_DIR", "/var/run/istio-cni/state"),
		RedirectMode:      getenv("REDIRECT_MODE"),
		KubeletCgroups:    split(getenv("KUBELET_CGROUPS")),
		ZDSSocket:         get("ZDS_SOCKET", ports.ZDSSocket),
		PluginSocket:      get("PLUGIN_SOCKET", ports.PluginSocket),
		ReadinessAddr:     get("READINESS_ADDR", fmt.Sprintf(":%d", ports.AgentReadiness)),
		MetricsAddr:       get("METRICS_ADDR", fmt.Sprintf(":%d", ports.AgentMetrics)),
	}
}

// Validate names what is missing.
func (c Config) Validate() error {
	if c.NodeName == "" {
		return errors.New("NODE_NAME is empty: set it from spec.nodeName")
	}
	return nil
}

// excluded are all namespaces that are never in the mesh, sorted, each once.
func (c Config) excluded() []string {
	out := append([]string{systemNamespace, c.Namespace}, c.ExcludeNamespaces...)
	slices.Sort(out)
	return slices.Compact(out)
}

func split(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}
