package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/cmd/ambit/internal/release"
	"github.com/ambit-mesh/ambit/cmd/ambit/internal/rollout"
)

// object is what the tool needs to know of a rendered one.
type object struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
}

// decode reads the documents of a rendered manifest as T; empty ones are left out.
func decode[T any](manifest string) ([]T, error) {
	var all []T
	for doc := range strings.SplitSeq(manifest, "\n---\n") {
		if !strings.Contains(doc, "\nkind:") {
			continue
		}
		var one T
		if err := yaml.Unmarshal([]byte(doc), &one); err != nil {
			return nil, fmt.Errorf("read rendered manifest: %w", err)
		}
		all = append(all, one)
	}
	return all, nil
}

// workloadsOf finds in a rendered manifest what there is to wait for.
func workloadsOf(manifest string) ([]rollout.Workload, error) {
	objects, err := decode[object](manifest)
	if err != nil {
		return nil, err
	}
	var found []rollout.Workload
	for _, o := range objects {
		if o.Kind == "Deployment" || o.Kind == "DaemonSet" {
			found = append(found, rollout.Workload{Kind: o.Kind, Namespace: o.Metadata.Namespace, Name: o.Metadata.Name})
		}
	}
	return found, nil
}

// printManifests writes the rendered objects: one YAML stream, or a JSON list.
func printManifests(out io.Writer, rendered []release.Outcome, format output) error {
	items := []map[string]any{}
	for _, r := range rendered {
		if format == textOutput {
			if _, err := fmt.Fprintf(out, "# Release %s, chart %s\n---\n%s\n", r.Name, r.Chart, strings.TrimPrefix(r.Manifest, "---\n")); err != nil {
				return fmt.Errorf("write output: %w", err)
			}
			continue
		}
		objects, err := decode[map[string]any](r.Manifest)
		if err != nil {
			return err
		}
		items = append(items, objects...)
	}
	if format == textOutput {
		return nil
	}
	return printJSON(out, map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
