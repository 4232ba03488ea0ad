package conformance

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// TestClaims: what README.md says is not claimed or is skipped is what the code says.
func TestClaims(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, reason := range NotClaimed() {
		if !strings.Contains(string(b), fmt.Sprintf("| %s | %s |", name, reason)) {
			t.Errorf("README.md has no line for %s: %s", name, reason)
		}
	}
	for name, reason := range Skipped() {
		if !strings.Contains(string(b), fmt.Sprintf("| %s | %s |", name, reason)) {
			t.Errorf("README.md has no line for %s: %s", name, reason)
		}
	}
	for _, set := range []string{"mesh", "gateway", "all"} {
		if len(Claimed(set)) == 0 {
			t.Errorf("no features in set %s", set)
		}
	}
	extended := sets.New(Claimed("gateway")...).Intersection(features.SetsToNamesSet(
		features.GatewayExtendedFeatures, features.HTTPRouteExtendedFeatures, features.GRPCRouteExtendedFeatures,
		features.TLSRouteExtendedFeatures, features.TCPRouteExtendedFeatures,
		features.BackendTLSPolicyCoreFeatures, features.BackendTLSPolicyExtendedFeatures))
	if len(extended) < minExtended {
		t.Errorf("only %d extended features of gateways are claimed, want %d: %v", len(extended), minExtended, sets.List(extended))
	}
	if missing := features.SetsToNamesSet(features.MeshCoreFeatures, features.MeshExtendedFeatures).Difference(sets.New(Claimed("mesh")...)); len(missing) > 0 {
		t.Errorf("features of the mesh that are not claimed: %v", sets.List(missing))
	}
}

// minExtended is what the project promises of extended gateway features.
const minExtended = 38
