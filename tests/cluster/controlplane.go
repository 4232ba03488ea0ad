package cluster

import (
	"context"
	"fmt"
	"net/http"
	"strings"
)

// startControlPlane starts etcd and the API server, waits for the latter, then starts what uses it.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	ns := c.controlPlaneNS()
	if err := c.spawn("etcd", ns, c.etcdCommand()...); err != nil {
		return err
	}
	if err := c.spawn("kube-apiserver", ns, c.apiserverCommand()...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, controlPlaneTimeout)
	defer cancel()
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		return c.api(ctx, http.MethodGet, "/readyz", nil, nil) == nil, nil
	})
	if err != nil {
		return fmt.Errorf("wait for the API server (see %s): %w", c.logFile("kube-apiserver"), err)
	}
	if err := c.spawn("kube-controller-manager", ns, c.controllerManagerCommand()...); err != nil {
		return err
	}
	return c.spawn("kube-scheduler", ns, c.schedulerCommand()...)
}

// etcdCommand keeps its data in the state directory and does not sync it: the cluster does not outlive a power cut.
func (c *Cluster) etcdCommand() []string {
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	return []string{c.binDir() + "/etcd", "--name=cp", "--data-dir=" + c.state + "/etcd",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=cp=" + peer,
		"--unsafe-no-fsync", "--log-level=warn"}
}

func (c *Cluster) apiserverCommand() []string {
	return []string{c.binDir() + "/kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--secure-port=6443", "--advertise-address=" + controlPlaneIP().String(),
		"--service-cluster-ip-range=" + serviceCIDR, "--allow-privileged=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--client-ca-file=" + c.pki("ca.crt"), "--tls-cert-file=" + c.pki("apiserver.crt"), "--tls-private-key-file=" + c.pki("apiserver.key"),
		"--kubelet-client-certificate=" + c.pki("apiserver-kubelet-client.crt"), "--kubelet-client-key=" + c.pki("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + c.pki("sa.pub"), "--service-account-signing-key-file=" + c.pki("sa.key"),
		"--requestheader-client-ca-file=" + c.pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + c.pki("front-proxy-client.crt"), "--proxy-client-key-file=" + c.pki("front-proxy-client.key"),
		"--enable-aggregator-routing=true", "--v=1"}
}

func (c *Cluster) controllerManagerCommand() []string {
	return append(c.controllerFlags("kube-controller-manager", "controller-manager"),
		"--use-service-account-credentials=true", "--root-ca-file="+c.pki("ca.crt"),
		"--service-account-private-key-file="+c.pki("sa.key"),
		"--cluster-signing-cert-file="+c.pki("ca.crt"), "--cluster-signing-key-file="+c.pki("ca.key"),
		"--allocate-node-cidrs=false")
}

func (c *Cluster) schedulerCommand() []string {
	return c.controllerFlags("kube-scheduler", "scheduler")
}

// controllerFlags are shared by the two controllers. There is one of each, so no election.
func (c *Cluster) controllerFlags(program, user string) []string {
	config := c.kubeconfig(user)
	return []string{c.binDir() + "/" + program, "--kubeconfig=" + config, "--authentication-kubeconfig=" + config,
		"--authorization-kubeconfig=" + config, "--bind-address=127.0.0.1", "--leader-elect=false",
		"--kube-api-qps=200", "--kube-api-burst=400", "--v=1"}
}

// nodeList is the part of a NodeList that readiness needs.
type nodeList struct {
	Items []struct {
		Status struct {
			Conditions []struct {
				Type   string `json:"type"`
				Status string `json:"status"`
			} `json:"conditions"`
		} `json:"status"`
	} `json:"items"`
}

// readyNodes counts nodes whose condition Ready is true.
func (c *Cluster) readyNodes(ctx context.Context) (int, error) {
	var list nodeList
	if err := c.api(ctx, http.MethodGet, "/api/v1/nodes", nil, &list); err != nil {
		return 0, err
	}
	n := 0
	for _, item := range list.Items {
		for _, cond := range item.Status.Conditions {
			if cond.Type == "Ready" && cond.Status == "True" {
				n++
			}
		}
	}
	return n, nil
}

func (c *Cluster) waitNodes(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		if err := c.ended(); err != nil {
			return false, err // waiting longer would not bring it back
		}
		n, err := c.readyNodes(ctx)
		return err == nil && n == nodeCount, nil
	})
	if err != nil {
		return fmt.Errorf("wait for %d ready nodes (see %s): %w", nodeCount, c.logDir(), err)
	}
	return nil
}

// startDNS puts CoreDNS in and waits until it is ready.
func (c *Cluster) startDNS(ctx context.Context) error {
	cmd := c.Kubectl(ctx, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(corednsManifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apply CoreDNS: %w\n%s", err, lastLines(out))
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		var d struct {
			Status struct {
				ReadyReplicas int `json:"readyReplicas"`
			} `json:"status"`
		}
		err := c.api(ctx, http.MethodGet, "/apis/apps/v1/namespaces/kube-system/deployments/coredns", nil, &d)
		return err == nil && d.Status.ReadyReplicas > 0, nil
	})
	if err != nil {
		return fmt.Errorf("wait for CoreDNS: %w", err)
	}
	return nil
}
