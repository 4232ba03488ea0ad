package config

import (
	"fmt"
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// transportTLS is what the TLS inspector calls a connection that begins with a ClientHello.
const transportTLS = "tls"

// gateway adds a listener for every port.
func (b *builder) gateway() {
	ports := slices.Clone(b.proxy.Ports)
	slices.SortStableFunc(ports, func(x, y model.ProxyPort) int { return int(bind(&x)) - int(bind(&y)) })
	for i := range ports {
		if l := b.portListener(&ports[i]); l != nil {
			b.listener(l)
		}
	}
}

func bind(p *model.ProxyPort) uint16 {
	if p.Bind != 0 {
		return p.Bind
	}
	return p.Port
}

// portListener is nil for a port without chains: Envoy refuses an empty listener, and nothing is to be served.
func (b *builder) portListener(p *model.ProxyPort) *listenerv3.Listener {
	name := fmt.Sprintf("port_%d", bind(p))
	l := b.socketListener(name, bind(p))
	secure := slices.ContainsFunc(p.Chains, func(c model.PortChain) bool { return c.TLS != nil || len(c.SNI) > 0 || c.Reject })
	if secure {
		l.ListenerFilters = []*listenerv3.ListenerFilter{{
			Name:       "envoy.filters.listener.tls_inspector",
			ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.pack(&inspectorv3.TlsInspector{})},
		}}
	}
	taken := map[string]bool{}
	for i := range p.Chains {
		if c := b.portChain(name, &p.Chains[i], taken); c != nil {
			l.FilterChains = append(l.FilterChains, c)
		}
	}
	if len(l.FilterChains) == 0 {
		return nil
	}
	return l
}

// portChain is nil if all of its names are served by an earlier chain already: Envoy refuses two of equal match, and with
// them the whole listener.
func (b *builder) portChain(listener string, c *model.PortChain, taken map[string]bool) *listenerv3.FilterChain {
	out := &listenerv3.FilterChain{Name: c.Name}
	match := &listenerv3.FilterChainMatch{}
	if c.TLS != nil || c.Reject || len(c.SNI) > 0 {
		match.TransportProtocol = transportTLS
	}
	all := len(c.SNI) == 0
	for _, n := range c.SNI {
		n = strings.ToLower(n)
		if n == "*" {
			all = true
		}
		if !all && !taken[n] {
			match.ServerNames = append(match.ServerNames, n)
		}
	}
	if all {
		match.ServerNames = nil
		n := "*" + match.TransportProtocol
		if taken[n] {
			return nil
		}
		taken[n] = true
	} else if len(match.ServerNames) == 0 {
		return nil
	}
	for _, n := range match.ServerNames {
		taken[n] = true
	}
	if match.TransportProtocol != "" {
		out.FilterChainMatch = match
	}
	b.fillChain(listener, c, out)
	return out
}

// fillChain says what happens to the connections of a chain. One whose certificate is missing is closed.
func (b *builder) fillChain(listener string, c *model.PortChain, out *listenerv3.FilterChain) {
	if c.Reject || c.TLS != nil && !hasCertificate(c.TLS) {
		out.Filters = b.refuse()
		return
	}
	if c.TLS != nil {
		var alpn []string
		if c.Routes != "" {
			alpn = []string{"h2", "http/1.1"}
		}
		out.TransportSocket = b.serverTLS(b.proxy.Key.String()+"/"+listener+"/"+c.Name, c.TLS, alpn)
	}
	if c.Routes == "" {
		out.Filters = b.forward(c.TCP, false)
		return
	}
	m := b.manager(listener)
	table(m, c.Routes)
	out.Filters = []*listenerv3.Filter{b.managerFilter(m)}
}
