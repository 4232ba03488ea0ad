package cluster

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func testCluster(t *testing.T) *Cluster {
	t.Helper()
	c, err := New(Config{Name: "ambit-t", StateRoot: t.TempDir(), CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{c.pkiDir(), c.kubeconfigDir(), c.logDir(), c.recordDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestCertificatesFormOneAuthority(t *testing.T) {
	c := testCluster(t)
	if err := c.writePKI(); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(c.pki("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatal("no root")
	}
	for name, o := range map[string]x509.VerifyOptions{
		"apiserver":  {DNSName: "kubernetes.default.svc", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		"kubelet-n1": {DNSName: "n1", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		"admin":      {KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
	} {
		pair, err := tls.LoadX509KeyPair(c.pki(name+".crt"), c.pki(name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		o.Roots = roots
		if _, err := pair.Leaf.Verify(o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(c.Kubeconfig()); err != nil {
		t.Error(err)
	}
}

func TestNodeFilesParse(t *testing.T) {
	c, dir := testCluster(t), t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "cni-conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.writeNodeFiles(nodes()[1], dir); err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var network struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal(read("cni-conf/10-cluster.conflist"), &network); err != nil || len(network.Plugins) != 2 {
		t.Errorf("network configuration: %+v, %v", network, err)
	}
	for _, name := range []string{"kubelet.yaml", "kube-proxy.yaml"} {
		var v map[string]any
		if err := yaml.UnmarshalStrict(read(name), &v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !bytes.Contains(read("cni-conf/10-cluster.conflist"), []byte("10.244.2.0/24")) {
		t.Error("the second node does not have the second range")
	}
}

func TestNodesDoNotOverlap(t *testing.T) {
	seen := map[netip.Addr]bool{controlPlaneIP(): true}
	for i, n := range nodes() {
		if seen[n.ip] {
			t.Errorf("address %s twice", n.ip)
		}
		seen[n.ip] = true
		for _, other := range nodes()[i+1:] {
			if n.pods.Overlaps(other.pods) {
				t.Errorf("ranges %s and %s overlap", n.pods, other.pods)
			}
		}
	}
}

func TestProgressHasNoColoursOffATerminal(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&out)
	p.Heading("title")
	if err := p.Do("step", func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := p.Do("bad", func() error { return os.ErrNotExist }); err == nil {
		t.Error("the error is lost")
	}
	if strings.Contains(out.String(), "\x1b") || strings.Count(out.String(), "\n") != 3 {
		t.Errorf("output %q", out.String())
	}
}

func TestDownWithoutAClusterIsNothing(t *testing.T) {
	c := testCluster(t)
	if err := c.Down(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Down(t.Context()); err != nil {
		t.Error(err)
	}
}
