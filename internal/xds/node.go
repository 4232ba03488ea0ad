package xds

import (
	"fmt"
	"maps"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// NodeInfo is who the client is.
type NodeInfo struct {
	Kind      string // "ztunnel" or "waypoint"
	IP        string
	Pod       string
	Namespace string
	NodeName  string
	Metadata  map[string]any // further node metadata, of JSON types
}

// NewNode makes the node message from which istiod knows the client: Istio's form,
// <kind>~<ip>~<pod>.<namespace>~<namespace>.svc.cluster.local.
func NewNode(i NodeInfo) (*core.Node, error) {
	fields := map[string]any{
		"NAME": i.Pod, "NAMESPACE": i.Namespace, "INSTANCE_IPS": i.IP, "NODE_NAME": i.NodeName,
	}
	maps.Copy(fields, i.Metadata)
	md, err := structpb.NewStruct(fields)
	if err != nil {
		return nil, fmt.Errorf("make node metadata of %q: %w", i.Pod, err)
	}
	return &core.Node{
		Id:       fmt.Sprintf("%s~%s~%s.%s~%s.svc.cluster.local", i.Kind, i.IP, i.Pod, i.Namespace, i.Namespace),
		Metadata: md,
	}, nil
}
