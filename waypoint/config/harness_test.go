package config

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/ports"
	"github.com/ambit-mesh/ambit/internal/hbone"
)

// deadline bounds everything that is waited for, on a slow machine too.
const deadline = 20 * time.Second

// must is for calls that fail only when the test is broken.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting until %s", what)
		}
		<-tick.C
	}
}

// authority issues certificates with SPIFFE names.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))(t)
	a := &authority{cert: must(x509.ParseCertificate(der))(t), key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(t testing.TB, id string) tls.Certificate {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{must(url.Parse(id))(t)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key))(t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func certPEM(der []byte) []byte {
	return encodePEM("CERTIFICATE", der)
}

func keyPEM(t testing.TB, c tls.Certificate) []byte {
	t.Helper()
	return encodePEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(c.PrivateKey))(t))
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// tlsConfig is mutual TLS as id with a peer that has the id want, or any of ours if that is empty.
func (a *authority) tlsConfig(t testing.TB, id, want string) *tls.Config {
	verify := func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("no certificate")
		}
		leaf := s.PeerCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: a.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			return err
		}
		if want != "" && (len(leaf.URIs) != 1 || leaf.URIs[0].String() != want) {
			return fmt.Errorf("peer is %v, want %s", leaf.URIs, want)
		}
		return nil
	}
	return &tls.Config{
		Certificates: []tls.Certificate{a.issue(t, id)}, ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true,
		VerifyConnection: verify, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	}
}

// tunnel is one CONNECT that a node received.
type tunnel struct{ authority, xfcc, peer string }

// node stands for a pod and the ztunnel before it: it takes tunnels on port 15008 of an address of its own and connects
// what is in them to an application.
type node struct {
	ip netip.Addr

	mu      sync.Mutex
	tunnels []tunnel
	byLocal map[string]tunnel // by the address that the application sees
	apps    map[uint16]string // where the application of a port really listens
}

// startNode listens where nobody else does.
func startNode(t testing.TB, a *authority, id string) *node {
	t.Helper()
	n := &node{byLocal: map[string]tunnel{}, apps: map[uint16]string{}}
	ln := n.listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	srv := hbone.NewServer(hbone.ServerConfig{TLS: a.tlsConfig(t, id, ""), Handle: n.serve})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() { srv.ServeConn(ctx, c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		cancel()
		srv.Close()
		wg.Wait()
	})
	return n
}

// listen tries addresses of loopback until one is free: several runs of the tests share the machine.
func (n *node) listen(t testing.TB) *net.TCPListener {
	t.Helper()
	for range 100 {
		var b [3]byte
		rand.Read(b[:])
		n.ip = netip.AddrFrom4([4]byte{127, b[0] | 1, b[1], b[2] | 1})
		ln, err := net.Listen("tcp", netip.AddrPortFrom(n.ip, ports.HBONE).String())
		if err == nil {
			return ln.(*net.TCPListener)
		}
	}
	t.Fatal("no address of loopback is free")
	return nil
}

func (n *node) serve(_ context.Context, r *hbone.Request) {
	_, port, _ := strings.Cut(r.Authority, ":")
	n.mu.Lock()
	app := n.apps[parsePort(port)]
	n.mu.Unlock()
	up, err := net.Dial("tcp", app)
	if err != nil {
		r.Reject(503)
		return
	}
	seen := tunnel{r.Authority, r.Header("x-forwarded-client-cert"), ""}
	if certs := r.TLS.PeerCertificates; len(certs) > 0 && len(certs[0].URIs) > 0 {
		seen.peer = certs[0].URIs[0].String()
	}
	n.mu.Lock()
	n.tunnels = append(n.tunnels, seen)
	n.byLocal[up.LocalAddr().String()] = seen
	n.mu.Unlock()
	s, err := r.Accept(nil)
	if err != nil {
		up.Close()
		return
	}
	s.Splice(up.(*net.TCPConn))
}

func parsePort(s string) uint16 {
	ap, err := netip.ParseAddrPort("0.0.0.0:" + s)
	if err != nil {
		return 0
	}
	return ap.Port()
}

// app lets a port of the pod lead to a listener, and returns the pod's address with that port.
func (n *node) app(port uint16, addr string) netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.apps[port] = addr
	return netip.AddrPortFrom(n.ip, port)
}

func (n *node) seen() []tunnel {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.tunnels)
}

// tunnelOf is the one through which the application's connection from remote came.
func (n *node) tunnelOf(remote string) tunnel {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byLocal[remote]
}

// client is a pod that uses the waypoint.
type client struct {
	pool   *hbone.Pool
	target hbone.Target
	wg     sync.WaitGroup
}

func startClient(t testing.TB, a *authority, id, proxy string, addr netip.AddrPort) *client {
	t.Helper()
	cfg := a.tlsConfig(t, id, proxy)
	c := &client{target: hbone.Target{Source: id, Dest: []string{proxy}, Addr: addr}}
	c.pool = hbone.NewPool(hbone.PoolConfig{
		Dial: func(ctx context.Context, tg hbone.Target) (*net.TCPConn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", tg.Addr.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
		TLS: func(context.Context, hbone.Target) (*tls.Config, error) { return cfg, nil },
	})
	t.Cleanup(func() {
		c.pool.Close()
		c.wg.Wait()
	})
	return c
}

// open asks for a tunnel, as a ztunnel does for a pod.
func (c *client) open(t testing.TB, to string) (*hbone.Stream, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	return c.pool.Open(ctx, c.target, to, []hbone.Header{
		{Name: "baggage", Value: "k8s.namespace.name=shop,k8s.deployment.name=client,service.name=client"},
		{Name: "x-forwarded-client-cert", Value: "URI=spiffe://forged"},
	})
}

// dial returns a connection through a new tunnel.
func (c *client) dial(t testing.TB, to string) *net.TCPConn {
	t.Helper()
	conn, err := c.try(t, to)
	if err != nil {
		t.Fatalf("open %s: %v", to, err)
	}
	return conn
}

// try is dial that may fail.
func (c *client) try(t testing.TB, to string) (*net.TCPConn, error) {
	t.Helper()
	s, err := c.open(t, to)
	if err != nil {
		return nil, err
	}
	ln := must(net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))(t)
	defer ln.Close()
	near := must(net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr)))(t)
	far := must(ln.AcceptTCP())(t)
	c.wg.Go(func() { s.Splice(far) })
	near.SetDeadline(time.Now().Add(deadline))
	t.Cleanup(func() { near.Close() })
	return near, nil
}
