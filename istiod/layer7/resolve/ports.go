package resolve

import (
	"slices"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// server is one listener of one of the gateways that a proxy serves.
type server struct {
	gateway *model.Gateway
	id      index.ID
	state   *ListenerState
}

// gateways are those that a proxy serves: its own Gateway, or Istio's that choose its pods, oldest first.
func gateways(r *index.Reader, t Target) []*model.Gateway {
	if t.Gateway != nil {
		return []*model.Gateway{t.Gateway}
	}
	var out []*model.Gateway
	for _, g := range r.IstioGatewayList() {
		if labelled(g.Selector, t.Labels) {
			out = append(out, g)
		}
	}
	return out
}

// servers are the usable listeners of a proxy, by port. As with Istio, of several protocols on one port that cannot
// share it the first one has it.
func servers(r *index.Reader, t Target) map[uint16][]server {
	out := map[uint16][]server{}
	for _, g := range gateways(r, t) {
		states := Listeners(r, g, t.Namespace)
		for i := range states {
			l := &states[i]
			if !l.Usable() || l.Port == 0 || l.Protocol == model.ListenHBONE {
				continue
			}
			if others := out[l.Port]; len(others) > 0 && (family(others[0].state.Protocol) != family(l.Protocol) || l.Protocol == model.ListenTCP) {
				continue
			}
			out[l.Port] = append(out[l.Port], server{g, index.NewID(g.Kind, g.Key), l})
		}
	}
	return out
}

// PlainTable names the route table of a port that speaks HTTP, TLSTable that of a listener that terminates TLS.
func PlainTable(port uint16) string { return "http." + strconv.Itoa(int(port)) }

// TLSTable names the route table of one listener.
func TLSTable(port uint16, g *model.Gateway, listener string) string {
	return tlsPrefix(port) + g.Namespace + "." + g.Name + "." + listener
}

func tlsPrefix(port uint16) string { return "https." + strconv.Itoa(int(port)) + "." }

// Ports computes the sockets of a gateway.
func Ports(r *index.Reader, t Target) Output {
	b := newBuilder(r, t)
	var out Output
	all := servers(r, t)
	for _, port := range sortedKeys(all) {
		pp := model.ProxyPort{Port: port, Bind: b.bind(port)}
		for i, s := range all[port] {
			switch s.state.Protocol {
			case model.ListenHTTP:
				if i == 0 { // one chain for the port: hosts are told apart by the route table
					pp.Chains = append(pp.Chains, model.PortChain{Name: PlainTable(port), Routes: PlainTable(port)})
					out.TableNames = append(out.TableNames, PlainTable(port))
				}
			case model.ListenHTTPS:
				c := b.chain(s)
				if !c.Reject {
					c.Routes = c.Name
					out.TableNames = append(out.TableNames, c.Routes)
				}
				pp.Chains = append(pp.Chains, c)
			case model.ListenTLS:
				pp.Chains = append(pp.Chains, b.tlsChains(s)...)
			case model.ListenTCP:
				pp.Chains = append(pp.Chains, b.tcpChain(s))
			}
		}
		pp.Chains = distinct(pp.Chains)
		if len(pp.Chains) > 0 {
			out.Ports = append(out.Ports, pp)
		}
	}
	return b.finish(out)
}

// distinct leaves of several chains for one name only the first one's: Envoy refuses a listener with the same match twice.
func distinct(chains []model.PortChain) []model.PortChain {
	seen := map[string]bool{}
	var out []model.PortChain
	for _, c := range chains {
		var names []string
		for _, n := range c.SNI {
			if !seen[n] {
				seen[n] = true
				names = append(names, n)
			}
		}
		if len(c.SNI) == 0 {
			if seen[""] {
				continue
			}
			seen[""] = true
		} else if len(names) == 0 {
			continue
		}
		c.SNI = names
		out = append(out, c)
	}
	return out
}

// bind is where the proxy's pods listen for a port of the gateway: the target port of the Service in front of them.
func (b *builder) bind(port uint16) uint16 {
	for _, key := range b.t.Services {
		if s := b.r.KubeService(key); s != nil {
			if p, ok := s.Port(port); ok && p.Target != 0 {
				return p.Target
			}
		}
	}
	return port
}

// chain is the filter chain of a listener that terminates TLS; it rejects if it has nothing to terminate it with.
func (b *builder) chain(s server) model.PortChain {
	out := model.PortChain{Name: TLSTable(s.state.Port, s.gateway, s.state.Name), SNI: sni(s), Reject: !s.state.Serves()}
	if out.Reject {
		return out
	}
	in := s.state.TLS
	out.TLS = &model.ServerTLS{
		Certificates: s.state.Certificates, ClientCA: s.state.ClientCA, Optional: in.Optional, Insecure: in.Insecure,
		Mesh: in.IstioMutual, MinVersion: in.MinVersion, MaxVersion: in.MaxVersion, Ciphers: in.Ciphers, SANs: in.SANs,
		CertFile: in.CertFile, KeyFile: in.KeyFile, CAFile: in.CAFile,
	}
	return out
}

// sni are the names of a listener; none means all.
func sni(s server) []string {
	if s.gateway.Kind == model.KindGateway {
		if s.state.Hostname == "" {
			return nil
		}
		return []string{s.state.Hostname}
	}
	var out []string
	for _, h := range s.state.Hosts {
		_, host, ok := strings.Cut(h, "/")
		if !ok {
			host = h
		}
		if host == "*" {
			return nil
		}
		if !slices.Contains(out, host) {
			out = append(out, host)
		}
	}
	return out
}

// tlsChains are one chain for each rule of the routes attached to a TLS listener, which SNI chooses.
func (b *builder) tlsChains(s server) []model.PortChain {
	base := b.chain(s)
	if base.Reject {
		return []model.PortChain{base}
	}
	if s.state.TLS != nil && s.state.TLS.Passthrough {
		base.TLS = nil
	}
	var out []model.PortChain
	for _, a := range b.attached(s) {
		for _, l4 := range l4Rules(a.Route) {
			names := b.l4Names(s, a.Route, l4)
			if names == nil {
				continue
			}
			c := base
			c.Name = base.Name + "." + strconv.Itoa(len(out))
			c.SNI = names
			if slices.Contains(names, "*") {
				c.SNI = nil
			}
			c.TCP = &model.TCPForward{Name: c.Name, Authz: b.known(applying[*model.Authorization](b, nil, s.state.Name)), SNI: c.SNI}
			b.forwardTo(c.TCP, a.Route, l4, call{port: s.state.Port, gateway: s.gateway.Key.String()})
			out = append(out, c)
		}
	}
	return out
}

// l4Rules are the rules of a route that forwards connections.
func l4Rules(route *model.Route) []*model.L4Rule {
	var out []*model.L4Rule
	for i := range route.TLS {
		out = append(out, &route.TLS[i])
	}
	for i := range route.TCP {
		out = append(out, &route.TCP[i])
	}
	return out
}

// l4Names are the names for which a rule stands on a listener; nil if it does not stand there at all.
func (b *builder) l4Names(s server, route *model.Route, rule *model.L4Rule) []string {
	if s.gateway.Kind == model.KindGateway {
		return intersect(s.state.Hostname, hostnamesOf(route, s.state.Listener))
	}
	hosts := serverHosts(s.gateway, s.state.Listener, route)
	if len(rule.Matches) == 0 {
		return hosts
	}
	var out []string
	for _, m := range rule.Matches {
		if m.Port != 0 && m.Port != s.state.Port || len(m.Gateways) > 0 && !slices.Contains(m.Gateways, s.gateway.Key.String()) {
			continue
		}
		if len(m.SNI) == 0 {
			return hosts
		}
		for _, h := range hosts {
			out = append(out, intersect(h, m.SNI)...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// tcpChain forwards all connections of a listener by its oldest route; without one they are closed.
func (b *builder) tcpChain(s server) model.PortChain {
	name := "tcp." + strconv.Itoa(int(s.state.Port))
	out := model.PortChain{Name: name, TCP: &model.TCPForward{Name: name, Authz: b.known(applying[*model.Authorization](b, nil, s.state.Name))}}
	for _, a := range b.attached(s) {
		for _, l4 := range l4Rules(a.Route) {
			if b.l4Names(s, a.Route, l4) != nil {
				b.forwardTo(out.TCP, a.Route, l4, call{port: s.state.Port, gateway: s.gateway.Key.String()})
				return out
			}
		}
	}
	out.TCP.Refuse = true
	return out
}

// attached are the routes attached to a listener, oldest first.
func (b *builder) attached(s server) []index.Attachment {
	var out []index.Attachment
	for _, a := range b.r.AttachedTo(s.id) {
		if slices.Contains(a.Listeners, s.state.Name) {
			out = append(out, a)
		}
	}
	return out
}
