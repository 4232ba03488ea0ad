package arch

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the dependency lists")

// binaries are those whose dependencies are committed, so that a new one shows in the diff of the change that adds it.
var binaries = []string{"ztunnel", "ambit-cni"}

func TestDependencyLists(t *testing.T) {
	for _, binary := range binaries {
		t.Run(binary, func(t *testing.T) {
			got := dependencyList(t, "./cmd/"+binary)
			path := filepath.Join("deps", binary+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("dependencies of cmd/%s changed (-committed +now); if that is wanted: go test ./tests/arch -update\n%s", binary, diff)
			}
		})
	}
}

// dependencyList names every package outside the standard library that is linked, with the first of ours, or else of
// theirs, that imports it.
func dependencyList(t *testing.T, binary string) string {
	t.Helper()
	importers := map[string]string{}
	var linked []string
	for _, p := range goList(t, "-deps", binary) {
		if p.Standard {
			continue
		}
		linked = append(linked, p.ImportPath)
		for _, imported := range p.Imports {
			if current := importers[imported]; better(p.ImportPath, current) {
				importers[imported] = p.ImportPath
			}
		}
	}
	slices.Sort(linked)
	var b strings.Builder
	fmt.Fprintf(&b, "# Packages outside the standard library that cmd/%s links, and who imports each.\n", filepath.Base(binary))
	for _, path := range linked {
		if by := importers[path]; by != "" {
			fmt.Fprintf(&b, "%s (%s)\n", short(path), short(by))
		}
	}
	return b.String()
}

// better prefers an importer of ours, then the alphabet.
func better(candidate, current string) bool {
	if current == "" {
		return true
	}
	a, b := strings.HasPrefix(candidate, module), strings.HasPrefix(current, module)
	if a != b {
		return a
	}
	return candidate < current
}

func short(path string) string { return strings.TrimPrefix(path, module+"/") }
