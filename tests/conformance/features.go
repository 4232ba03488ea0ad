package conformance

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// NotClaimed are features that the mesh does not claim, with the reason. README.md has the same list.
func NotClaimed() map[features.FeatureName]string {
	return map[features.FeatureName]string{
		features.SupportUDPRoute:    "gateways have no UDP listeners: HBONE carries streams only",
		features.SupportListenerSet: "ListenerSets are not read",
	}
}

// Skipped are tests of claimed features that are left out, with the reason. README.md has the same list.
func Skipped() map[string]string { return map[string]string{} }

// Profiles of a set: mesh, gateway or all.
func Profiles(set string) ([]suite.ConformanceProfileName, error) {
	mesh := []suite.ConformanceProfileName{suite.MeshHTTPConformanceProfileName, suite.MeshGRPCConformanceProfileName}
	gateway := []suite.ConformanceProfileName{
		suite.GatewayHTTPConformanceProfileName, suite.GatewayGRPCConformanceProfileName,
		suite.GatewayTLSConformanceProfileName, suite.GatewayTCPConformanceProfileName,
	}
	switch set {
	case "mesh":
		return mesh, nil
	case "gateway":
		return gateway, nil
	case "all":
		return slices.Concat(mesh, gateway), nil
	}
	return nil, fmt.Errorf("set of profiles %q: want mesh, gateway or all", set)
}

// Claimed are the features of the set of profiles: all that its tests ask for, but for those not claimed.
func Claimed(set string) []features.FeatureName {
	wanted := sets.New[features.FeatureName]()
	for _, t := range tests.ConformanceTests {
		mesh := slices.Contains(t.Features, features.SupportMesh)
		if set == "all" || mesh == (set == "mesh") {
			wanted.Insert(t.Features...)
		}
	}
	for f := range NotClaimed() {
		wanted.Delete(f)
	}
	return sets.List(wanted)
}
