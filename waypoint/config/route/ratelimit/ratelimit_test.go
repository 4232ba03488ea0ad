package ratelimit

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/waypoint/config/names"
)

// holds evaluates a header as Envoy does (HeaderUtility::matchHeaders): an absent header never matches a value,
// inverted or not, unless it is taken for an empty one.
func holds(h *routev3.HeaderMatcher, headers map[string]string) bool {
	value, there := headers[h.Name]
	if h.GetPresentMatch() {
		return there != h.InvertMatch
	}
	if !there && !h.TreatMissingHeaderAsEmpty {
		return false
	}
	var ok bool
	switch m := h.GetStringMatch(); {
	case m.GetSafeRegex() != nil:
		ok = regexp.MustCompile("^(?:" + m.GetSafeRegex().Regex + ")$").MatchString(value)
	case m.GetPrefix() != "":
		ok = strings.HasPrefix(value, m.GetPrefix())
	default:
		ok = value == m.GetExact()
	}
	return ok != h.InvertMatch
}

func selects(clauses []clause, headers map[string]string) bool {
	for _, c := range clauses {
		all := true
		for _, h := range c.headers {
			all = all && holds(h, headers)
		}
		if all == c.negated {
			return false
		}
	}
	return true
}

// TestAlternativesSelectTheSame: what alternatives are multiplied out to selects what they select, for every
// combination of the headers that they look at.
func TestAlternativesSelectTheSame(t *testing.T) {
	exact := func(v string) *model.StringMatch { return &model.StringMatch{Value: v} }
	header := func(name, v string, not bool) model.NamedMatch {
		return model.NamedMatch{Name: name, StringMatch: *exact(v), Not: not}
	}
	present := func(name string, not bool) model.NamedMatch {
		return model.NamedMatch{Name: name, StringMatch: model.StringMatch{Kind: model.MatchPresent}, Not: not}
	}
	one := model.LimitMatch{Path: &model.StringMatch{Kind: model.MatchSegments, Value: "/a"}, Method: exact("GET")}
	two := model.LimitMatch{Headers: []model.NamedMatch{header("x-k", "v", true), present("x-p", false)}}
	three := model.LimitMatch{Sources: []string{"td/ns/b/*"}, Headers: []model.NamedMatch{present("x-p", true), header("x-k", "v", false)}}
	direct := map[string]func(h map[string]string) bool{
		"one": func(h map[string]string) bool {
			path, _, _ := strings.Cut(h[":path"], "?")
			return (path == "/a" || strings.HasPrefix(path, "/a/")) && h[":method"] == "GET"
		},
		"two": func(h map[string]string) bool { _, p := h["x-p"]; return h["x-k"] != "v" && p },
		"three": func(h map[string]string) bool {
			_, p := h["x-p"]
			return strings.Contains(h[names.HeaderXFCC], "URI=spiffe://td/ns/b/") && !p && h["x-k"] == "v"
		},
	}
	for name, c := range map[string]struct {
		matches []model.LimitMatch
		any     []string
	}{
		"none": {nil, []string{"all"}}, "one": {[]model.LimitMatch{one}, []string{"one"}}, "two": {[]model.LimitMatch{two}, []string{"two"}},
		"one or two":         {[]model.LimitMatch{one, two}, []string{"one", "two"}},
		"one, two or three":  {[]model.LimitMatch{one, two, three}, []string{"one", "two", "three"}},
		"one, or everything": {[]model.LimitMatch{one, {}}, []string{"all"}},
	} {
		w := writer{limit: model.LocalLimit{Matches: c.matches}}
		clauses, err := w.matches()
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range combinations() {
			want := false
			for _, a := range c.any {
				want = want || a == "all" || direct[a](h)
			}
			if got := selects(clauses, h); got != want {
				t.Errorf("%s: %v is selected %v, want %v", name, h, got, want)
			}
		}
	}
}

// combinations of headers; "-" is none.
func combinations() []map[string]string {
	out := []map[string]string{{}}
	for _, h := range []struct {
		name   string
		values []string
	}{
		{":path", []string{"/a", "/a/b?q=/c", "/ab"}}, {":method", []string{"GET", "POST"}}, {"x-k", []string{"-", "v", "w"}}, {"x-p", []string{"-", "1"}},
		{names.HeaderXFCC, []string{"-", "By=x;URI=spiffe://td/ns/b/sa/c", "By=x;URI=spiffe://td/ns/bb/sa/c"}},
	} {
		var next []map[string]string
		for _, base := range out {
			for _, v := range h.values {
				m := map[string]string{}
				for k, v := range base {
					m[k] = v
				}
				if v != "-" {
					m[h.name] = v
				}
				next = append(next, m)
			}
		}
		out = next
	}
	return out
}

func TestTooManyAlternatives(t *testing.T) {
	var l model.LocalLimit
	for i := range 7 {
		l.Matches = append(l.Matches, model.LimitMatch{Path: &model.StringMatch{Value: fmt.Sprint("/", i)}, Method: &model.StringMatch{Value: "GET"}})
	}
	l.Requests, l.Per = 1, 1
	_, err := Locals([]*model.RateLimit{{Local: []model.LocalLimit{l}}}, true)
	if err == nil || !strings.Contains(err.Error(), "more than 64 combinations") {
		t.Errorf("128 combinations: %v", err)
	}
}

func TestFind(t *testing.T) {
	servers := []model.RateLimitCluster{
		{Cluster: "a", GlobalLimit: model.GlobalLimit{Backend: model.Destination{Host: "a", Port: 1}, Domain: "d"}},
		{Cluster: "b", GlobalLimit: model.GlobalLimit{Backend: model.Destination{Host: "b"}, Domain: "d"}},
		{GlobalLimit: model.GlobalLimit{Backend: model.Destination{Host: "c"}, Domain: "d"}},
	}
	for _, c := range []struct {
		backend model.Destination
		domain  string
		want    string
	}{
		{model.Destination{Host: "a", Port: 1, Namespace: "n"}, "d", "a"}, {model.Destination{Host: "a"}, "d", "a"}, {model.Destination{Host: "a", Port: 2}, "d", ""},
		{model.Destination{Host: "b", Port: 7}, "d", "b"}, {model.Destination{Host: "b"}, "e", ""}, {model.Destination{Host: "c"}, "d", ""},
	} {
		got := ""
		if s := Find(servers, &model.GlobalLimit{Backend: c.backend, Domain: c.domain}); s != nil {
			got = s.Cluster
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("server of %v, %s (-want +got):\n%s", c.backend, c.domain, diff)
		}
	}
}
