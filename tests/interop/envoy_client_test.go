package interop

import (
	"fmt"
	"io"
	"net"
	"testing"
)

// envoyClientConfig makes Envoy carry each TCP connection of a listener in a CONNECT, as a waypoint does towards ztunnel.
func envoyClientConfig(c *ca, server *net.TCPAddr) string {
	listener := func(name, authority string) string {
		return fmt.Sprintf(`
  - name: %s
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: %s
          cluster: hbone
          tunneling_config: {hostname: "%s"}`, name, name, authority)
	}
	return fmt.Sprintf(`
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:%s%s
  clusters:
  - name: hbone
    type: STATIC
    load_assignment:
      cluster_name: hbone
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          alpn_protocols: [h2]
          tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
          tls_certificates:
          - certificate_chain: {filename: %s}
            private_key: {filename: %s}
          validation_context:
            trusted_ca: {filename: %s}
            match_typed_subject_alt_names:
            - {san_type: URI, matcher: {exact: "%s"}}
`, listener("app", "app:80"), listener("denied", "status-401:80"), server.Port,
		c.path("client.pem"), c.path("client-key.pem"), c.path("root.pem"), serverID)
}

func TestEnvoyAsClient(t *testing.T) {
	c, a := newCA(t), newApp(t)
	c.issue(t, "client", clientID)
	s := startServer(t, c, a)
	e := startEnvoy(t, envoyClientConfig(c, s.ln.Addr().(*net.TCPAddr)))
	dial := func(name string) func(t testing.TB) *net.TCPConn {
		return func(t testing.TB) *net.TCPConn {
			t.Helper()
			return must(net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(e.addrs[name])))(t)
		}
	}
	p := &path{app: a, dial: dial("app"), closesOnReset: true}
	p.run(t)

	t.Run("refusal ends the connection", func(t *testing.T) {
		denied := &path{app: a, dial: dial("denied")}
		conn := denied.connect(t)
		if b, err := io.ReadAll(conn); len(b) > 0 {
			t.Errorf("read %q, %v from a refused tunnel", b, err)
		}
	})
	// Before GOAWAY, after which Envoy counts its own closing of a tunnel as an error of the peer.
	t.Run("no protocol errors", func(t *testing.T) {
		for _, name := range []string{"cluster.hbone.upstream_cx_protocol_error", "cluster.hbone.http2.rx_messaging_error"} {
			if got := e.stat(t, name); got != name+": 0" {
				t.Error(got)
			}
		}
	})
	t.Run("goaway", func(t *testing.T) { p.testGoAway(t, s) })
}

// testGoAway drains our server while a stream lives: the stream goes on, the next one comes on another tunnel.
func (p *path) testGoAway(t *testing.T, s *ourServer) {
	old := p.connect(t)
	talk := func(c *net.TCPConn, first bool) {
		t.Helper()
		if first {
			c.Write([]byte{cmdEcho})
		}
		if _, err := io.WriteString(c, "ping"); err != nil {
			t.Fatalf("write: %v", err)
		}
		b := make([]byte, 4)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
			t.Fatalf("read %q, %v", b, err)
		}
	}
	talk(old, true)
	n := s.count()
	s.drain()
	until(t, "the peer opens another tunnel", func() bool {
		talk(p.connect(t), true)
		return s.count() > n
	})
	talk(old, false)
	old.CloseWrite()
	if b, err := io.ReadAll(old); err != nil || len(b) > 0 {
		t.Errorf("the old stream ended with %q, %v", b, err)
	}
}
