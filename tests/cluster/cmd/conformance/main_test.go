package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/tests/cluster"
)

func TestImagesHaveProgramsThatAreBuilt(t *testing.T) {
	source := filepath.Join("..", "..", "..", "..")
	r := &runner{options: &options{set: "all"}, source: source}
	list, err := readImages(filepath.Join(r.module(), "images.txt"))
	if err != nil || len(list) == 0 {
		t.Fatalf("%d images, %v", len(list), err)
	}
	programs := r.programs()
	for _, i := range list {
		p, ok := programs[i.program]
		if !ok {
			t.Errorf("image %s holds %s, which is not built", i.tag, i.program)
			continue
		}
		if _, err := os.Stat(filepath.Join(p.dir, "go.mod")); err != nil {
			t.Errorf("program %s: %v", i.program, err)
		}
		img := i.image("/path/of/program")
		if img.Tag != i.tag || img.Entrypoint[0] != "/"+i.program || img.Files[0].Path != img.Entrypoint[0] {
			t.Errorf("image of %s is %+v", i.tag, img)
		}
	}
}

func TestReadImagesRefusesOtherLines(t *testing.T) {
	file := filepath.Join(t.TempDir(), "images.txt")
	for text, want := range map[string][]suiteImage{
		"# comment\n\na:1 echo\n": {{"a:1", "echo"}},
		"a:1\n":                   nil,
		"a:1 b c\n":               nil,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readImages(file)
		if (err == nil) != (want != nil) {
			t.Errorf("%q: %v", text, err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(suiteImage{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
	if _, err := readImages(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("an absent list is accepted")
	}
}

func TestJudge(t *testing.T) {
	exit := errors.New("exit status 1")
	for _, tt := range []struct {
		what    string
		mesh    bool
		results map[string]string
		exit    error
		good    bool
	}{
		{"everything passes", true, map[string]string{"A": "pass", "MeshBasic": "pass", "B": "skip"}, nil, true},
		{"a test fails", true, map[string]string{"A": "fail", "MeshBasic": "pass"}, exit, false},
		{"nothing was run", true, map[string]string{"A": "skip"}, nil, false},
		{"without the mesh, all but one fail", false, map[string]string{"A": "fail", "MeshBasic": "pass", "B": "skip"}, exit, true},
		{"without the mesh, another passes", false, map[string]string{"A": "pass", "MeshBasic": "pass"}, nil, false},
		{"without the mesh, all fail", false, map[string]string{"A": "fail", "MeshBasic": "fail"}, exit, false},
	} {
		r := &runner{options: &options{mesh: tt.mesh}, progress: cluster.NewProgress(io.Discard)}
		if err := r.judge(tt.results, tt.exit); (err == nil) != tt.good {
			t.Errorf("%s: %v", tt.what, err)
		}
	}
}
