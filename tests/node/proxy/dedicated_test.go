package proxy

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
)

// socks asks the SOCKS5 port of a host's proxy for a destination.
func (p *pod) socks(request ...byte) (*net.TCPConn, error) {
	c := p.mustDial(netip.MustParseAddrPort("127.0.0.1:15080"))
	if _, err := c.Write(append([]byte{5, 1, 0, 5, 1, 0}, request...)); err != nil {
		return nil, err
	}
	answer := make([]byte, 12)
	if _, err := io.ReadFull(c, answer); err != nil {
		return nil, err
	}
	if answer[0] != 5 || answer[1] != 0 || answer[3] != 0 {
		return nil, fmt.Errorf("answered %v", answer)
	}
	return c, nil
}

func TestAHostWithoutCaptureIsServedBySOCKS(t *testing.T) {
	m := newMesh(t)
	m.vip("web", "10.96.0.1", appPort, "b")
	m.writeState()
	a, b := m.pods["a"], m.pods["b"]
	proxies := map[string]*process{}
	for _, p := range []*pod{a, b} {
		proxies[p.Name] = p.node.startProcess(p.NetNS, 16000, "PROXY_MODE=dedicated", "POD_NAME="+p.Name, "POD_NAMESPACE=default", "SERVICE_ACCOUNT="+p.sa)
		proxies[p.Name].waitReady()
	}
	b.serveEcho(appPort)
	ip := b.IP.As4()
	name := "web.default.svc"
	for what, request := range map[string][]byte{
		"address": {1, ip[0], ip[1], ip[2], ip[3], appPort >> 8, appPort & 0xff},
		"name":    append(append([]byte{3, byte(len(name))}, name...), 0, 80),
	} {
		c, err := a.socks(request...)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := (stream{c, what}).talk(); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	proxies["b"].access("direction=inbound", "src.identity=spiffe://cluster.local/ns/default/sa/sa-a", "dst.identity=spiffe://cluster.local/ns/default/sa/sa-b")
	proxies["a"].access("direction=outbound", "dst.service=web.default.svc")
	// The proxy itself is no destination.
	c, err := a.socks(1, 127, 0, 0, 1, 15001>>8, 15001&0xff)
	if err != nil {
		t.Fatal(err)
	}
	if err := wasReset(c); err != nil {
		t.Error(err)
	}
	for _, p := range proxies {
		p.terminate()
		<-p.done
		if p.err != nil {
			t.Errorf("ztunnel ended with %v", p.err)
		}
	}
}
