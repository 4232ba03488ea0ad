package stage

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/engine"

	"github.com/ambit-mesh/ambit/charts"
)

// InstallGateway renders chart gateway with our images, applies it to a namespace of its own and waits for the rollout.
// It returns the manifest, for Delete.
func (s *Stage) InstallGateway(ctx context.Context, name, namespace string, values map[string]any) (string, error) {
	c, err := charts.Load(charts.Gateway)
	if err != nil {
		return "", err
	}
	all := map[string]any{"global": map[string]any{"hub": s.images.Hub, "tag": s.images.Tag}}
	for k, v := range values {
		all[k] = v
	}
	merged, err := util.ToRenderValues(c, all, common.ReleaseOptions{Name: name, Namespace: namespace}, nil)
	if err != nil {
		return "", fmt.Errorf("merge values of gateway %q: %w", name, err)
	}
	rendered, err := engine.Render(c, merged)
	if err != nil {
		return "", fmt.Errorf("render gateway %q: %w", name, err)
	}
	docs := []string{fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", namespace)}
	for path, text := range rendered {
		if strings.HasSuffix(path, ".yaml") && strings.TrimSpace(text) != "" {
			docs = append(docs, text)
		}
	}
	slices.Sort(docs[1:])
	manifest := strings.Join(docs, "\n---\n")
	if err := s.Apply(ctx, manifest); err != nil {
		return manifest, err
	}
	return manifest, s.WaitRollout(ctx, namespace, "deployment", name)
}
