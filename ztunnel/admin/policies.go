package admin

import (
	"encoding/json"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ambit-mesh/ambit/ztunnel/state"
)

// policies are the policies as they came, in the JSON form of istio.security.Authorization.
func policies(snap *state.Snapshot) []json.RawMessage {
	out := []json.RawMessage{}
	for p := range snap.AllPolicies {
		b, err := protojson.Marshal(p.Config())
		if err != nil {
			b, _ = json.Marshal(p.Name() + ": " + err.Error()) // a string always encodes
		}
		out = append(out, b)
	}
	return out
}
