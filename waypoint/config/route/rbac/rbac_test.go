package rbac

import (
	"maps"
	"slices"
	"strings"
	"testing"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/model"
)

func in(v ...string) model.Patterns { return model.Patterns{In: v} }

func policy(action model.AuthzAction, rules ...model.AuthzRule) *model.Authorization {
	return &model.Authorization{Meta: model.Meta{Key: model.Key{Namespace: "ns", Name: "p"}}, Action: action, Rules: rules}
}

func policies(r *rbacv3.RBAC) []string {
	if r == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(r.Policies))
}

// TestMistakesRefuse: what cannot be checked of a connection takes a rule that allows away, and widens one that denies.
func TestMistakesRefuse(t *testing.T) {
	rule := model.AuthzRule{
		From: []model.AuthzSource{{Principals: in("a/ns/b/sa/c")}},
		To:   []model.AuthzOperation{{Methods: in("GET"), Ports: in("80")}},
	}
	o := Options{TCP: true, TrustDomain: "td"}
	allow := Build([]*model.Authorization{policy(model.AuthzAllow, rule)}, o).Allow
	if allow == nil || len(allow.Policies) != 0 {
		t.Errorf("rules that allow: %v, want a set that is there and empty, which denies everything", allow)
	}
	deny := Build([]*model.Authorization{policy(model.AuthzDeny, rule)}, o).Deny
	if diff := cmp.Diff([]string{"ns[ns]-policy[p]-rule[0]"}, policies(deny)); diff != "" {
		t.Fatalf("rules that deny (-want +got):\n%s", diff)
	}
	p := deny.Policies["ns[ns]-policy[p]-rule[0]"]
	if got := p.Permissions[0].GetDestinationPort(); got != 80 || len(p.Permissions) != 1 {
		t.Errorf("denied: %v, want every method on port 80", p.Permissions)
	}
	if text := p.Principals[0].String(); !strings.Contains(text, "spiffe://a/ns/b/sa/c") {
		t.Errorf("denied: %s, want the principal", text)
	}
}

// TestPortsOfOperationsStayTogether: on a waypoint a rule with ports becomes a policy for each operation, so that the
// port of one does not open another.
func TestPortsOfOperationsStayTogether(t *testing.T) {
	r := Build([]*model.Authorization{policy(model.AuthzAllow, model.AuthzRule{To: []model.AuthzOperation{
		{Methods: in("GET"), Ports: in("80")}, {Methods: in("POST"), Ports: in("90")}, {Methods: in("PUT")},
	}})}, Options{Waypoint: true})
	got := map[string]string{}
	for name, p := range r.Allow.Policies {
		method := p.Permissions[0].GetHeader().GetStringMatch().GetExact()
		port := p.Principals[0].GetFilterState().GetStringMatch().GetSuffix()
		if p.Principals[0].GetAny() {
			port = "any"
		}
		got[name] = method + port
	}
	want := map[string]string{
		"ns[ns]-policy[p]-rule[0]-to[0]": "GET:80", "ns[ns]-policy[p]-rule[0]-to[1]": "POST:90", "ns[ns]-policy[p]-rule[0]-to[2]": "PUTany",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
}

func TestAliases(t *testing.T) {
	w := writer{Options: Options{TrustDomain: "new", Aliases: []string{"old.x"}}}
	for in, want := range map[string][]string{
		"new/ns/a/sa/b":           {"new/ns/a/sa/b", "old.x/ns/a/sa/b"},
		"old.x/ns/a/sa/b":         {"new/ns/a/sa/b", "old.x/ns/a/sa/b"},
		"cluster.local/ns/a/sa/*": {"new/ns/a/sa/*", "old.x/ns/a/sa/*"},
		"*.x/ns/a/sa/b":           {"new/ns/a/sa/b", "*.x/ns/a/sa/b"},
		"other/ns/a/sa/b":         {"other/ns/a/sa/b"},
		"*/ns/a/sa/b":             {"*/ns/a/sa/b"},
		"*":                       {"*"},
	} {
		if diff := cmp.Diff(want, w.aliases([]string{in})); diff != "" {
			t.Errorf("aliases of %s (-want +got):\n%s", in, diff)
		}
	}
}

func TestUnknownProviderDenies(t *testing.T) {
	p := policy(model.AuthzCustom, model.AuthzRule{})
	p.Provider = "gone"
	r := Build([]*model.Authorization{p}, Options{})
	if diff := cmp.Diff([]string{"ns[ns]-policy[p]-rule[0]-deny-due-to-bad-CUSTOM-action"}, policies(r.Deny)); diff != "" || len(r.Custom) > 0 {
		t.Errorf("custom %v, denied (-want +got):\n%s", r.Custom, diff)
	}
}
