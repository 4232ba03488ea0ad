package seeds

import (
	"testing"

	"github.com/ambit-mesh/ambit/tests/demo/probe"
)

// TestCanaryByHeader sends testers to the new version and nobody else.
func TestCanaryByHeader(t *testing.T) {
	apply(t, "product-virtualservice.yaml", "old", "100", "new", "0")
	until(t, "everybody gets the old version", only("product/v1"), "-n", "50", "http://product/")
	r := fetch(t, "-n", "50", "-H", "X-group: test", "http://product/")
	if !only("product/v2")(r) {
		t.Errorf("testers: %+v", r)
	}
	if r := fetch(t, "-n", "20", "-H", "X-group: other", "http://product/"); !only("product/v1")(r) {
		t.Errorf("another group: %+v", r)
	}
}

// TestBlueGreenByWeights moves everybody from the old version to the new in two steps, and no request fails meanwhile.
func TestBlueGreenByWeights(t *testing.T) {
	apply(t, "product-virtualservice.yaml", "old", "100", "new", "0")
	until(t, "100/0", only("product/v1"), "-n", "50", "http://product/")
	must(t, world.Apply(t.Context(), read("product-virtualservice.yaml", "old", "50", "new", "50")))
	until(t, "50/50", func(r probe.Report) bool {
		old, new := r.Versions["product/v1"], r.Versions["product/v2"]
		return r.OK() == 200 && old > 60 && new > 60 // of 200; less is a chance below 1 in a million
	}, "-n", "200", "http://product/")
	must(t, world.Apply(t.Context(), read("product-virtualservice.yaml", "old", "0", "new", "100")))
	until(t, "0/100", only("product/v2"), "-n", "50", "http://product/")
}

// only says that every request was answered by this version.
func only(version string) func(probe.Report) bool {
	return func(r probe.Report) bool {
		return r.Requests > 0 && r.OK() == r.Requests && r.Versions[version] == r.Requests
	}
}
