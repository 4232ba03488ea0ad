package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCommittedFileIsCurrent: the committed definitions are those of the module version that go.mod names.
func TestCommittedFileIsCurrent(t *testing.T) {
	out := filepath.Join(t.TempDir(), "crds.yaml")
	if err := generate(out); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("../../base/files/crd-all.gen.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("charts/base/files/crd-all.gen.yaml is not what the module holds: run go generate ./charts")
	}
}

func TestSelectKinds(t *testing.T) {
	const raw = "# head\nspec:\n  names:\n    kind: A\n---\nspec:\n  names:\n    kind: B\n---\nspec:\n  names:\n    kind: C\n"
	got, err := selectKinds([]byte(raw), []string{"C", "A"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "spec:\n  names:\n    kind: A\n---\nspec:\n  names:\n    kind: C\n"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := selectKinds([]byte(raw), []string{"A", "D"}); err == nil || !strings.Contains(err.Error(), `"D"`) {
		t.Errorf("missing kind: got error %v, want one that names it", err)
	}
}
