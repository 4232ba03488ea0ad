package conformance

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"

	upstream "sigs.k8s.io/gateway-api/conformance"
)

// TestImagesAreListed: a new version of the suite may name other images, which no node could pull.
func TestImagesAreListed(t *testing.T) {
	list, err := os.ReadFile("images.txt")
	if err != nil {
		t.Fatal(err)
	}
	image := regexp.MustCompile(`(?m)^\s*(?:- )?image: *"?([^"\s]+)`)
	found := map[string]bool{}
	err = fs.WalkDir(upstream.Manifests, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".yaml") {
			return err
		}
		b, err := fs.ReadFile(upstream.Manifests, path)
		for _, m := range image.FindAllStringSubmatch(string(b), -1) {
			found[m[1]] = true
		}
		return err
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("%d images in the manifests, %v", len(found), err)
	}
	for name := range found {
		if !strings.Contains("\n"+string(list), "\n"+name+" ") {
			t.Errorf("image %s of the manifests is not in images.txt", name)
		}
	}
}
