package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// certificateLifetime is longer than any cluster of this kind lives.
const certificateLifetime = 365 * 24 * time.Hour

// authority signs certificates of one kind.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// leaf describes one certificate of a component.
type leaf struct {
	name   string // of its files
	signer *authority
	user   string   // common name: the Kubernetes user
	groups []string // organisations: the Kubernetes groups
	server bool     // serves TLS under names and ips
	names  []string
	ips    []netip.Addr
}

// writePKI makes every key, certificate and kubeconfig of the cluster.
func (c *Cluster) writePKI() error {
	ca, err := c.newAuthority("ca", "kubernetes-ca")
	if err != nil {
		return err
	}
	front, err := c.newAuthority("front-proxy-ca", "front-proxy-ca")
	if err != nil {
		return err
	}
	leaves := []leaf{
		{name: "apiserver", signer: ca, user: "kube-apiserver", server: true,
			names: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"},
			ips:   []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), controlPlaneIP(), apiServiceIP()}},
		{name: "apiserver-kubelet-client", signer: ca, user: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}},
		{name: "front-proxy-client", signer: front, user: "front-proxy-client"},
	}
	users := []leaf{
		{name: "admin", signer: ca, user: "admin", groups: []string{"system:masters"}},
		{name: "controller-manager", signer: ca, user: "system:kube-controller-manager"},
		{name: "scheduler", signer: ca, user: "system:kube-scheduler"},
		{name: "kube-proxy", signer: ca, user: "system:kube-proxy"},
	}
	for _, n := range nodes() {
		users = append(users, leaf{name: n.kubelet(), signer: ca, user: "system:node:" + n.name, groups: []string{"system:nodes"},
			server: true, names: []string{n.name}, ips: []netip.Addr{n.ip}})
	}
	for _, l := range append(leaves, users...) {
		if err := c.issue(l); err != nil {
			return err
		}
	}
	for _, u := range users {
		if err := c.writeKubeconfig(u.name); err != nil {
			return err
		}
	}
	return c.writeServiceAccountKeys()
}

func (c *Cluster) newAuthority(name, commonName string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of %q: %w", name, err)
	}
	template, err := certificateTemplate(pkix.Name{CommonName: commonName})
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("sign %q: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse %q: %w", name, err)
	}
	return &authority{cert, key}, c.writePair(name, der, key)
}

func (c *Cluster) issue(l leaf) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the key of %q: %w", l.name, err)
	}
	template, err := certificateTemplate(pkix.Name{CommonName: l.user, Organization: l.groups})
	if err != nil {
		return err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if l.server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		template.DNSNames = l.names
		for _, ip := range l.ips {
			template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, l.signer.cert, &key.PublicKey, l.signer.key)
	if err != nil {
		return fmt.Errorf("sign %q: %w", l.name, err)
	}
	return c.writePair(l.name, der, key)
}

func certificateTemplate(subject pkix.Name) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certificateLifetime)}, nil
}

// writeServiceAccountKeys makes the pair that signs and checks service account tokens.
func (c *Cluster) writeServiceAccountKeys() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the service account key: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("encode the service account key: %w", err)
	}
	if err := c.writePEM("sa.pub", "PUBLIC KEY", public); err != nil {
		return err
	}
	return c.writeKey("sa.key", key)
}

func (c *Cluster) writePair(name string, der []byte, key crypto.Signer) error {
	if err := c.writePEM(name+".crt", "CERTIFICATE", der); err != nil {
		return err
	}
	return c.writeKey(name+".key", key)
}

func (c *Cluster) writeKey(file string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode %q: %w", file, err)
	}
	return c.writePEM(file, "PRIVATE KEY", der)
}

func (c *Cluster) writePEM(file, kind string, der []byte) error {
	b := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(c.pki(file), b, 0o600); err != nil {
		return fmt.Errorf("write %q: %w", file, err)
	}
	return nil
}

func (c *Cluster) pki(file string) string { return filepath.Join(c.pkiDir(), file) }

// kubeconfigText is one cluster, one user, one context.
const kubeconfigText = `apiVersion: v1
kind: Config
clusters: [{name: ambit, cluster: {server: "https://%s:6443", certificate-authority-data: %s}}]
users: [{name: user, user: {client-certificate-data: %s, client-key-data: %s}}]
contexts: [{name: ambit, context: {cluster: ambit, user: user}}]
current-context: ambit
`

func (c *Cluster) writeKubeconfig(name string) error {
	var data [3]string
	for i, file := range []string{"ca.crt", name + ".crt", name + ".key"} {
		b, err := os.ReadFile(c.pki(file))
		if err != nil {
			return fmt.Errorf("write the kubeconfig of %q: %w", name, err)
		}
		data[i] = base64.StdEncoding.EncodeToString(b)
	}
	text := fmt.Sprintf(kubeconfigText, controlPlaneIP(), data[0], data[1], data[2])
	if err := os.WriteFile(c.kubeconfig(name), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the kubeconfig of %q: %w", name, err)
	}
	return nil
}

func (c *Cluster) kubeconfig(name string) string {
	return filepath.Join(c.kubeconfigDir(), name+".conf")
}
