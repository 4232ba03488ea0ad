package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func sample(t *testing.T, content string) Image {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return Image{Tag: "ambit/x:1", User: nonroot, Entrypoint: []string{"/usr/local/bin/x"}, Labels: map[string]string{"a": "b"},
		Files: []File{{Path: "/usr/local/bin/x", Source: program, Mode: 0o755}}}
}

func TestWrittenImageHoldsWhatWasAsked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.tar")
	want := sample(t, "binary")
	if err := Write(file, want); err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != nonroot || config.OS != "linux" || config.Config.Labels["a"] != "b" {
		t.Errorf("configuration %+v", config)
	}
	if diff := cmp.Diff(want.Entrypoint, config.Config.Entrypoint); diff != "" {
		t.Error(diff)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() > 0 {
			t.Errorf("%s: owner %d:%d, time %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		got[h.Name] = h.FileInfo().Mode().String() + " " + string(b[:min(len(b), 6)])
	}
	for name, want := range map[string]string{
		"usr/local/bin/x": "-rwxr-xr-x binary", "usr/local/": "drwxr-xr-x ", "tmp/": "dtrwxrwxrwx ", "etc/passwd": "-rw-r--r-- root:x",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

func TestSameInputsGiveTheSameBytes(t *testing.T) {
	dir := t.TempDir()
	var files [2][]byte
	for i := range files {
		name := filepath.Join(dir, "x.tar")
		if err := Write(name, sample(t, "binary")); err != nil {
			t.Fatal(err)
		}
		var err error
		if files[i], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(files[0], files[1]) {
		t.Error("two archives of the same image differ")
	}
}

func TestSame(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.tar")
	i := sample(t, "binary")
	if Same(file, i) {
		t.Error("an archive that does not exist passes")
	}
	if err := Write(file, i); err != nil {
		t.Fatal(err)
	}
	if !Same(file, i) {
		t.Error("a fresh archive does not pass")
	}
	other := i
	other.Tag = "ambit/x:2"
	if Same(file, other) {
		t.Error("an archive with another tag passes")
	}
}

func TestEveryDefinitionIsBuildable(t *testing.T) {
	for _, d := range definitions() {
		found := false
		for pkg, path := range d.programs {
			found = found || path == d.entrypoint
			if _, err := os.Stat(filepath.Join("..", "..", pkg)); err != nil {
				t.Errorf("image %s: %v", d.name, err)
			}
		}
		if !found {
			t.Errorf("image %s does not hold its entry point %s", d.name, d.entrypoint)
		}
	}
	if _, err := selected([]string{"nothing"}); err == nil {
		t.Error("an unknown image passes")
	}
}
