package cluster

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

//go:embed coredns.yaml
var corednsManifest string

// cniConfig is the base network of a node: routed veth pairs, no masquerading, so that pods see each other's
// addresses. The mesh's node agent chains its plugin behind these.
const cniConfig = `{
  "cniVersion": "0.4.0",
  "name": "cluster",
  "plugins": [
    {"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": {
      "type": "host-local", "dataDir": "/run/cni-ipam",
      "ranges": [[{"subnet": "{{.Pods}}"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// containerdConfig: restrict_oom_score_adj lets containers start where root may not lower the score.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/{{.Pause}}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`

// kubeletConfig: no eviction and no image collection, because the disk is the machine's and other things fill it.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: true
enforceNodeAllocatable: [pods]
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {x509: {clientCAFile: "{{.PKI}}/ca.crt"}, webhook: {enabled: true, cacheTTL: 10s}, anonymous: {enabled: false}}
authorization: {mode: Webhook}
tlsCertFile: "{{.PKI}}/kubelet-{{.Name}}.crt"
tlsPrivateKeyFile: "{{.PKI}}/kubelet-{{.Name}}.key"
rotateCertificates: false
clusterDomain: cluster.local
clusterDNS: [{{.DNS}}]
resolvConf: "{{.Dir}}/resolv.conf"
failSwapOn: false
serializeImagePulls: false
kubeAPIQPS: 200
kubeAPIBurst: 400
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%", imagefs.inodesFree: "0%"}
syncFrequency: 20s
nodeStatusUpdateFrequency: 5s
logging: {verbosity: 2}
`

// kubeProxyConfig leaves the machine's conntrack limits alone.
const kubeProxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: {{.Cluster}}
hostnameOverride: {{.Name}}
clientConnection: {kubeconfig: "{{.Kubeconfig}}/kube-proxy.conf"}
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nftables: {minSyncPeriod: 0s}
`

// writeNodeFiles renders the configuration of what runs on a node.
func (c *Cluster) writeNodeFiles(n node, dir string) error {
	values := map[string]string{
		"Name": n.name, "Dir": dir, "Pods": n.pods.String(), "PKI": c.pkiDir(), "DNS": dnsIP,
		"Cluster": podCIDR, "Kubeconfig": c.kubeconfigDir(), "Pause": pauseImage,
	}
	for file, text := range map[string]string{
		"cni-conf/10-cluster.conflist": cniConfig,
		"containerd.toml":              containerdConfig,
		"kubelet.yaml":                 kubeletConfig,
		"kube-proxy.yaml":              kubeProxyConfig,
		"resolv.conf":                  "nameserver {{.DNS}}\n",
	} {
		t, err := template.New(file).Option("missingkey=error").Parse(text)
		if err != nil {
			return fmt.Errorf("parse the template of %q: %w", file, err)
		}
		var b strings.Builder
		if err := t.Execute(&b, values); err != nil {
			return fmt.Errorf("render %q: %w", file, err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(b.String()), 0o644); err != nil {
			return fmt.Errorf("write %q: %w", file, err)
		}
	}
	return nil
}
