package gatewayapi

import (
	"flag"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
	"github.com/ambit-mesh/ambit/istiod/translate/gatewayapi/goldentest"
)

var update = flag.Bool("update", false, "write the golden files anew")

var testConfig = translate.Config{ClusterID: "Kubernetes", TrustDomain: "cluster.local", Domain: "cluster.local", RootNamespace: "istio-system"}

func isWaypoint(class string) bool { return class == "istio-waypoint" }

// object decodes a YAML object and gives it with its translation, or nil for a kind that is not ours.
func object(b []byte) (metav1.Object, func() any) {
	var head struct{ Kind string }
	if yaml.Unmarshal(b, &head) != nil {
		return nil, nil
	}
	switch head.Kind {
	case "GatewayClass":
		o := &gwv1.GatewayClass{}
		return decoded(b, o, func() any { return GatewayClass(o) })
	case "Gateway":
		o := &gwv1.Gateway{}
		return decoded(b, o, func() any { return Gateway(o, isWaypoint) })
	case "HTTPRoute":
		o := &gwv1.HTTPRoute{}
		return decoded(b, o, func() any { return HTTPRoute(testConfig, o) })
	case "GRPCRoute":
		o := &gwv1.GRPCRoute{}
		return decoded(b, o, func() any { return GRPCRoute(testConfig, o) })
	case "TCPRoute":
		o := &gwv1.TCPRoute{}
		return decoded(b, o, func() any { return TCPRoute(testConfig, o) })
	case "TLSRoute":
		o := &gwv1.TLSRoute{}
		return decoded(b, o, func() any { return TLSRoute(testConfig, o) })
	case "ReferenceGrant":
		o := &gwv1.ReferenceGrant{}
		return decoded(b, o, func() any { return ReferenceGrant(o) })
	case "BackendTLSPolicy":
		o := &gwv1.BackendTLSPolicy{}
		return decoded(b, o, func() any { return BackendTLSPolicy(o) })
	}
	return nil, nil
}

func decoded(b []byte, o metav1.Object, translate func() any) (metav1.Object, func() any) {
	if yaml.Unmarshal(b, o) != nil {
		return nil, nil
	}
	return o, translate
}

func TestGolden(t *testing.T) {
	goldentest.Run(t, "testdata", *update, func(t testing.TB, in []byte) (any, error) {
		o, translate := object(in)
		if o == nil {
			t.Fatal("not an object of the Gateway API")
		}
		return translate(), nil
	})
}

// No object may crash istiod, change by being read, or give another result the second time.
func FuzzTranslate(f *testing.F) {
	goldentest.Seeds(f, "testdata")
	f.Fuzz(func(t *testing.T, b []byte) {
		o, translate := object(b)
		if o == nil {
			return
		}
		before, err := yaml.Marshal(o)
		if err != nil {
			return
		}
		first := translate()
		if diff := cmp.Diff(first, translate()); diff != "" {
			t.Errorf("two results of one input:\n%s", diff)
		}
		after, err := yaml.Marshal(o)
		if err != nil || string(before) != string(after) {
			t.Errorf("the input was changed: %v", err)
		}
		if r, ok := first.(*model.Route); ok {
			checkRoute(t, r)
		}
	})
}

// checkRoute: whoever goes on with a route may rely on this.
func checkRoute(t *testing.T, r *model.Route) {
	for _, rule := range r.HTTP {
		for _, b := range rule.Backends {
			checkBackend(t, b)
		}
		for _, m := range rule.Mirrors {
			checkBackend(t, m.Backend)
			if m.Share.Denominator == 0 || m.Share.Numerator > m.Share.Denominator {
				t.Errorf("a share of %v", m.Share)
			}
		}
		if a := rule.ExternalAuth; a != nil && rule.Invalid == nil && (a.Backend.Host == "" || a.Backend.Port == 0) {
			t.Errorf("an authorization server without address in a valid rule: %+v", a)
		}
	}
	for _, rule := range append(r.TCP, r.TLS...) {
		for _, b := range rule.Backends {
			checkBackend(t, b)
		}
	}
}

func checkBackend(t *testing.T, b model.Backend) {
	if b.Invalid == nil && (b.Host == "" || b.Port == 0) {
		t.Errorf("a valid backend without host or port: %+v", b)
	}
	if b.Invalid != nil && (b.Invalid.Reason == "" || b.Invalid.Type == "" || b.Invalid.OK) {
		t.Errorf("a condition that says nothing: %+v", b.Invalid)
	}
}
