package istionet

import (
	"fmt"
	"math"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// loneWeight is the weight of an only destination, whatever is written.
const loneWeight = 100

func (o *object) httpRule(field string, r *networking.HTTPRoute, delegate bool) model.HTTPRule {
	if r == nil {
		o.fail(field, "is null")
		return model.HTTPRule{}
	}
	o.httpConflicts(field, r, delegate)
	out := model.HTTPRule{
		Name:     r.GetName(),
		Matches:  o.httpMatches(field+".match", r.GetMatch()),
		Backends: o.httpBackends(field+".route", r.GetRoute()),
		Redirect: o.redirect(field+".redirect", r),
		Direct:   o.direct(field+".directResponse", r.GetDirectResponse()),
		Mirrors:  o.mirrors(field, r),
		Fault:    o.fault(field+".fault", r.GetFault()),
		Retry:    o.retry(field+".retries", r.GetRetries()),
		Timeout:  o.durationOrOff(field+".timeout", r.GetTimeout()),
		CORS:     o.cors(field+".corsPolicy", r.GetCorsPolicy()),
	}
	var authority string
	out.Request, authority = o.headerOps(field+".headers.request", r.GetHeaders().GetRequest(), true)
	out.Response, _ = o.headerOps(field+".headers.response", r.GetHeaders().GetResponse(), false)
	out.Rewrite, out.Authority = o.rewrite(field+".rewrite", r.GetRewrite())
	switch {
	case out.Authority != "" && authority != "":
		o.fail(field+".rewrite.authority", "headers.request sets the authority too")
	case authority != "":
		out.Authority = authority
	}
	if d := r.GetDelegate(); d != nil {
		key := model.Key{Namespace: d.GetNamespace(), Name: d.GetName()}
		if key.Namespace == "" {
			key.Namespace = o.meta.Namespace
		}
		if key.Name == "" {
			o.fail(field+".delegate.name", "is required")
		}
		out.Delegate = &key
	}
	return out
}

// httpConflicts: a rule forwards, redirects, answers or delegates.
func (o *object) httpConflicts(field string, r *networking.HTTPRoute, delegate bool) {
	exclusive := func(name, other string, isSet bool) {
		if isSet {
			o.fail(field+"."+name, "excludes %s", other)
		}
	}
	if r.GetDelegate() != nil {
		if delegate {
			o.fail(field+".delegate", "a delegate has none itself")
		}
		exclusive("delegate", "redirect", r.GetRedirect() != nil)
		exclusive("delegate", "route", r.GetRoute() != nil)
		return
	}
	for _, end := range []struct {
		name  string
		isSet bool
	}{{"redirect", r.GetRedirect() != nil}, {"directResponse", r.GetDirectResponse() != nil}} {
		if end.isSet {
			exclusive(end.name, "route", len(r.GetRoute()) > 0)
			exclusive(end.name, "fault", r.GetFault() != nil)
			exclusive(end.name, "rewrite", r.GetRewrite() != nil)
		}
	}
	exclusive("redirect", "directResponse", r.GetRedirect() != nil && r.GetDirectResponse() != nil)
	if r.GetRedirect() == nil && r.GetDirectResponse() == nil && len(r.GetRoute()) == 0 {
		o.fail(field, "route, redirect or directResponse is required")
	}
}

func (o *object) httpBackends(field string, in []*networking.HTTPRouteDestination) []model.Backend {
	var out []model.Backend
	for i, d := range in {
		at := fmt.Sprintf("%s[%d]", field, i)
		b, ok := o.backend(at, d == nil, d.GetDestination(), d.GetWeight())
		if !ok {
			continue
		}
		b.Request, b.Authority = o.headerOps(at+".headers.request", d.GetHeaders().GetRequest(), true)
		b.Response, _ = o.headerOps(at+".headers.response", d.GetHeaders().GetResponse(), false)
		out = append(out, b)
	}
	return o.weights(field, out)
}

func (o *object) backend(field string, null bool, d *networking.Destination, weight int32) (model.Backend, bool) {
	if null {
		o.fail(field, "is null")
		return model.Backend{}, false
	}
	if d == nil {
		o.fail(field+".destination", "is required")
		return model.Backend{}, false
	}
	return model.Backend{Destination: o.destination(field+".destination", d), Weight: o.count(field+".weight", weight)}, true
}

// weights: an only destination gets everything; among several somebody must get something.
func (o *object) weights(field string, in []model.Backend) []model.Backend {
	if len(in) == 1 {
		in[0].Weight = loneWeight
		return in
	}
	var total uint64
	for _, b := range in {
		total += uint64(b.Weight)
	}
	switch {
	case len(in) > 0 && total == 0:
		o.fail(field, "all weights are 0")
	case total > math.MaxUint32:
		o.fail(field, "the sum of the weights is more than %d", uint32(math.MaxUint32))
	}
	return in
}

func (o *object) destination(field string, d *networking.Destination) model.Destination {
	out := model.Destination{Host: o.fqdn(d.GetHost()), Subset: d.GetSubset()}
	if d.GetHost() == "*" {
		o.fail(field+".host", "* is no destination")
	} else {
		o.domain(field+".host", d.GetHost())
	}
	if out.Subset != "" {
		o.subsetName(field+".subset", out.Subset)
	}
	if d.GetPort() != nil {
		out.Port = o.port(field+".port.number", d.GetPort().GetNumber())
	}
	return out
}

func (o *object) subsetName(field, name string) {
	if !isLabel(name) {
		o.fail(field, "%q is not the name of a subset", name)
	}
}
