package layer7

import (
	"fmt"
	"maps"
	"slices"

	"github.com/ambit-mesh/ambit/istiod/layer7/index"
	"github.com/ambit-mesh/ambit/istiod/layer7/resolve"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// bindingOutput is which waypoints serve a service.
type bindingOutput struct {
	condition *model.Condition
	waypoints []model.Key
}

// proxyOutput is what a proxy is as a whole.
type proxyOutput struct {
	proxy *model.Proxy
	own   resolve.Output
}

// clusterOutput is a destination.
type clusterOutput struct {
	cluster   *model.Cluster
	endpoints *model.Endpoints
}

// run computes a unit. It reads only through r, and outputs of units of earlier kinds.
func (e *Engine) run(r *index.Reader, u unit) any {
	switch u.kind {
	case unitClass:
		if c := r.Class(u.id.Name); c != nil {
			return resolve.Class(c)
		}
	case unitRoute:
		if route := r.Route(u.id.Kind, u.id.Key); route != nil {
			a := resolve.Attach(r, route)
			return &a
		}
	case unitGateway:
		return e.runGateway(r, u.id)
	case unitBinding:
		if s := r.KubeService(u.id.Key); s != nil {
			c, keys := resolve.Binding(r, s)
			return &bindingOutput{c, keys}
		}
	case unitTarget:
		return e.runTarget(r, u.proxy)
	case unitEntry:
		if entry := r.Entry(u.id.Key); entry != nil {
			st := resolve.Entry(r, entry)
			var keys []model.Key
			if len(entry.Hosts) > 0 {
				_, keys = resolve.Binding(r, index.EntryService(entry, entry.Hosts[0]))
			}
			return &entryOutput{st, keys, slices.Clone(entry.Hosts)}
		}
	case unitPolicy:
		return e.runPolicy(r, u.id)
	default:
		return e.runPart(r, u)
	}
	return nil
}

// entryOutput is what became of a ServiceEntry.
type entryOutput struct {
	status    model.Status
	waypoints []model.Key
	hosts     []string
}

// runPart computes a part of a proxy.
func (e *Engine) runPart(r *index.Reader, u unit) any {
	p := e.proxies[u.proxy]
	if p == nil || p.target == nil {
		return nil
	}
	t := *p.target
	switch u.kind {
	case unitService:
		if s := serviceOf(r, u); s != nil {
			out := resolve.Service(r, t, s)
			return &out
		}
	case unitPorts:
		out := resolve.Ports(r, t)
		return &out
	case unitTable:
		out := resolve.Table(r, t, u.name)
		return &out
	case unitProxy:
		m, own := resolve.Proxy(r, t, e.partsOf(p))
		return &proxyOutput{m, own}
	case unitCluster:
		c, eps := resolve.Cluster(r, t, u.name)
		if c != nil {
			return &clusterOutput{c, eps}
		}
	}
	return nil
}

// serviceOf finds the service that a unit is for.
func serviceOf(r *index.Reader, u unit) *index.Service {
	if u.id.Kind == model.KindService {
		return r.KubeService(u.id.Key)
	}
	entry := r.Entry(u.id.Key)
	if entry == nil || !slices.Contains(entry.Hosts, u.name) {
		return nil
	}
	return index.EntryService(entry, u.name)
}

// partsOf are the outputs of a proxy's parts, in order.
func (e *Engine) partsOf(p *proxy) []*resolve.Output {
	keys := slices.SortedFunc(maps.Keys(p.parts), func(a, b unit) int {
		return compareUnits(a, b)
	})
	out := make([]*resolve.Output, 0, len(keys))
	for _, k := range keys {
		out = append(out, p.parts[k])
	}
	return out
}

func (e *Engine) runGateway(r *index.Reader, id index.ID) any {
	g := r.Gateway(id.Key)
	if g == nil {
		return nil
	}
	c := r.Class(g.Class)
	if c == nil || !c.Ours || c.Invalid != nil {
		return nil
	}
	out := resolve.Gateway(r, g, e.wasReady(id.Key), e.first)
	if problem := e.deployed[id.Key]; problem != nil {
		out.Status.Conditions = replace(out.Status.Conditions, *problem)
	}
	if refused := e.rejected[id.Key]; len(refused) > 0 {
		names := slices.Sorted(maps.Keys(refused))
		out.Status.Conditions = append(out.Status.Conditions, model.Condition{
			Type: conditionConfig, Reason: "Rejected", Message: fmt.Sprintf("the proxy refused %s: %s", names[0], refused[names[0]]),
		})
	} else if p := e.proxies[id.Key]; p != nil && p.trouble() != "" {
		out.Status.Conditions = append(out.Status.Conditions, model.Condition{
			Type: conditionConfig, Reason: "NotRendered", Message: "cannot be written for the proxy: " + p.trouble(),
		})
	}
	return &gatewayOutput{g, out}
}

// wasReady tells that a waypoint has taken traffic: from then on it keeps it, whatever becomes of its pods, because to
// pass it by would be to pass by its policies.
func (e *Engine) wasReady(gateway model.Key) bool {
	w := e.waypoints[gateway]
	return w != nil && w.Ready
}

// conditionConfig tells of configuration that the proxy itself refused, which goes on with what it had, or that could
// not be written for it.
const conditionConfig = "ambit.dev/ConfigAccepted"

// gatewayOutput is what became of a Gateway of ours.
type gatewayOutput struct {
	gateway *model.Gateway
	result  resolve.GatewayResult
}

// replace puts a condition in the place of the one of its type.
func replace(in []model.Condition, c model.Condition) []model.Condition {
	out := slices.Clone(in)
	for i := range out {
		if out[i].Type == c.Type {
			out[i] = c
			return out
		}
	}
	return append(out, c)
}

// runTarget finds what a proxy is.
func (e *Engine) runTarget(r *index.Reader, key model.Key) any {
	if pod := e.joined[key]; pod != nil && r.Gateway(key) == nil {
		labels := resolve.Stable(pod.Labels)
		t := resolve.Target{Key: key, Labels: labels, ServiceAccount: pod.ServiceAccount}
		t.From = resolve.From(r, r.PodsIn(key.Namespace, labels))
		for _, s := range e.mesh.Services() {
			if s.Namespace == key.Namespace && len(s.Selector) > 0 && chooses(s.Selector, pod.Labels) {
				t.Services = append(t.Services, s.Key)
			}
		}
		return &t
	}
	g := r.Gateway(key)
	if g == nil {
		return nil
	}
	t := resolve.TargetOf(r, g)
	return &t
}

// runPolicy computes the status of a policy, or of another object that proxies only read.
func (e *Engine) runPolicy(r *index.Reader, id index.ID) any {
	var st model.Status
	switch o := e.store.Peek(id).(type) {
	case *model.Authorization:
		st = resolve.Policy(r, o.Meta, o.Targets, o.Warnings)
	case *model.JWTPolicy:
		st = resolve.Policy(r, o.Meta, o.Targets, o.Warnings)
		st.Conditions = append(st.Conditions, e.keysConditions(r, o)...)
	case *model.Telemetry:
		st = resolve.Policy(r, o.Meta, o.Targets, o.Warnings)
	case *model.RateLimit:
		st = resolve.Policy(r, o.Meta, o.Targets, nil)
	case *model.BackendTLS:
		st = resolve.BackendTLS(r, o, e.ancestors(r, o))
	case *model.Gateway:
		st = resolve.IstioGateway(r, o)
	case *model.DestinationRule:
		st = model.Status{Meta: o.Meta}
	default:
		return nil
	}
	return &st
}

// keysConditions tells how it stands with the keys of a policy's issuers.
func (e *Engine) keysConditions(r *index.Reader, o *model.JWTPolicy) []model.Condition {
	if e.cfg.Keys == nil {
		return nil
	}
	var out []model.Condition
	for _, rule := range o.Rules {
		if rule.JWKS != "" {
			continue
		}
		r.KeysOf(rule.Issuer, rule.JWKSURI)
		c := e.cfg.Keys.Condition(rule.JWKSURI, rule.Issuer)
		if len(out) == 0 {
			out = append(out, c)
		} else if out[0].OK && !c.OK {
			out[0] = c
		}
	}
	return out
}

// ancestors are the gateways and waypoints that send to a target of a policy.
func (e *Engine) ancestors(r *index.Reader, o *model.BackendTLS) []model.Key {
	r.Note(index.Dep{Kind: index.Attached, Name: allClusters})
	var out []model.Key
	for key, p := range e.proxies {
		if p.target == nil || p.target.Gateway == nil {
			continue
		}
		for name := range p.references {
			_, _, host, _ := resolve.ParseClusterName(name)
			s := r.ServiceFor(host, key.Namespace)
			if s != nil && slices.ContainsFunc(o.Targets, func(t model.PolicyTarget) bool { return t.Kind == s.Kind() && t.Key == s.Key }) {
				out = append(out, key)
				break
			}
		}
	}
	slices.SortFunc(out, func(a, b model.Key) int {
		if a.Less(b) {
			return -1
		}
		return 1
	})
	return out
}

// allClusters is asked by what depends on which clusters any proxy has.
const allClusters = "clusters"
