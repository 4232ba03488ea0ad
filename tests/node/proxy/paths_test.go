package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/linux"
)

const appPort = 8080

// wasReset reports the end that a refused connection has: a reset before any byte.
func wasReset(c net.Conn) error {
	n, err := c.Read(make([]byte, 1))
	if errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return fmt.Errorf("read %d bytes, %v; want a reset", n, err)
}

// isReset connects and reports whether the connection is refused. Where it was
// captured, the handshake may end before the reset comes or not.
func (p *pod) isReset(to netip.AddrPort) error {
	c, err := p.dial(to)
	if errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return wasReset(c)
}

func TestTrafficBetweenPodsIsMutualTLSWithSourceAddressKept(t *testing.T) {
	eachKind(t, func(t *testing.T, m *mesh) {
		m.vip("web", "10.96.0.1", appPort, "b")
		m.start()
		a, b := m.pods["a"], m.pods["b"]
		b.serveHTTP(appPort)
		for _, tt := range []struct {
			name string
			to   netip.AddrPort
			from netip.Addr
		}{
			{"pod address", addr(b, appPort), a.IP},
			{"pod address, IPv6", addr6(b, appPort), a.IP6},
			{"service address", netip.MustParseAddrPort("10.96.0.1:80"), a.IP},
		} {
			got, err := a.get(tt.to)
			if want := fmt.Sprintf("b saw %s", tt.from); err != nil || got != want {
				t.Errorf("%s: got %q, %v, want %q", tt.name, got, err, want)
			}
		}
		src, dst := `src.identity=spiffe://cluster.local/ns/default/sa/sa-a`, `dst.identity=spiffe://cluster.local/ns/default/sa/sa-b`
		tunnel := fmt.Sprintf("dst.addr=%s:15008", b.IP)
		m.nodes[0].proxy.access(src, dst, tunnel, "direction=outbound", "src.workload=a", "dst.workload=b", "dst.hbone_addr="+addr(b, appPort).String(), "dst.service=web.default.svc", "trace_id=")
		m.nodes[1].proxy.access(src, dst, tunnel, "direction=inbound", "src.workload=a", "dst.workload=b", "dst.service=web.default.svc")
		labels := []string{`connection_security_policy="mutual_tls"`, `source_principal="spiffe://cluster.local/ns/default/sa/sa-a"`,
			`destination_principal="spiffe://cluster.local/ns/default/sa/sa-b"`, `source_workload="a"`, `destination_workload="b"`, `response_flags="-"`}
		for i, reporter := range []string{"source", "destination"} {
			p := m.nodes[i].proxy
			eventually(t, reporter+" counts 3 connections", func() bool {
				return p.metric("istio_tcp_connections_closed_total", append(labels, `reporter="`+reporter+`"`)...) == 3
			})
			if n := p.metric("istio_tcp_connections_opened_total", append(labels, `reporter="`+reporter+`"`)...); n != 3 {
				t.Errorf("%s counts %v opened", reporter, n)
			}
		}
	})
}

func TestBothSidesCountTheSameBytes(t *testing.T) {
	m := newMesh(t).start()
	a, b := m.pods["a"], m.pods["b"]
	b.serveTCP(appPort, func(c *net.TCPConn) {
		defer c.Close()
		buf := make([]byte, 11)
		if _, err := io.ReadFull(c, buf); err == nil {
			_, _ = c.Write(append(buf, buf...))
		}
	})
	c := a.mustDial(addr(b, appPort))
	if _, err := c.Write([]byte("hello world")); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello worldhello world" {
		t.Fatalf("got %q, %v", got, err)
	}
	c.Close()
	// As Istio: received is what the client sent, for both reporters; the log has each workload's own view.
	m.nodes[0].proxy.access("direction=outbound", "bytes_sent=11", "bytes_recv=22")
	m.nodes[1].proxy.access("direction=inbound", "bytes_sent=22", "bytes_recv=11")
	for _, n := range m.nodes {
		if got := n.proxy.metric("istio_tcp_received_bytes_total"); got != 11 {
			t.Errorf("%s: received %v", n.top.Name, got)
		}
		if got := n.proxy.metric("istio_tcp_sent_bytes_total"); got != 22 {
			t.Errorf("%s: sent %v", n.top.Name, got)
		}
	}
}

