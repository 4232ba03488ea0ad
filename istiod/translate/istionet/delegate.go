package istionet

import (
	"maps"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// Delegate puts the rules of a delegate in the place of root, which names it. Each rule keeps what it says itself and
// has the rest from root; a rule that asks for requests which root does not take is left out. (Istio's API,
// HTTPRoute.delegate.)
func Delegate(root model.HTTPRule, rules []model.HTTPRule) []model.HTTPRule {
	var out []model.HTTPRule
	for _, r := range rules {
		matches, ok := delegateMatches(root.Matches, r.Matches)
		if !ok {
			continue
		}
		r.Matches = matches
		inherit(&r, &root)
		out = append(out, r)
	}
	return out
}

func inherit(r, root *model.HTTPRule) {
	switch {
	case r.Name == "":
		r.Name = root.Name
	case root.Name != "":
		r.Name = root.Name + "-" + r.Name
	}
	if r.Rewrite == nil && r.Authority == "" {
		r.Rewrite, r.Authority = root.Rewrite, root.Authority
	}
	if r.Request.IsZero() && r.Response.IsZero() {
		r.Request, r.Response = root.Request, root.Response
	}
	if r.Timeout == nil {
		r.Timeout = root.Timeout
	}
	if r.Retry == nil {
		r.Retry = root.Retry
	}
	if r.Fault == nil {
		r.Fault = root.Fault
	}
	if r.Mirrors == nil {
		r.Mirrors = root.Mirrors
	}
	if r.CORS == nil {
		r.CORS = root.CORS
	}
	if r.Redirect != nil || r.Direct != nil {
		// Such a rule forwards nothing.
		r.Rewrite, r.Authority, r.Fault = nil, "", nil
	}
}

func delegateMatches(root, leaf []model.HTTPMatch) ([]model.HTTPMatch, bool) {
	if len(root) == 0 {
		return leaf, true
	}
	if len(leaf) == 0 {
		return root, true
	}
	var out []model.HTTPMatch
	for i := range leaf {
		found := false
		for j := range root {
			if m, ok := delegateMatch(&root[j], &leaf[i]); ok {
				out, found = append(out, m), true
			}
		}
		// One alternative outside root makes the whole rule a conflict, as with Istio.
		if !found {
			return nil, false
		}
	}
	return out, true
}

// delegateMatch joins two matches, or tells that leaf is not a part of root.
func delegateMatch(root, leaf *model.HTTPMatch) (model.HTTPMatch, bool) {
	out := *leaf
	ok := true
	join := func(r, l *model.StringMatch) *model.StringMatch {
		if l == nil {
			return r
		}
		ok = ok && (r == nil || partOf(*l, *r))
		return l
	}
	out.Path = join(root.Path, leaf.Path)
	out.Method = join(root.Method, leaf.Method)
	out.Scheme = join(root.Scheme, leaf.Scheme)
	out.Authority = join(root.Authority, leaf.Authority)
	joinAll := func(r, l []model.NamedMatch) []model.NamedMatch {
		joined := slices.Clone(l)
		for _, m := range r {
			i := slices.IndexFunc(l, func(o model.NamedMatch) bool { return o.Name == m.Name && o.Not == m.Not })
			if i < 0 {
				joined = append(joined, m)
				continue
			}
			// The opposite of a part is more than the opposite of the whole.
			part, whole := l[i].StringMatch, m.StringMatch
			if m.Not {
				part, whole = whole, part
			}
			ok = ok && partOf(part, whole)
		}
		return joined
	}
	out.Headers = joinAll(root.Headers, leaf.Headers)
	out.Query = joinAll(root.Query, leaf.Query)
	out.Claims = joinAll(root.Claims, leaf.Claims)
	if out.Port == 0 {
		out.Port = root.Port
	}
	ok = ok && (root.Port == 0 || out.Port == root.Port)
	if out.SourceNamespace == "" {
		out.SourceNamespace = root.SourceNamespace
	}
	ok = ok && (root.SourceNamespace == "" || out.SourceNamespace == root.SourceNamespace)
	if len(root.SourceLabels) > 0 {
		out.SourceLabels = maps.Clone(root.SourceLabels)
		for k, v := range leaf.SourceLabels {
			have, there := out.SourceLabels[k]
			ok = ok && (!there || have == v)
			out.SourceLabels[k] = v
		}
	}
	if len(out.Gateways) == 0 {
		out.Gateways = root.Gateways
	}
	for _, g := range out.Gateways {
		ok = ok && (len(root.Gateways) == 0 || slices.Contains(root.Gateways, g))
	}
	return out, ok
}

// partOf tells whether whatever l takes, r takes too. Of expressions only equal ones are known to.
func partOf(l, r model.StringMatch) bool {
	switch {
	case l == r || r.Kind == model.MatchPresent:
		return true
	case l.IgnoreCase != r.IgnoreCase || r.Kind != model.MatchPrefix:
		return false
	case l.Kind != model.MatchExact && l.Kind != model.MatchPrefix:
		return false
	case l.IgnoreCase:
		return strings.HasPrefix(strings.ToLower(l.Value), strings.ToLower(r.Value))
	}
	return strings.HasPrefix(l.Value, r.Value)
}
