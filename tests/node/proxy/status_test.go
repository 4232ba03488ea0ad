package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/identity"
	"github.com/ambit-mesh/ambit/internal/identity/ca"
	"github.com/ambit-mesh/ambit/internal/linux"
)

// caller opens tunnels from a pod as any holder of a certificate can.
func (m *mesh) caller(from *pod, id identity.Identity) *hbone.Pool {
	m.t.Helper()
	signer, err := ca.Directory(filepath.Join(m.dir, "ca"))
	if err != nil {
		m.t.Fatal(err)
	}
	certs := identity.NewManager(identity.ManagerConfig{Signer: signer, Validity: time.Hour, Log: quiet()})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = certs.Run(ctx) }()
	certs.Acquire(id)
	pool := hbone.NewPool(hbone.PoolConfig{
		Dial: func(ctx context.Context, t hbone.Target) (*net.TCPConn, error) {
			return from.NetNS.Dial(ctx, t.Addr, linux.DialOptions{})
		},
		TLS: func(ctx context.Context, t hbone.Target) (*tls.Config, error) {
			c, err := certs.Get(ctx, id)
			if err != nil {
				return nil, err
			}
			return identity.ClientTLS(c, t.Dest), nil
		},
		Log: quiet(),
	})
	m.t.Cleanup(func() { pool.Close(); cancel(); <-done })
	return pool
}

func TestRequestsAreRefusedWithTheStatusOfTheirFault(t *testing.T) {
	m := newMesh(t)
	m.vip("web", "10.96.0.1", appPort, "b")
	m.policies = denyA
	m.start()
	b, c := m.pods["b"], m.pods["c"]
	b.serveEcho(appPort)
	local := func(sa string) identity.Identity {
		return identity.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: sa}
	}
	other, denied := m.caller(c, local("sa-z")), m.caller(c, local("sa-a"))
	target := hbone.Target{Dest: []string{local("sa-b").String()}, Addr: addr(b, 15008)}
	for _, tt := range []struct {
		name      string
		pool      *hbone.Pool
		authority string
		want      int // 0: accepted
	}{
		{"the pod's address", other, addr(b, appPort).String(), 0},
		{"a service that the pod serves", other, "web.default.svc:80", 0},
		{"no port", other, b.IP.String(), 400},
		{"garbage", other, "%%:80", 400},
		{"another pod's address", other, addr(m.pods["a"], appPort).String(), 400},
		{"another family", other, addr6(b, appPort).String(), 400},
		{"loopback", other, "127.0.0.1:8080", 400},
		{"an unknown host name", other, "nobody.default.svc:80", 503},
		{"a port that the service has not", other, "web.default.svc:81", 503},
		{"the proxy's outbound port", other, netip.AddrPortFrom(b.IP, 15001).String(), 503},
		{"the proxy's plaintext port", other, netip.AddrPortFrom(b.IP, 15006).String(), 503},
		{"the tunnel port", other, netip.AddrPortFrom(b.IP, 15008).String(), 503},
		{"a closed port", other, addr(b, 9).String(), 503},
		{"denied by policy", denied, addr(b, appPort).String(), 401},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		s, err := tt.pool.Open(ctx, target, tt.authority, []hbone.Header{{Name: "traceparent", Value: "garbage"}})
		cancel()
		status, refused := errors.AsType[*hbone.StatusError](err)
		switch {
		case tt.want == 0 && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.want == 0:
			s.Reset(hbone.CodeCancel)
		case !refused || status.Status != tt.want:
			t.Errorf("%s: got %v, want status %d", tt.name, err, tt.want)
		}
	}
}

func TestPeersThatCannotProveWhoTheyAreGetNoTunnel(t *testing.T) {
	m := newMesh(t).start()
	b, c := m.pods["b"], m.pods["c"]
	b.serveEcho(appPort)
	good := identity.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "sa-b"}
	open := func(id identity.Identity, dest string) error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := m.caller(c, id).Open(ctx, hbone.Target{Dest: []string{dest}, Addr: addr(b, 15008)}, addr(b, appPort).String(), nil)
		return err
	}
	foreign := good
	foreign.TrustDomain = "elsewhere.local"
	if err := open(foreign, good.String()); err == nil {
		t.Error("a peer of another trust domain got a tunnel")
	}
	// And the client does not speak to a server that is not the one it means.
	if err := open(good, "spiffe://cluster.local/ns/default/sa/someone"); err == nil {
		t.Error("the client took another server for the one it meant")
	}
	if err := open(good, good.String()); err != nil {
		t.Errorf("a good peer: %v", err)
	}
}
