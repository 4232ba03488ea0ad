package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"
)

// Keys of an overlay, as Istio has them: a strategic merge patch in YAML for each kind of object.
const (
	keyDeployment     = "deployment"
	keyService        = "service"
	keyServiceAccount = "serviceAccount"
	keyAutoscaler     = "horizontalPodAutoscaler"
	keyBudget         = "podDisruptionBudget"
)

// maxOverlay bounds an overlay, in bytes: a ConfigMap holds no more.
const maxOverlay = 1 << 20

// Overlay is a ConfigMap that changes objects.
type Overlay struct {
	// Origin is "namespace/name", for errors.
	Origin string
	Data   map[string]string
}

// validate refuses keys that would be without effect.
func (o Overlay) validate() error {
	known := []string{keyDeployment, keyAutoscaler, keyBudget, keyService, keyServiceAccount}
	for _, key := range slices.Sorted(maps.Keys(o.Data)) {
		if !slices.Contains(known, key) {
			return fmt.Errorf("%w: ConfigMap %q: unknown key %q: want %s", ErrParameters, o.Origin, key, strings.Join(known, ", "))
		}
	}
	return nil
}

// asks tells whether an overlay has the key: autoscalers and budgets are made only then.
func asks(overlays []Overlay, key string) bool {
	return slices.ContainsFunc(overlays, func(o Overlay) bool { _, ok := o.Data[key]; return ok })
}

// overlaid returns the object with all overlays of its key merged in.
func overlaid[T any](object *T, key string, overlays []Overlay) (*T, error) {
	schema, err := strategicpatch.NewPatchMetaFromStruct(object)
	if err != nil {
		return nil, fmt.Errorf("read type of %s: %w", key, err)
	}
	for _, o := range overlays {
		if err := o.validate(); err != nil {
			return nil, err
		}
		text, ok := o.Data[key]
		if !ok {
			continue
		}
		if object, err = merge(object, text, schema); err != nil {
			return nil, fmt.Errorf("%w: ConfigMap %q: key %q: %w", ErrParameters, o.Origin, key, err)
		}
	}
	return object, nil
}

func merge[T any](object *T, text string, schema strategicpatch.PatchMetaFromStruct) (*T, error) {
	if len(text) > maxOverlay {
		return nil, fmt.Errorf("%d bytes, more than %d", len(text), maxOverlay)
	}
	patch := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &patch); err != nil {
		return nil, err
	}
	before, err := toMap(object)
	if err != nil {
		return nil, err
	}
	identity := identityOf(runtime.DeepCopyJSON(before)) // merging changes before in place
	merged, err := strategicpatch.StrategicMergeMapPatchUsingLookupPatchMeta(before, patch, schema)
	if err != nil {
		return nil, err
	}
	if !reflect.DeepEqual(identity, identityOf(merged)) {
		return nil, fmt.Errorf("changes apiVersion, kind, or metadata other than labels and annotations")
	}
	raw, err := json.Marshal(merged)
	if err != nil {
		return nil, err
	}
	out := new(T)
	// Strict, because the API server would drop an unknown field or refuse the object in words about managed fields.
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(out); err != nil {
		return nil, err
	}
	return out, nil
}

// identityOf is what an overlay must leave alone.
func identityOf(object map[string]any) map[string]any {
	out := map[string]any{"apiVersion": object["apiVersion"], "kind": object["kind"]}
	meta, _ := object["metadata"].(map[string]any)
	rest := maps.Clone(meta)
	delete(rest, "labels")
	delete(rest, "annotations")
	out["metadata"] = rest
	return out
}

func toMap(object any) (map[string]any, error) {
	raw, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	out := map[string]any{}
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf("decode object: %w", err)
	}
	return out, nil
}

// unstructure turns objects into what is applied: only the fields that were set, since applying a field takes it over.
func unstructure(objects []any) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for _, o := range objects {
		m, err := toMap(o)
		if err != nil {
			return nil, err
		}
		delete(m, "status")
		prune(m)
		out = append(out, &unstructured.Unstructured{Object: m})
	}
	return out, nil
}

// prune drops the nulls that Go's types write for times that are not set.
func prune(m map[string]any) {
	for k, v := range m {
		switch v := v.(type) {
		case nil:
			delete(m, k)
		case map[string]any:
			prune(v)
		}
	}
}
