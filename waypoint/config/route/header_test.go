package route

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod/model"
)

func TestFormat(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "plain": "plain", "100%%": "100%%", "100%": "100%%", "%": "%%", "%%%": "%%%%",
		"%REQ(x-in)%": "%REQ(x-in)%", "%REQ(:path):10%": "%REQ(:path):10%", "a %PROTOCOL% b": "a %PROTOCOL% b",
		"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
		"%ENVIRONMENT(SECRET)%":                    "%%ENVIRONMENT(SECRET)%%", "%REQ(x": "%%REQ(x", "%REQ(a b)%": "%%REQ(a b)%%",
		"%%REQ(x)%%": "%%REQ(x)%%", "%%%PROTOCOL%": "%%%PROTOCOL%",
	} {
		if got := format(in); got != want {
			t.Errorf("format %q: %q, want %q", in, got, want)
		}
	}
}

// FuzzFormat: whatever a user writes, what is sent has only variables that Envoy has, and stays as it is from then on.
func FuzzFormat(f *testing.F) {
	f.Add("100%% of %REQ(x)%")
	f.Add("%START_TIME(%s.%3f)%")
	f.Fuzz(func(t *testing.T, v string) {
		got := format(v)
		rest := variable.ReplaceAllString(got, "")
		if strings.Contains(rest, "%") {
			t.Errorf("format %q: %q has a lone percent sign", v, got)
		}
		if again := format(got); again != got {
			t.Errorf("format %q: %q, and again: %q", v, got, again)
		}
	})
}

func TestBackendsEditsFollowTheRules(t *testing.T) {
	rule := edits{request: writeHeaders(model.HeaderOps{
		Remove: []string{"x-a"}, Set: []model.Header{{Name: "x-b", Value: "rule"}, {Name: "X-C", Value: "rule"}}, Add: []model.Header{{Name: "x-d", Value: "rule"}},
	}, true)}
	got := rule.then(&model.RouteCluster{Authority: "backend", Request: model.HeaderOps{
		Remove: []string{"x-c"}, Set: []model.Header{{Name: "x-b", Value: "backend"}},
	}}).request
	var order []string
	for _, o := range got.add {
		order = append(order, o.Header.Key+"="+o.Header.Value)
	}
	if diff := cmp.Diff([]string{"x-b=rule", "x-d=rule", "x-b=backend"}, order); diff != "" {
		t.Errorf("added (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"x-a", "x-c"}, got.remove); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	if got.authority != "backend" {
		t.Errorf("host %q, want the backend's", got.authority)
	}
}
