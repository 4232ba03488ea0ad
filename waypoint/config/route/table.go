package route

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
	"github.com/ambit-mesh/ambit/waypoint/config/route/rbac"
)

// maxDirectBody is how much of a direct response Envoy takes unless told otherwise.
const maxDirectBody = 4096

// Problem is a rule, or a whole host if Rule is empty, that cannot be written. Its requests are answered with 500; a
// rule whose match cannot be written gets none.
type Problem struct {
	Host, Rule string
	Err        error
}

func (p Problem) Error() string {
	if p.Rule == "" {
		return fmt.Sprintf("write host %q: %v", p.Host, p.Err)
	}
	return fmt.Sprintf("write rule %q of host %q: %v", p.Rule, p.Host, p.Err)
}

// Table writes a route table. It is usable whatever is wrong with single rules; Build tells what is.
func Table(p *model.Proxy, t *model.RouteTable) (*routev3.RouteConfiguration, error) {
	table, _ := Build(p, t)
	return table, nil
}

// Build is Table with what could not be written.
func Build(p *model.Proxy, t *model.RouteTable) (*routev3.RouteConfiguration, []Problem) {
	b := newBuilder(p, t)
	out := &routev3.RouteConfiguration{
		Name: t.Name,
		// Clusters come and go by themselves; a request to one that is not there is answered with 500.
		ValidateClusters: wrapperspb.Bool(false),
		// Hosts are compared without port, as in Gateway API and Istio.
		IgnorePortInHostMatching: true,
	}
	if p.Waypoint {
		// Until here it chose the scope (see names.HeaderAuthority).
		out.RequestHeadersToRemove = []string{names.HeaderAuthority}
	}
	for i := range t.Hosts {
		if h := b.host(&t.Hosts[i]); h != nil {
			out.VirtualHosts = append(out.VirtualHosts, h)
		}
	}
	if b.body > maxDirectBody {
		out.MaxDirectResponseBodySizeBytes = wrapperspb.UInt32(b.body)
	}
	return out, b.problems
}

// builder writes one table.
type builder struct {
	proxy *model.Proxy
	table *model.RouteTable
	// ports are those that clients call for this table; https says that they do so by TLS.
	ports []uint16
	https bool
	rbac  rbac.Options
	// domains are those of earlier hosts: Envoy refuses a table that names one twice.
	domains  map[string]bool
	names    map[string]bool
	body     uint32
	problems []Problem
	// labels are the metadata of routes, one for each service.
	labels map[string]*routeLabels
}

func newBuilder(p *model.Proxy, t *model.RouteTable) *builder {
	b := &builder{proxy: p, table: t, domains: map[string]bool{}, names: map[string]bool{}, rbac: rbacOptions(p), labels: map[string]*routeLabels{}}
	if p.Waypoint {
		if _, port, err := net.SplitHostPort(t.Name); err == nil {
			if n, err := strconv.ParseUint(port, 10, 16); err == nil {
				b.ports = []uint16{uint16(n)}
			}
		}
		return b
	}
	for _, port := range p.Ports {
		for _, c := range port.Chains {
			if c.Routes != t.Name {
				continue
			}
			b.https = b.https || c.TLS != nil
			if n := len(b.ports); n == 0 || b.ports[n-1] != port.Port {
				b.ports = append(b.ports, port.Port)
			}
		}
	}
	return b
}

// rbacOptions are those of HTTP.
func rbacOptions(p *model.Proxy) rbac.Options {
	o := rbac.Options{
		Waypoint: p.Waypoint, TrustDomain: p.TrustDomain, Aliases: p.TrustDomains,
		Providers: map[string]bool{}, Ports: map[uint16][]uint16{},
	}
	for _, e := range p.HTTP.ExtAuthz {
		o.Providers[e.Name] = true
	}
	for _, port := range p.Ports {
		if port.Bind != 0 && port.Bind != port.Port {
			o.Ports[port.Port] = append(o.Ports[port.Port], port.Bind)
		}
	}
	return o
}

// port is the one port that clients call, or 0 if there are several or none is known.
func (b *builder) port() uint16 {
	if len(b.ports) != 1 {
		return 0
	}
	return b.ports[0]
}

// host writes a virtual host. It is nil if earlier hosts have taken all its domains.
func (b *builder) host(h *model.VirtualHost) *routev3.VirtualHost {
	out := &routev3.VirtualHost{Name: b.unique(h.Name), Domains: b.free(h.Domains)}
	if len(out.Domains) == 0 {
		return nil
	}
	policy, err := b.policy(&h.Policy, nil)
	if err != nil {
		b.problems = append(b.problems, Problem{Host: h.Name, Err: err})
		out.Routes = []*routev3.Route{answer(all(), statusInvalid)}
		return out
	}
	out.TypedPerFilterConfig = policy
	if h.RedirectTLS {
		out.RequireTls = routev3.VirtualHost_ALL
	}
	w := hostWriter{builder: b, host: h}
	for i := range h.Rules {
		out.Routes = append(out.Routes, w.rule(&h.Rules[i])...)
	}
	// Envoy looks for a host's policy on the route that it has chosen. Without one, a request would be told 404 before
	// anybody asked who sends it, and its token would not be read, by which a route might be chosen after all.
	if len(policy) > 0 && (len(out.Routes) == 0 || !catchesAll(out.Routes[len(out.Routes)-1])) {
		out.Routes = append(out.Routes, answer(all(), statusNothing))
	}
	return out
}

// unique gives a name that no earlier host has.
func (b *builder) unique(name string) string {
	if name == "" {
		name = "host"
	}
	out := name
	for i := 2; b.names[out]; i++ {
		out = name + "-" + strconv.Itoa(i)
	}
	b.names[out] = true
	return out
}

// free gives the domains, in lower case and without ports, that no earlier host has and that Envoy can load.
func (b *builder) free(domains []string) []string {
	var out []string
	for _, d := range domains {
		d = strings.ToLower(d)
		if host, port, err := net.SplitHostPort(d); err == nil && port != "" {
			d = host
			if strings.Contains(host, ":") {
				d = "[" + host + "]"
			}
		}
		// An asterisk stands for the beginning or the end.
		if d == "" || b.domains[d] || strings.Trim(d, "*") == "" && d != "*" || strings.Contains(strings.TrimSuffix(strings.TrimPrefix(d, "*"), "*"), "*") ||
			len(d) > 1 && strings.HasPrefix(d, "*") && strings.HasSuffix(d, "*") || strings.ContainsAny(d, "\r\n\x00") {
			continue
		}
		b.domains[d] = true
		out = append(out, d)
	}
	return out
}

// pack wraps a message. Equal messages give equal bytes.
func pack(m proto.Message) (*anypb.Any, error) {
	if v, ok := m.(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return nil, fmt.Errorf("pack %s: %w", m.ProtoReflect().Descriptor().Name(), err)
		}
	}
	out := new(anypb.Any)
	if err := anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		return nil, fmt.Errorf("pack %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return out, nil
}
