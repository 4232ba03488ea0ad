package resolve

import (
	"slices"
	"strings"

	"sigs.k8s.io/gateway-api/pkg/features"
)

// featuresOf are what a class supports, by the Gateway API's names (GatewayClassStatus, supportedFeatures): all of the
// standard channel, but for UDP, which HBONE does not carry, and ListenerSets, which are not read.
func featuresOf(waypoint bool) []string {
	var out []string
	for f := range features.AllFeatures {
		mesh := strings.HasPrefix(string(f.Name), string(features.SupportMesh))
		switch {
		case f.Channel != features.FeatureChannelStandard, f.Name == features.SupportUDPRoute, f.Name == features.SupportListenerSet:
		case waypoint == mesh, waypoint && (f.Name == features.SupportHTTPRoute || f.Name == features.SupportGRPCRoute):
			out = append(out, string(f.Name))
		}
	}
	slices.Sort(out)
	return out
}
