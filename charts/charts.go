// Package charts embeds the mesh's Helm charts: base, istiod, cni, ztunnel, and
// ambient, the umbrella over the four; and gateway, which a user installs once for
// each gateway that is not made from a Gateway of the Gateway API. The command-line tool installs from here,
// so that the tool and the charts are always of one version; the golden tests
// render from here, so that what is tested is what is installed.
//
// All charts carry one version (a test checks it), which is the version of the
// mesh. The package only loads charts; it neither renders nor talks to a cluster.
package charts

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"

	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

//go:generate go run ./internal/gencrds

// The prefix all: is needed for the templates whose names start with an underscore.
//
//go:embed all:base all:istiod all:cni all:ztunnel all:gateway all:ambient
var files embed.FS

// Umbrella is the name of the chart that depends on all others.
const Umbrella = "ambient"

// Gateway is the name of the chart that deploys one gateway. It is no part of the mesh itself.
const Gateway = "gateway"

// Parts returns the names of the charts a mesh is made of, in the order of installing. ztunnel comes before
// cni, so that no pod is captured on a node that has no proxy yet; removing goes the other way round.
func Parts() []string { return []string{"base", "istiod", "ztunnel", "cni"} }

// Load returns the embedded chart with this name. The umbrella comes with its parts as dependencies.
func Load(name string) (*chart.Chart, error) {
	c, err := load(name)
	if err != nil || name != Umbrella {
		return c, err
	}
	for _, part := range Parts() {
		dep, err := load(part)
		if err != nil {
			return nil, err
		}
		c.AddDependency(dep)
	}
	return c, nil
}

func load(name string) (*chart.Chart, error) {
	var buffered []*archive.BufferedFile
	err := fs.WalkDir(files, name, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		buffered = append(buffered, &archive.BufferedFile{Name: strings.TrimPrefix(path, name+"/"), Data: data})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read embedded chart %q: %w", name, err)
	}
	c, err := loader.LoadFiles(buffered)
	if err != nil {
		return nil, fmt.Errorf("load embedded chart %q: %w", name, err)
	}
	return c, nil
}
