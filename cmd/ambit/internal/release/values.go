package release

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/cli/values"

	"github.com/ambit-mesh/ambit/charts"
)

// globalKey is where values for all charts stand.
const globalKey = "global"

// Values are a user's values for the whole mesh, in the umbrella chart's shape: a map for each part, and global.
type Values map[string]any

// ParseValues reads values files and then settings of the form key=value, later ones winning, as Helm does.
func ParseValues(files, settings []string) (Values, error) {
	o := values.Options{ValueFiles: files, Values: settings}
	merged, err := o.MergeValues(nil)
	if err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	known := append([]string{globalKey}, charts.Parts()...)
	for _, key := range slices.Sorted(maps.Keys(merged)) {
		if !slices.Contains(known, key) {
			return nil, fmt.Errorf("read values: unknown key %q: values start with %s", key, strings.Join(known, ", "))
		}
		if _, ok := merged[key].(map[string]any); !ok && merged[key] != nil {
			return nil, fmt.Errorf("read values: %q is not a map", key)
		}
	}
	return merged, nil
}

// For returns the values for one part's chart. The part's own global values go before the mesh's; namespace is where
// the control plane is unless the values say otherwise.
func (v Values) For(part, namespace string) map[string]any {
	out := clone(v.table(part))
	global, _ := out[globalKey].(map[string]any)
	global = util.CoalesceTables(clone(global), clone(v.table(globalKey)))
	if _, ok := global["istioNamespace"]; !ok {
		global["istioNamespace"] = namespace
	}
	out[globalKey] = global
	return out
}

func (v Values) table(key string) map[string]any {
	table, _ := v[key].(map[string]any)
	return table
}

// clone copies nested maps, because Helm's merging writes into what it is given.
func clone(in map[string]any) map[string]any {
	out := make(map[string]any, len(in))
	for key, value := range in {
		if table, ok := value.(map[string]any); ok {
			value = clone(table)
		}
		out[key] = value
	}
	return out
}
