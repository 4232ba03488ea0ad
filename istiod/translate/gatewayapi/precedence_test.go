package gatewayapi

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/model"
)

func path(kind model.MatchKind, v string) *model.StringMatch {
	return &model.StringMatch{Kind: kind, Value: v}
}

func named(n int) []model.NamedMatch { return make([]model.NamedMatch, n) }

// sortsTo shuffles the candidates many times: each order must sort to the one in which they are given.
func sortsTo(t *testing.T, want []Candidate) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		got := slices.Clone(want)
		r.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
		slices.SortFunc(got, Precedence)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
}

func TestHTTPPrecedence(t *testing.T) {
	old := &model.Meta{Kind: model.KindHTTPRoute, Key: model.Key{Namespace: "z", Name: "z"}, Created: time.Unix(1, 0)}
	young := &model.Meta{Kind: model.KindHTTPRoute, Key: model.Key{Namespace: "a", Name: "a"}, Created: time.Unix(2, 0)}
	peer := &model.Meta{Kind: model.KindHTTPRoute, Key: model.Key{Namespace: "a", Name: "b"}, Created: time.Unix(2, 0)}
	method := path(model.MatchExact, "GET")
	sortsTo(t, []Candidate{
		{Match: &model.HTTPMatch{Path: path(model.MatchExact, "/longer/exact")}, Route: young},
		{Match: &model.HTTPMatch{Path: path(model.MatchExact, "/a")}, Route: young},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/long/prefix")}, Route: young},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/p"), Method: method}, Route: young},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/p"), Headers: named(2)}, Route: young},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/p"), Headers: named(1), Query: named(2)}, Route: young},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/p"), Headers: named(1), Query: named(1)}, Route: young},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/p"), Query: named(9)}, Route: young},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/p")}, Route: old, Rule: 7},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/p")}, Route: young, Rule: 1, Alternative: 2},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/p")}, Route: young, Rule: 1, Alternative: 3},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/p")}, Route: young, Rule: 2, Alternative: 1},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/p")}, Route: peer},
		{Match: &model.HTTPMatch{Path: path(model.MatchRegex, "/.*/longer")}, Route: young},
		{Match: &model.HTTPMatch{Path: path(model.MatchRegex, "/.*")}, Route: young},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/"), Method: method}, Route: young},
		{Match: &model.HTTPMatch{Headers: named(1)}, Route: young},
		{Match: &model.HTTPMatch{Path: path(model.MatchSegments, "/")}, Route: old, Rule: 1},
		{Route: old, Rule: 2},
		{Match: &model.HTTPMatch{}, Route: young},
	})
}

func TestGRPCPrecedence(t *testing.T) {
	m := &model.Meta{Kind: model.KindGRPCRoute, Key: model.Key{Namespace: "a", Name: "a"}}
	sortsTo(t, []Candidate{
		{Match: &model.HTTPMatch{GRPC: true, Path: path(model.MatchExact, "/a.longer.Service/M")}, Route: m},
		{Match: &model.HTTPMatch{GRPC: true, Path: path(model.MatchExact, "/a.Service/LongMethod")}, Route: m},
		{Match: &model.HTTPMatch{GRPC: true, Path: path(model.MatchExact, "/a.Service/M"), Headers: named(2)}, Route: m},
		{Match: &model.HTTPMatch{GRPC: true, Path: path(model.MatchExact, "/a.Service/M"), Headers: named(1)}, Route: m},
		{Match: &model.HTTPMatch{GRPC: true, Path: path(model.MatchPrefix, "/a.Service/"), Headers: named(9)}, Route: m},
		{Match: &model.HTTPMatch{GRPC: true, Path: path(model.MatchRegex, "/[^/]+/LongMethod")}, Route: m},
		{Match: &model.HTTPMatch{GRPC: true, Path: path(model.MatchRegex, "/[^/]+/M"), Headers: named(1)}, Route: m},
		{Match: &model.HTTPMatch{GRPC: true, Path: path(model.MatchRegex, "/[^/]+/M")}, Route: m},
		{Match: &model.HTTPMatch{GRPC: true, Path: path(model.MatchRegex, "/(?:a|b|c|d|e)/(?:M|N)")}, Route: m},
		{Match: &model.HTTPMatch{GRPC: true, Path: path(model.MatchRegex, "/[^/]+/(?:M|N)")}, Route: m},
		{Match: &model.HTTPMatch{GRPC: true, Headers: named(1)}, Route: m},
		{Match: &model.HTTPMatch{GRPC: true}, Route: m, Rule: 1},
		{Match: &model.HTTPMatch{GRPC: true}, Route: m, Rule: 2},
	})
}

func TestSupportedKinds(t *testing.T) {
	for _, tt := range []struct {
		listener model.Listener
		want     []model.Kind
	}{
		{model.Listener{Protocol: model.ListenHTTP}, []model.Kind{model.KindHTTPRoute, model.KindGRPCRoute}},
		{model.Listener{Protocol: model.ListenTLS, TLS: &model.ListenerTLS{}}, []model.Kind{model.KindTLSRoute, model.KindTCPRoute}},
		{model.Listener{Protocol: model.ListenTLS, TLS: &model.ListenerTLS{Passthrough: true}}, []model.Kind{model.KindTLSRoute}},
		{model.Listener{Protocol: model.ListenTCP}, []model.Kind{model.KindTCPRoute}},
		{model.Listener{Protocol: model.ListenHBONE}, []model.Kind{model.KindHTTPRoute, model.KindGRPCRoute, model.KindTLSRoute, model.KindTCPRoute}},
		{model.Listener{Protocol: model.ListenUnknown}, nil},
	} {
		if diff := cmp.Diff(tt.want, SupportedKinds(&tt.listener)); diff != "" {
			t.Errorf("protocol %d (-want +got):\n%s", tt.listener.Protocol, diff)
		}
	}
}
