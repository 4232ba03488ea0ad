package istionet

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/model"
)

func exact(v string) *model.StringMatch { return &model.StringMatch{Value: v} }
func prefix(v string) *model.StringMatch {
	return &model.StringMatch{Kind: model.MatchPrefix, Value: v}
}
func matching(v string) *model.StringMatch {
	return &model.StringMatch{Kind: model.MatchRegex, Value: v}
}

func TestDelegateMatches(t *testing.T) {
	header := func(not bool, m *model.StringMatch) []model.NamedMatch {
		return []model.NamedMatch{{Name: "h", StringMatch: *m, Not: not}}
	}
	present := &model.StringMatch{Kind: model.MatchPresent}
	for _, tt := range []struct {
		name       string
		root, leaf model.HTTPMatch
		// want is nil for a conflict.
		want *model.HTTPMatch
	}{
		{"nothing", model.HTTPMatch{}, model.HTTPMatch{}, &model.HTTPMatch{}},
		{"root only", model.HTTPMatch{Path: prefix("/a"), Port: 80}, model.HTTPMatch{}, &model.HTTPMatch{Path: prefix("/a"), Port: 80}},
		{"longer prefix", model.HTTPMatch{Path: prefix("/a")}, model.HTTPMatch{Path: prefix("/a/b")}, &model.HTTPMatch{Path: prefix("/a/b")}},
		{"exact in prefix", model.HTTPMatch{Path: prefix("/a")}, model.HTTPMatch{Path: exact("/a/b")}, &model.HTTPMatch{Path: exact("/a/b")}},
		{"shorter prefix", model.HTTPMatch{Path: prefix("/a/b")}, model.HTTPMatch{Path: prefix("/a")}, nil},
		{"prefix in exact", model.HTTPMatch{Path: exact("/a")}, model.HTTPMatch{Path: prefix("/a")}, nil},
		{"other exact", model.HTTPMatch{Path: exact("/a")}, model.HTTPMatch{Path: exact("/b")}, nil},
		{"regex in prefix", model.HTTPMatch{Path: prefix("/a")}, model.HTTPMatch{Path: matching("/a/.*")}, nil},
		{"same regex", model.HTTPMatch{Path: matching("/a.*")}, model.HTTPMatch{Path: matching("/a.*")}, &model.HTTPMatch{Path: matching("/a.*")}},
		{"case", model.HTTPMatch{Path: &model.StringMatch{Kind: model.MatchPrefix, Value: "/a", IgnoreCase: true}}, model.HTTPMatch{Path: prefix("/a")}, nil},
		{"both headers", model.HTTPMatch{Headers: header(false, present)}, model.HTTPMatch{Headers: header(false, exact("v"))}, &model.HTTPMatch{Headers: header(false, exact("v"))}},
		{"header not in root", model.HTTPMatch{Headers: header(false, exact("v"))}, model.HTTPMatch{Headers: header(false, present)}, nil},
		{"without more", model.HTTPMatch{Headers: header(true, exact("v"))}, model.HTTPMatch{Headers: header(true, present)}, &model.HTTPMatch{Headers: header(true, present)}},
		{"without less", model.HTTPMatch{Headers: header(true, present)}, model.HTTPMatch{Headers: header(true, exact("v"))}, nil},
		{"same port", model.HTTPMatch{Port: 80}, model.HTTPMatch{Port: 80}, &model.HTTPMatch{Port: 80}},
		{"other port", model.HTTPMatch{Port: 80}, model.HTTPMatch{Port: 81}, nil},
		{"namespace", model.HTTPMatch{SourceNamespace: "a"}, model.HTTPMatch{}, &model.HTTPMatch{SourceNamespace: "a"}},
		{"other namespace", model.HTTPMatch{SourceNamespace: "a"}, model.HTTPMatch{SourceNamespace: "b"}, nil},
		{"labels", model.HTTPMatch{SourceLabels: map[string]string{"a": "1"}}, model.HTTPMatch{SourceLabels: map[string]string{"b": "2"}}, &model.HTTPMatch{SourceLabels: map[string]string{"a": "1", "b": "2"}}},
		{"other label", model.HTTPMatch{SourceLabels: map[string]string{"a": "1"}}, model.HTTPMatch{SourceLabels: map[string]string{"a": "2"}}, nil},
		{"gateways", model.HTTPMatch{Gateways: []string{"mesh", "a/b"}}, model.HTTPMatch{Gateways: []string{"a/b"}}, &model.HTTPMatch{Gateways: []string{"a/b"}}},
		{"other gateway", model.HTTPMatch{Gateways: []string{"mesh"}}, model.HTTPMatch{Gateways: []string{"a/b"}}, nil},
	} {
		got := Delegate(model.HTTPRule{Matches: []model.HTTPMatch{tt.root}}, []model.HTTPRule{{Matches: []model.HTTPMatch{tt.leaf}}})
		var want []model.HTTPRule
		if tt.want != nil {
			want = []model.HTTPRule{{Matches: []model.HTTPMatch{*tt.want}}}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestDelegateInherits(t *testing.T) {
	second, minute := time.Second, time.Minute
	root := model.HTTPRule{
		Name: "root", Timeout: &minute, Retry: &model.Retry{Attempts: 3}, Rewrite: &model.PathRewrite{Regex: "a"}, Authority: "host",
		Request: model.HeaderOps{Remove: []string{"x"}}, Fault: &model.Fault{AbortHTTP: 500}, CORS: &model.CORS{},
		Mirrors: []model.Mirror{{}}, Delegate: &model.Key{Name: "d"}, Matches: []model.HTTPMatch{{Path: prefix("/a")}},
	}
	got := Delegate(root, []model.HTTPRule{
		{Backends: []model.Backend{{Weight: 100}}},
		{Name: "own", Matches: []model.HTTPMatch{{Path: exact("/a/b")}}, Timeout: &second, Retry: &model.Retry{}, Authority: "other",
			Response: model.HeaderOps{Remove: []string{"y"}}, Fault: &model.Fault{}, CORS: &model.CORS{Methods: []string{"GET"}}, Mirrors: []model.Mirror{}},
		{Name: "outside", Matches: []model.HTTPMatch{{Path: prefix("/a")}, {Path: prefix("/b")}}},
		{Redirect: &model.Redirect{Host: "h"}},
	})
	want := []model.HTTPRule{
		{Name: "root", Matches: root.Matches, Backends: []model.Backend{{Weight: 100}}, Timeout: &minute, Retry: root.Retry, Rewrite: root.Rewrite,
			Authority: "host", Request: root.Request, Fault: root.Fault, CORS: root.CORS, Mirrors: root.Mirrors},
		{Name: "root-own", Matches: []model.HTTPMatch{{Path: exact("/a/b")}}, Timeout: &second, Retry: &model.Retry{}, Authority: "other",
			Response: model.HeaderOps{Remove: []string{"y"}}, Fault: &model.Fault{}, CORS: &model.CORS{Methods: []string{"GET"}}, Mirrors: []model.Mirror{}},
		{Name: "root", Matches: root.Matches, Redirect: &model.Redirect{Host: "h"}, Timeout: &minute, Retry: root.Retry, Request: root.Request,
			CORS: root.CORS, Mirrors: root.Mirrors},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if root.Delegate == nil || root.Timeout != &minute {
		t.Error("root was changed")
	}
}

func TestDomains(t *testing.T) {
	for host, good := range map[string]bool{
		"a": true, "a.b": true, "*.a.b": true, "*": true, "*-a.b": true, "*a.b": true, "a.b.": true, "A.B": true, "a1.b2": true,
		"": false, "a..b": false, "-a.b": false, "a-.b": false, "a.*.b": false, "a*.b": false, "**.b": false, "a_b.c": false, "a.b/c": false,
		"1.2.3.4": false, "a.1": false, "a b": false, ".a": false,
	} {
		if got := badDomain(host) == ""; got != good {
			t.Errorf("%q: taken %v (%s)", host, got, badDomain(host))
		}
	}
}
