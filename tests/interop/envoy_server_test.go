package interop

import (
	"fmt"
	"io"
	"net"
	"testing"
)

// envoyServerConfig makes Envoy end CONNECTs, as a waypoint does for ztunnel. Envoy returns connection credit only when
// the stream's bytes are read, so the connection's window has to be larger than those of the streams that may stall.
func envoyServerConfig(c *ca, a *net.TCPAddr) string {
	listener := func(name, options string) string {
		return fmt.Sprintf(`
  - name: %s
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
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
      filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: %s
          codec_type: HTTP2
          http2_protocol_options: {allow_connect: true, initial_stream_window_size: 1048576, initial_connection_window_size: 67108864}
          upgrade_configs: [{upgrade_type: CONNECT}]
          %s
          route_config:
            virtual_hosts:
            - name: denied
              domains: ["status-401:80"]
              routes: [{match: {connect_matcher: {}}, direct_response: {status: 401}}]
            - name: dead
              domains: ["dead:80"]
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: dead, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
            - name: app
              domains: ["*"]
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: app, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}`,
			name, c.path("server.pem"), c.path("server-key.pem"), c.path("root.pem"), clientID, name, options)
	}
	cluster := func(name string, port int) string {
		return fmt.Sprintf(`
  - name: %s
    type: STATIC
    load_assignment:
      cluster_name: %s
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]`, name, name, port)
	}
	return "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\nstatic_resources:\n  listeners:" +
		listener("hbone", "") +
		listener("brief", "common_http_protocol_options: {max_requests_per_connection: 3}") +
		"\n  clusters:" + cluster("app", a.Port) + cluster("dead", 1) + "\n"
}

func TestEnvoyAsServer(t *testing.T) {
	c, a := newCA(t), newApp(t)
	c.issue(t, "server", serverID)
	e := startEnvoy(t, envoyServerConfig(c, a.addr()))
	o := startClient(t, c, e.addrs["hbone"])
	p := &path{app: a, dial: o.dial}
	p.run(t)

	t.Run("status codes", func(t *testing.T) {
		o.wantStatus(t, "status-401:80", 401)
		o.wantStatus(t, "dead:80", 503)
	})
	t.Run("goaway", func(t *testing.T) {
		brief := startClient(t, c, e.addrs["brief"]) // GOAWAY with the third request
		bp := &path{app: a, dial: brief.dial}
		old := bp.connect(t)
		old.Write([]byte{cmdEcho})
		for range 10 {
			if err := echoes(bp.connect(t), 3000); err != nil {
				t.Fatal(err)
			}
		}
		io.WriteString(old, "old stream")
		old.CloseWrite()
		if b, err := io.ReadAll(old); err != nil || string(b) != "old stream" {
			t.Errorf("the stream from before GOAWAY read %q, %v", b, err)
		}
	})
	t.Run("no protocol errors", func(t *testing.T) {
		for _, name := range []string{"http2.rx_messaging_error", "http.hbone.downstream_cx_protocol_error", "http2.outbound_control_flood"} {
			if got := e.stat(t, name); got != name+": 0" {
				t.Error(got)
			}
		}
	})
}
