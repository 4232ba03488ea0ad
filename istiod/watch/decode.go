package watch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/ratelimit/v1alpha1"
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

// objectKinds tells the model's name and an empty object of every API group and kind that istiod reads.
var objectKinds = map[string]struct {
	kind model.Kind
	make func() metav1.Object
}{
	"/Pod":                           {model.KindPod, func() metav1.Object { return &corev1.Pod{} }},
	"/Service":                       {model.KindService, func() metav1.Object { return &corev1.Service{} }},
	"/Namespace":                     {model.KindNamespace, func() metav1.Object { return &corev1.Namespace{} }},
	"/Node":                          {model.KindNode, func() metav1.Object { return &corev1.Node{} }},
	"/Secret":                        {model.KindSecret, func() metav1.Object { return &corev1.Secret{} }},
	"/ConfigMap":                     {model.KindConfigMap, func() metav1.Object { return &corev1.ConfigMap{} }},
	"discovery.k8s.io/EndpointSlice": {model.KindEndpointSlice, func() metav1.Object { return &discoveryv1.EndpointSlice{} }},

	"security.istio.io/AuthorizationPolicy":   {model.KindAuthorizationPolicy, func() metav1.Object { return &securityv1.AuthorizationPolicy{} }},
	"security.istio.io/PeerAuthentication":    {model.KindPeerAuthentication, func() metav1.Object { return &securityv1.PeerAuthentication{} }},
	"security.istio.io/RequestAuthentication": {model.KindRequestAuthentication, func() metav1.Object { return &securityv1.RequestAuthentication{} }},
	"networking.istio.io/VirtualService":      {model.KindVirtualService, func() metav1.Object { return &networkingv1.VirtualService{} }},
	"networking.istio.io/DestinationRule":     {model.KindDestinationRule, func() metav1.Object { return &networkingv1.DestinationRule{} }},
	"networking.istio.io/ServiceEntry":        {model.KindServiceEntry, func() metav1.Object { return &networkingv1.ServiceEntry{} }},
	"networking.istio.io/Gateway":             {model.KindIstioGateway, func() metav1.Object { return &networkingv1.Gateway{} }},
	"telemetry.istio.io/Telemetry":            {model.KindTelemetry, func() metav1.Object { return &telemetryv1.Telemetry{} }},
	v1alpha1.Group + "/" + v1alpha1.Kind:      {model.KindRateLimit, func() metav1.Object { return &v1alpha1.RateLimit{} }},

	"gateway.networking.k8s.io/GatewayClass":     {model.KindGatewayClass, func() metav1.Object { return &gatewayv1.GatewayClass{} }},
	"gateway.networking.k8s.io/Gateway":          {model.KindGateway, func() metav1.Object { return &gatewayv1.Gateway{} }},
	"gateway.networking.k8s.io/HTTPRoute":        {model.KindHTTPRoute, func() metav1.Object { return &gatewayv1.HTTPRoute{} }},
	"gateway.networking.k8s.io/GRPCRoute":        {model.KindGRPCRoute, func() metav1.Object { return &gatewayv1.GRPCRoute{} }},
	"gateway.networking.k8s.io/TCPRoute":         {model.KindTCPRoute, func() metav1.Object { return &gatewayv1.TCPRoute{} }},
	"gateway.networking.k8s.io/TLSRoute":         {model.KindTLSRoute, func() metav1.Object { return &gatewayv1.TLSRoute{} }},
	"gateway.networking.k8s.io/ReferenceGrant":   {model.KindReferenceGrant, func() metav1.Object { return &gatewayv1.ReferenceGrant{} }},
	"gateway.networking.k8s.io/BackendTLSPolicy": {model.KindBackendTLSPolicy, func() metav1.Object { return &gatewayv1.BackendTLSPolicy{} }},
}

// Parse reads a file's objects as the events of their coming, for tests and tools.
func Parse(b []byte, origin string) ([]Event, error) {
	objects, err := decode(b)
	if err != nil {
		return nil, err
	}
	out := make([]Event, 0, len(objects))
	for _, o := range objects {
		out = append(out, Event{Kind: o.id.kind, Key: o.id.key, Object: o.object, Origin: origin})
	}
	return out, nil
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
	known, ok := objectKinds[group+"/"+head.Kind]
	if !ok {
		return nil, nil
	}
	o := known.make()
	if err := json.Unmarshal(raw, o); err != nil {
		return nil, fmt.Errorf("read %s %q: %w", head.Kind, head.Metadata.Name, err)
	}
	if o.GetName() == "" {
		return nil, fmt.Errorf("read %s: metadata.name is missing", head.Kind)
	}
	kind := known.kind
	switch {
	case kind == model.KindNamespace || kind == model.KindNode || kind == model.KindGatewayClass:
		o.SetNamespace("")
	case o.GetNamespace() == "":
		o.SetNamespace(defaultNamespace)
	}
	if secret, ok := o.(*corev1.Secret); ok {
		mergeStringData(secret)
	}
	return &decoded{
		id:     objectID{kind: kind, key: model.Key{Namespace: o.GetNamespace(), Name: o.GetName()}},
		object: o,
		raw:    string(raw),
	}, nil
}

// mergeStringData does what the API server would do.
func mergeStringData(s *corev1.Secret) {
	for k, v := range s.StringData {
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		s.Data[k] = []byte(v)
	}
	s.StringData = nil
}
