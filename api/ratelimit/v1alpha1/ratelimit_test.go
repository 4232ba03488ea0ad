package v1alpha1

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"sigs.k8s.io/yaml"
)

const definitionFile = "../../../charts/base/files/ratelimits.yaml"

func definition(t *testing.T) *apiextensions.CustomResourceDefinition {
	t.Helper()
	b, err := os.ReadFile(definitionFile)
	if err != nil {
		t.Fatal(err)
	}
	out := &apiextensions.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestDefinitionIsTheTypes: Kubernetes drops a field that the definition lacks in silence, and istiod one that the types lack.
func TestDefinitionIsTheTypes(t *testing.T) {
	crd := definition(t)
	if crd.Spec.Group != Group || crd.Spec.Names.Kind != Kind || crd.Spec.Names.Plural != Plural || crd.Name != Plural+"."+Group {
		t.Errorf("definition %s of group %s, kind %s, plural %s", crd.Name, crd.Spec.Group, crd.Spec.Names.Kind, crd.Spec.Names.Plural)
	}
	v := crd.Spec.Versions[0]
	if len(crd.Spec.Versions) != 1 || v.Name != Version || v.Subresources == nil || v.Subresources.Status == nil {
		t.Fatalf("want the one version %s, with a status of its own", Version)
	}
	var spec, status []string
	schemaFields("spec", v.Schema.OpenAPIV3Schema.Properties["spec"], &spec)
	schemaFields("status", v.Schema.OpenAPIV3Schema.Properties["status"], &status)
	var inGo []string
	typeFields("spec", reflect.TypeFor[RateLimitSpec](), &inGo)
	typeFields("status", reflect.TypeFor[RateLimitStatus](), &inGo)
	inCRD := map[string]bool{}
	for _, f := range append(spec, status...) {
		inCRD[f] = true
	}
	for _, f := range inGo {
		if !inCRD[f] {
			t.Errorf("the definition lacks %s", f)
		}
		delete(inCRD, f)
	}
	for f := range inCRD {
		t.Errorf("the types lack %s", f)
	}
}

func schemaFields(at string, s apiextensions.JSONSchemaProps, out *[]string) {
	if s.Items != nil && s.Items.Schema != nil {
		s = *s.Items.Schema
	}
	for name, p := range s.Properties {
		kind := p.Type
		if kind == "array" {
			kind = "array of " + p.Items.Schema.Type
		}
		*out = append(*out, at+"."+name+": "+kind)
		schemaFields(at+"."+name, p, out)
	}
}

func typeFields(at string, t reflect.Type, out *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			typeFields(at, f.Type, out)
			continue
		}
		kind, inner := jsonKind(f.Type)
		*out = append(*out, at+"."+name+": "+kind)
		if inner != nil {
			typeFields(at+"."+name, inner, out)
		}
	}
}

func jsonKind(t reflect.Type) (string, reflect.Type) {
	switch t {
	case reflect.TypeFor[metav1.Duration](), reflect.TypeFor[metav1.Time]():
		return "string", nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		return jsonKind(t.Elem())
	case reflect.Slice:
		kind, inner := jsonKind(t.Elem())
		return "array of " + kind, inner
	case reflect.Struct:
		return "object", t
	case reflect.Int32, reflect.Int64:
		return "integer", nil
	case reflect.Bool:
		return "boolean", nil
	}
	return t.Kind().String(), nil
}

// fill sets everything in v to something.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i))
			}
		}
	case reflect.String:
		v.SetString("x")
	case reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		if v.Type().Elem().Kind() == reflect.String {
			v.SetMapIndex(reflect.ValueOf("k"), reflect.ValueOf("v"))
		}
	}
}

// shared reports what two values have in common by reference.
func shared(at string, a, b reflect.Value) []string {
	var out []string
	switch a.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		if a.IsNil() {
			return []string{at + ": not filled"}
		}
		if a.Pointer() == b.Pointer() {
			out = append(out, at)
		}
		if a.Kind() == reflect.Pointer {
			out = append(out, shared(at, a.Elem(), b.Elem())...)
		}
		if a.Kind() == reflect.Slice {
			for i := range a.Len() {
				out = append(out, shared(fmt.Sprintf("%s[%d]", at, i), a.Index(i), b.Index(i))...)
			}
		}
	case reflect.Struct:
		for i := range a.NumField() {
			if a.Type().Field(i).IsExported() {
				out = append(out, shared(at+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))...)
			}
		}
	}
	return out
}

// TestDeepCopy: informers hand one object to many readers; a copy must be equal and share nothing.
func TestDeepCopy(t *testing.T) {
	in := &RateLimitList{}
	fill(reflect.ValueOf(in).Elem())
	out, ok := in.DeepCopyObject().(*RateLimitList)
	if !ok {
		t.Fatalf("got %T", in.DeepCopyObject())
	}
	if diff := cmp.Diff(in, out); diff != "" {
		t.Errorf("(-original +copy):\n%s", diff)
	}
	for _, s := range shared("list", reflect.ValueOf(in).Elem(), reflect.ValueOf(out).Elem()) {
		if strings.Contains(s, ".Time") { // an instant's zone is never changed
			continue
		}
		t.Errorf("shared: %s", s)
	}
	one, ok := in.Items[0].DeepCopyObject().(*RateLimit)
	if !ok || one == &in.Items[0] {
		t.Error("an item is its own copy")
	}
	if (*RateLimit)(nil).DeepCopyObject() != nil || (*RateLimitList)(nil).DeepCopyObject() != nil {
		t.Error("a copy of nothing")
	}
}

// TestDecode: clients make objects of this kind out of what the API server sends, and the example of the documentation is valid.
func TestDecode(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var example bytes.Buffer
	for line := range strings.Lines(string(doc)) {
		if rest, ok := strings.CutPrefix(line, "//\t"); ok {
			example.WriteString(rest)
		}
	}
	scheme := runtime.NewScheme()
	if err := AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	strict := kjson.NewSerializerWithOptions(kjson.DefaultMetaFactory, scheme, scheme, kjson.SerializerOptions{Yaml: true, Strict: true})
	got, err := runtime.Decode(strict, example.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	r, ok := got.(*RateLimit)
	if !ok || r.Name != "checkout" || r.Spec.Local[0].Per.Duration.String() != "1m0s" || *r.Spec.Local[0].Burst != 5 {
		t.Errorf("got %+v", got)
	}
}
