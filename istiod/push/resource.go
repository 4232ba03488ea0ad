package push

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/cespare/xxhash/v2"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/ports"
)

// Resource is one output in the form in which every stream sends it: encoded
// once, immutable, shared.
type Resource struct {
	// Name on the wire, unique within the type.
	Name string
	// Version is the hash of the encoded content, so equal on every replica of istiod.
	Version string
	// Aliases are other names by which a proxy may ask for the resource on demand.
	Aliases []string
	// Keys are names that stand for several resources: whoever subscribes to one gets all that have it.
	Keys []string

	wire *discovery.Resource
	size int
	// needs are what a proxy must have of other types before it can use the resource.
	needs []need
	// view is the same content as the older type istio.workload.Workload; nil for anything else.
	view *discovery.Resource
}

// NewResource encodes msg as a resource of the given type.
func NewResource(typeURL, name string, msg proto.Message, aliases, keys []string) (*Resource, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("encode resource %q: %w", name, err)
	}
	r := &Resource{Name: name, Version: hashVersion(b), Aliases: aliases, Keys: keys}
	r.wire = &discovery.Resource{Name: name, Version: r.Version, Resource: &anypb.Any{TypeUrl: typeURL, Value: b}}
	r.size = proto.Size(r.wire)
	switch typeURL {
	case ports.TypeAddress:
		r.view = workloadView(r, b)
	case TypeCluster:
		if r.needs, err = clusterNeeds(msg); err != nil {
			return nil, fmt.Errorf("read resource %q: %w", name, err)
		}
	}
	return r, nil
}

// hashVersion is the 64-bit hash of the bytes in hexadecimal.
func hashVersion(b []byte) string {
	var h [8]byte
	binary.BigEndian.PutUint64(h[:], xxhash.Sum64(b))
	return hex.EncodeToString(h[:])
}

// workloadView cuts the Workload out of an encoded Address: it is the content of
// field 1, so the bytes are shared and nothing is encoded twice.
func workloadView(r *Resource, address []byte) *discovery.Resource {
	num, typ, n := protowire.ConsumeTag(address)
	if n < 0 || num != 1 || typ != protowire.BytesType {
		return nil
	}
	b, m := protowire.ConsumeBytes(address[n:])
	if m < 0 {
		return nil
	}
	return &discovery.Resource{Name: r.Name, Version: r.Version, Resource: &anypb.Any{TypeUrl: ports.TypeWorkload, Value: b}}
}

// Content returns the encoded message. Callers must not change it.
func (r *Resource) Content() []byte { return r.wire.GetResource().GetValue() }

// anyName calls f for each name under which the resource can be subscribed to, until f returns true.
func (r *Resource) anyName(f func(string) bool) bool {
	if f(r.Name) {
		return true
	}
	for _, n := range r.Aliases {
		if f(n) {
			return true
		}
	}
	for _, n := range r.Keys {
		if f(n) {
			return true
		}
	}
	return false
}

// withAliases is the wire form for on-demand answers, which alone carry aliases.
func withAliases(w *discovery.Resource, aliases []string) *discovery.Resource {
	if len(aliases) == 0 {
		return w
	}
	return &discovery.Resource{Name: w.GetName(), Version: w.GetVersion(), Aliases: aliases, Resource: w.GetResource()}
}

// TypeURL is the resource's type.
func (r *Resource) TypeURL() string { return r.wire.GetResource().GetTypeUrl() }
