package istionet

import (
	"flag"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
	"github.com/ambit-mesh/ambit/istiod/translate/gatewayapi/goldentest"
)

var update = flag.Bool("update", false, "write the golden files anew")

var testConfig = translate.Config{ClusterID: "Kubernetes", TrustDomain: "cluster.local", Domain: "cluster.local", RootNamespace: "istio-system"}

// decode reads a YAML object and gives it with its translation, or nil for a kind that is not ours.
func decode(b []byte) (metav1.Object, func() (any, error)) {
	var head struct{ Kind string }
	if yaml.Unmarshal(b, &head) != nil {
		return nil, nil
	}
	switch head.Kind {
	case "VirtualService":
		o := &networkingv1.VirtualService{}
		return decoded(b, o, func() (any, error) { return result(VirtualService(testConfig, o)) })
	case "DestinationRule":
		o := &networkingv1.DestinationRule{}
		return decoded(b, o, func() (any, error) { return result(DestinationRule(testConfig, o)) })
	case "ServiceEntry":
		o := &networkingv1.ServiceEntry{}
		return decoded(b, o, func() (any, error) { return result(ServiceEntry(testConfig, o)) })
	case "Gateway":
		o := &networkingv1.Gateway{}
		return decoded(b, o, func() (any, error) { return result(Gateway(testConfig, o)) })
	}
	return nil, nil
}

func decoded(b []byte, o metav1.Object, translate func() (any, error)) (metav1.Object, func() (any, error)) {
	if yaml.Unmarshal(b, o) != nil {
		return nil, nil
	}
	return o, translate
}

// result keeps a pointer that is nil from becoming an interface that is not.
func result[T any](v *T, err error) (any, error) {
	if v == nil {
		return nil, err
	}
	return v, err
}

func TestGolden(t *testing.T) {
	goldentest.Run(t, "testdata", *update, func(t testing.TB, in []byte) (any, error) {
		o, translate := decode(in)
		if o == nil {
			t.Fatal("not an object of Istio")
		}
		v, err := translate()
		if (v == nil) == (err == nil) {
			t.Errorf("value %v with error %v", v, err)
		}
		return v, err
	})
}

// No object may crash istiod, change by being read, give another result the second time, or give an error without a field.
func FuzzTranslate(f *testing.F) {
	goldentest.Seeds(f, "testdata")
	f.Fuzz(func(t *testing.T, b []byte) {
		o, translate := decode(b)
		if o == nil {
			return
		}
		before, err := yaml.Marshal(o)
		if err != nil {
			return
		}
		first, err := translate()
		again, _ := translate()
		if diff := cmp.Diff(goldentest.Text(first), goldentest.Text(again)); diff != "" {
			t.Errorf("two results of one input:\n%s", diff)
		}
		if (first == nil) == (err == nil) || err != nil && !strings.Contains(err.Error(), "spec") {
			t.Errorf("value %v with error %v", first, err)
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
		ends := 0
		for _, is := range []bool{rule.Redirect != nil, rule.Direct != nil, rule.Delegate != nil, len(rule.Backends) > 0} {
			if is {
				ends++
			}
		}
		if ends != 1 {
			t.Errorf("a rule with %d ends: %+v", ends, rule)
		}
		checkBackends(t, rule.Backends)
	}
	for _, rule := range append(r.TCP, r.TLS...) {
		checkBackends(t, rule.Backends)
		if len(rule.Backends) == 0 {
			t.Errorf("a rule without backends: %+v", rule)
		}
	}
}

func checkBackends(t *testing.T, in []model.Backend) {
	var total uint64
	for _, b := range in {
		total += uint64(b.Weight)
		if b.Host == "" {
			t.Errorf("a backend without host: %+v", b)
		}
	}
	if len(in) > 0 && total == 0 {
		t.Errorf("backends without weight: %+v", in)
	}
}
