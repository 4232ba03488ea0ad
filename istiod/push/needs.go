package push

import (
	"errors"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// need is a resource of another type without which a cluster stays warming.
type need struct{ typeURL, name string }

// clusterNeeds lists the endpoints and secrets that a cluster takes from this
// stream. It is the one thing that this package reads inside a resource: Envoy
// asks for them in requests of their own, and only who knows them can tell when
// the cluster can carry traffic.
func clusterNeeds(msg proto.Message) ([]need, error) {
	c, ok := msg.(*cluster.Cluster)
	if !ok {
		return nil, errors.New("not a cluster")
	}
	var out []need
	if eds := c.GetEdsClusterConfig(); c.GetType() == cluster.Cluster_EDS && eds.GetEdsConfig().GetAds() != nil {
		name := eds.GetServiceName()
		if name == "" {
			name = c.GetName()
		}
		out = append(out, need{TypeEndpoints, name})
	}
	sockets := []*core.TransportSocket{c.GetTransportSocket()}
	for _, m := range c.GetTransportSocketMatches() {
		sockets = append(sockets, m.GetTransportSocket())
	}
	for _, s := range sockets {
		if s == nil {
			continue
		}
		// Sockets wrap each other, so secrets are looked for at any depth.
		err := protorange.Range(s.ProtoReflect(), func(v protopath.Values) error {
			if m, ok := v.Index(-1).Value.Interface().(protoreflect.Message); ok {
				if sds, ok := m.Interface().(*tls.SdsSecretConfig); ok && sds.GetSdsConfig().GetAds() != nil {
					out = append(out, need{TypeSecret, sds.GetName()})
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