func TestPodsOfOneNodeAndAPodWithItself(t *testing.T) {
	eachKind(t, func(t *testing.T, m *mesh) {
		m.vip("self", "10.96.0.2", appPort, "a")
		m.policies = `- {name: only-a, namespace: default, scope: Namespace, action: Allow, rules: [[[{principals: [{Exact: cluster.local/ns/default/sa/sa-a}]}]]]}` + "\n"
		m.start()
		a, a2 := m.pods["a"], m.pods["a2"]
		a.serveHTTP(appPort)
		a2.serveHTTP(appPort)
		if got, err := a.get(addr(a2, appPort)); err != nil || got != fmt.Sprintf("a2 saw %s", a.IP) {
			t.Errorf("neighbour: got %q, %v", got, err)
		}
		m.nodes[0].proxy.access("direction=inbound", "dst.workload=a2", "src.identity=spiffe://cluster.local/ns/default/sa/sa-a")
		for _, to := range []netip.AddrPort{netip.MustParseAddrPort("10.96.0.2:80"), addr(a, appPort), netip.MustParseAddrPort("127.0.0.1:8080")} {
			if got, err := a.get(to); err != nil || !strings.HasPrefix(got, "a saw ") {
				t.Errorf("itself by %s: got %q, %v", to, got, err)
			}
		}
	})
}

func TestUnknownDestinationsPassThrough(t *testing.T) {
	m := newMesh(t).start()
	a, c := m.pods["a"], m.pods["c"]
	c.serveHTTP(appPort)
	for _, to := range []netip.AddrPort{addr(c, appPort), addr6(c, appPort)} {
		want := fmt.Sprintf("c saw %s", a.IP)
		if to.Addr().Is6() {
			want = fmt.Sprintf("c saw %s", a.IP6)
		}
		if got, err := a.get(to); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", to, got, err, want)
		}
	}
	m.nodes[0].proxy.access("direction=outbound", "dst.addr="+addr(c, appPort).String())
	if n := m.nodes[0].proxy.metric("istio_tcp_connections_opened_total", `connection_security_policy="unknown"`, `destination_workload="unknown"`); n != 2 {
		t.Errorf("counted %v connections", n)
	}
}

