package watch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// objectID names an object over all kinds.
type objectID struct {
	kind model.Kind
	key  model.Key
}

// decoded is one object of a file.
type decoded struct {
	id       objectID
	object   metav1.Object
	raw      string
	document int
}

// defaultNamespace is where kubectl would put an object that names none.
const defaultNamespace = "default"

// newObject returns an empty object of an API group and kind that istiod reads, or nil.
func newObject(group, kind string) metav1.Object {
	switch group + "/" + kind {
	case "/Pod":
		return &corev1.Pod{}
	case "/Service":
		return &corev1.Service{}
	case "/Namespace":
		return &corev1.Namespace{}
	case "/Node":
		return &corev1.Node{}
	case "discovery.k8s.io/EndpointSlice":
		return &discoveryv1.EndpointSlice{}
	case "security.istio.io/AuthorizationPolicy":
		return &securityv1.AuthorizationPolicy{}
	case "security.istio.io/PeerAuthentication":
		return &securityv1.PeerAuthentication{}
	}
	return nil
}

// decode reads the objects of a file that istiod knows and passes over all
// others, as a cluster has kinds that are not istiod's. Documents count from 1.
func decode(b []byte) ([]decoded, error) {
	var out []decoded
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(b)))
	for n := 1; ; n++ {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		o, err := decodeOne(doc)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if o != nil {
			o.document = n
			out = append(out, *o)
		}
	}
}

func decodeOne(doc []byte) (*decoded, error) {
	raw, err := yaml.YAMLToJSON(doc)
	if err != nil {
		return nil, err
	}
	if s := string(bytes.TrimSpace(raw)); s == "null" || s == "" {
		return nil, nil // only comments
	}
	var head struct {
		metav1.TypeMeta
		Metadata struct{ Name string } `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	if head.Kind == "" || head.APIVersion == "" {
		return nil, errors.New("read object: apiVersion or kind is missing")
	}
	group := head.GroupVersionKind().Group
	o := newObject(group, head.Kind)
	if o == nil {
		return nil, nil
	}
	if err := json.Unmarshal(raw, o); err != nil {
		return nil, fmt.Errorf("read %s %q: %w", head.Kind, head.Metadata.Name, err)
	}
	if o.GetName() == "" {
		return nil, fmt.Errorf("read %s: metadata.name is missing", head.Kind)
	}
	kind := model.Kind(head.Kind)
	switch {
	case kind == model.KindNamespace || kind == model.KindNode:
		o.SetNamespace("")
	case o.GetNamespace() == "":
		o.SetNamespace(defaultNamespace)
	}
	return &decoded{
		id:     objectID{kind: kind, key: model.Key{Namespace: o.GetNamespace(), Name: o.GetName()}},
		object: o,
		raw:    string(raw),
	}, nil
}
