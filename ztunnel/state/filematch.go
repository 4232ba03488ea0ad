package state

import (
	"fmt"
	"net/netip"
	"slices"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
)

type fileMatch struct {
	Namespaces          []fileString   `yaml:"namespaces"`
	NotNamespaces       []fileString   `yaml:"notNamespaces"`
	ServiceAccounts     []fileAccount  `yaml:"serviceAccounts"`
	NotServiceAccounts  []fileAccount  `yaml:"notServiceAccounts"`
	Principals          []fileString   `yaml:"principals"`
	NotPrincipals       []fileString   `yaml:"notPrincipals"`
	SourceIPs           []netip.Prefix `yaml:"sourceIps"`
	NotSourceIPs        []netip.Prefix `yaml:"notSourceIps"`
	DestinationIPs      []netip.Prefix `yaml:"destinationIps"`
	NotDestinationIPs   []netip.Prefix `yaml:"notDestinationIps"`
	DestinationPorts    []uint16       `yaml:"destinationPorts"`
	NotDestinationPorts []uint16       `yaml:"notDestinationPorts"`
}

type fileAccount struct {
	Namespace      string `yaml:"namespace"`
	ServiceAccount string `yaml:"serviceAccount"`
}

// fileString is one of Exact, Prefix, Suffix with a text, or Presence: as a map of
// one key ({Exact: a}) or as a tag (!Exact a), the two forms that Istio's YAML
// library has written such values in.
type fileString struct{ match *security.StringMatch }

// UnmarshalYAML implements yaml.Unmarshaler.
func (f *fileString) UnmarshalYAML(n *yaml.Node) error {
	kind, value := "", n
	switch {
	case n.Kind == yaml.MappingNode && len(n.Content) == 2:
		kind, value = n.Content[0].Value, n.Content[1]
	case len(n.Tag) > 1 && n.Tag[0] == '!' && n.Tag[1] != '!':
		kind = n.Tag[1:]
	case n.Kind == yaml.ScalarNode && n.Value == "Presence":
		kind = n.Value
	}
	m := &security.StringMatch{}
	switch kind {
	case "Exact":
		m.MatchType = &security.StringMatch_Exact{Exact: value.Value}
	case "Prefix":
		m.MatchType = &security.StringMatch_Prefix{Prefix: value.Value}
	case "Suffix":
		m.MatchType = &security.StringMatch_Suffix{Suffix: value.Value}
	case "Presence":
		m.MatchType = &security.StringMatch_Presence{Presence: &emptypb.Empty{}}
		f.match = m
		return nil
	default:
		return fmt.Errorf("line %d: a string match is one of Exact, Prefix, Suffix with a text, or Presence", n.Line)
	}
	if value.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: %s wants a text", n.Line, kind)
	}
	f.match = m
	return nil
}

func (f *fileMatch) message() *security.Match {
	return &security.Match{
		Namespaces: fileStrings(f.Namespaces), NotNamespaces: fileStrings(f.NotNamespaces),
		Principals: fileStrings(f.Principals), NotPrincipals: fileStrings(f.NotPrincipals),
		ServiceAccounts: fileAccounts(f.ServiceAccounts), NotServiceAccounts: fileAccounts(f.NotServiceAccounts),
		SourceIps: filePrefixes(f.SourceIPs), NotSourceIps: filePrefixes(f.NotSourceIPs),
		DestinationIps: filePrefixes(f.DestinationIPs), NotDestinationIps: filePrefixes(f.NotDestinationIPs),
		DestinationPorts: fileNumbers(f.DestinationPorts), NotDestinationPorts: fileNumbers(f.NotDestinationPorts),
	}
}

func fileStrings(in []fileString) (out []*security.StringMatch) {
	for _, s := range in {
		if s.match == nil { // a null: kept, so that it fails closed
			s.match = &security.StringMatch{}
		}
		out = append(out, s.match)
	}
	return out
}

func fileAccounts(in []fileAccount) (out []*security.ServiceAccountMatch) {
	for _, a := range in {
		out = append(out, &security.ServiceAccountMatch{Namespace: a.Namespace, ServiceAccount: a.ServiceAccount})
	}
	return out
}

func filePrefixes(in []netip.Prefix) (out []*security.Address) {
	for _, p := range in {
		out = append(out, &security.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())})
	}
	return out
}

func fileNumbers(in []uint16) (out []uint32) {
	for _, p := range in {
		out = append(out, uint32(p))
	}
	return out
}

func filePorts(in map[uint16]uint16) []*workload.Port {
	keys := make([]uint16, 0, len(in))
	for k := range in {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var out []*workload.Port
	for _, k := range keys {
		out = append(out, &workload.Port{ServicePort: uint32(k), TargetPort: uint32(in[k])})
	}
	return out
}

func fileCapacity(c *uint32) *wrapperspb.UInt32Value {
	if c == nil {
		return nil
	}
	return wrapperspb.UInt32(*c)
}