func TestPlaintextFromOutsideKeepsItsSourceAddress(t *testing.T) {
	m := newMesh(t).start()
	b, c := m.pods["b"], m.pods["c"]
	b.serveHTTP(appPort)
	for _, tt := range []struct {
		to   netip.AddrPort
		from netip.Addr
	}{{addr(b, appPort), c.IP}, {addr6(b, appPort), c.IP6}} {
		got, err := c.get(tt.to)
		if want := fmt.Sprintf("b saw %s", tt.from); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	line := m.nodes[1].proxy.access("direction=inbound", "dst.workload=b", "dst.addr="+addr(b, appPort).String())
	if strings.Contains(line, "identity") {
		t.Errorf("an identity in the log of a plaintext connection: %s", line)
	}
}

func TestNoHealthyEndpointIsRefusedAndNeverPlaintext(t *testing.T) {
	m := newMesh(t)
	m.vip("empty", "10.96.0.3", appPort)
	m.start()
	a := m.pods["a"]
	began := time.Now()
	if err := a.isReset(netip.MustParseAddrPort("10.96.0.3:80")); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > atOnce {
		t.Errorf("took %v", d)
	}
	m.nodes[0].proxy.access("response_flags=NO_ROUTE", "dst.service=empty.default.svc")
}

func TestAClosedPortIsRefusedAtOnce(t *testing.T) {
	eachKind(t, func(t *testing.T, m *mesh) {
		m.start()
		b := m.pods["b"]
		for name, from := range map[string]*pod{"through the mesh": m.pods["a"], "from outside": m.pods["c"]} {
			for _, to := range []netip.AddrPort{addr(b, 9), addr6(b, 9)} {
				// The first one also resolves neighbours.
				_ = from.isReset(to)
				began := time.Now()
				if err := from.isReset(to); err != nil {
					t.Errorf("%s, %s: %v", name, to, err)
				}
				if d := time.Since(began); d > atOnce {
					t.Errorf("%s, %s: took %v", name, to, d)
				}
			}
		}
		m.nodes[1].proxy.access("direction=inbound", "response_flags=CONNECT", "dst.hbone_addr="+addr(b, 9).String(), "connection refused")
		m.nodes[0].proxy.access("direction=outbound", "response_flags=CONNECT", "503")
	})
}

func TestHalfCloseAndResetCrossTheMesh(t *testing.T) {
	m := newMesh(t).start()
	b := m.pods["b"]
	conns := make(chan *net.TCPConn, 1)
	b.serveTCP(appPort, func(c *net.TCPConn) {
		_ = c.SetDeadline(time.Now().Add(patience))
		conns <- c
	})
	for name, from := range map[string]*pod{"tunnel": m.pods["a"], "plaintext": m.pods["c"]} {
		c := from.mustDial(addr(b, appPort))
		s := <-conns
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(s); err != nil || len(got) != 0 {
			t.Errorf("%s: server read %q, %v; want the end", name, got, err)
		}
		if _, err := s.Write([]byte("late")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
		if got, err := io.ReadAll(c); err != nil || string(got) != "late" {
			t.Errorf("%s: client read %q, %v", name, got, err)
		}

		for _, fromClient := range []bool{true, false} {
			c, s := net.Conn(from.mustDial(addr(b, appPort))), net.Conn(<-conns)
			if !fromClient {
				c, s = s, c
			}
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
			if err := wasReset(s); err != nil {
				t.Errorf("%s, reset by client %t: %v", name, fromClient, err)
			}
			s.Close()
		}
	}
}

func TestCallsToTheProxyItselfGetNowhere(t *testing.T) {
	eachKind(t, func(t *testing.T, m *mesh) {
		m.start()
		a, b, c := m.pods["a"], m.pods["b"], m.pods["c"]
		loop, loop6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
		type call struct {
			from *pod
			to   netip.Addr
		}
		var calls []call
		for _, from := range []*pod{a, c} {
			for _, to := range []netip.Addr{loop, loop6, a.IP, a.IP6, b.IP, b.IP6, m.pods["a2"].IP, m.nodes[0].top.IP} {
				calls = append(calls, call{from, to})
			}
		}
		for _, k := range calls {
			for _, port := range []uint16{15001, 15006, 15008, 15080, 15000, 15020, 15021} {
				to := netip.AddrPortFrom(k.to, port)
				if err := nowhere(k.from, to); err != nil {
					t.Errorf("%s to %s: %v", k.from.Name, to, err)
				}
			}
		}
		// The proxies are as well as before.
		b.serveHTTP(appPort)
		if _, err := a.get(addr(b, appPort)); err != nil {
			t.Error(err)
		}
	})
}

// nowhere passes if a request is not answered: no connection, or one that ends without a byte of HTTP.
func nowhere(from *pod, to netip.AddrPort) error {
	c, err := from.NetNS.Dial(shortly(), to, linux.DialOptions{})
	if err != nil {
		return nil
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	got, err := io.ReadAll(c)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return fmt.Errorf("still open after %v: %w", patience, err)
	}
	if strings.Contains(string(got), "HTTP/") {
		return fmt.Errorf("answered %q", got)
	}
	return nil
}

func TestAdminPagesShowStateWithoutKeys(t *testing.T) {
	m := newMesh(t)
	m.vip("web", "10.96.0.1", appPort, "b")
	m.policies = `- {name: p, namespace: default, scope: Namespace, action: Deny, rules: [[[{destinationPorts: [9]}]]]}` + "\n"
	m.start()
	b := m.pods["b"]
	b.serveEcho(appPort)
	c := m.pods["a"].mustDial(addr(b, appPort))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p := m.nodes[1].proxy
	page := func(method, path string, want int) string {
		code, body, err := p.http(method, p.port, path)
		if err != nil || code != want {
			t.Errorf("%s %s: %d, %v, want %d", method, path, code, err, want)
		}
		return body
	}
	dump := page(http.MethodGet, "/config_dump", http.StatusOK)
	for _, want := range []string{"cluster1//Pod/default/a", "web.default.svc", `"10.96.0.1"`, "spiffe://cluster.local/ns/default/sa/sa-b", "uid-b", "Available", `"p"`, "expirationTime"} {
		if !strings.Contains(dump, strings.Trim(want, `"`)) {
			t.Errorf("config dump has no %s", want)
		}
	}
	if strings.Contains(dump, "PRIVATE") {
		t.Error("a key in the config dump")
	}
	if conns := page(http.MethodGet, "/connections", http.StatusOK); !strings.Contains(conns, `"direction": "inbound"`) || !strings.Contains(conns, "sa-a") {
		t.Errorf("connections: %s", conns)
	}
	if l := page(http.MethodPost, "/logging?level=debug", http.StatusOK); !strings.Contains(l, "debug") {
		t.Errorf("logging: %s", l)
	}
	page(http.MethodGet, "/debug/pprof/heap?debug=1", http.StatusOK)
	page(http.MethodGet, "/quitquitquit", http.StatusMethodNotAllowed)
	c.Close()
	page(http.MethodPost, "/quitquitquit", http.StatusOK)
	select {
	case <-p.done:
		if p.err != nil {
			t.Errorf("ztunnel ended with %v", p.err)
		}
	case <-time.After(patience):
		t.Error("ztunnel did not end")
	}
}
