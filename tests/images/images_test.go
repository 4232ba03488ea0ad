package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
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

// TestEnvoyStartsFromItsImage: the waypoint image holds all that Envoy and the agent need to start, and nothing of the
// machine that built it is missed.
func TestEnvoyStartsFromItsImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("root is needed to change the root directory")
	}
	files, err := envoyFiles()
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	if err := writeLayer(&layer, append(baseFiles(), files...)); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	unpack(t, &layer, root)
	var compressed countingWriter
	z, err := gzip.NewWriterLevel(&compressed, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f.Source)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	// What a registry stores and a node pulls. The release's binary makes up nearly all of it.
	if most := countingWriter(60 << 20); compressed > most {
		t.Errorf("compressed, envoy and its libraries have %d bytes, more than %d", compressed, most)
	}
	cmd := exec.CommandContext(t.Context(), envoyPath, "--mode", "validate", "--config-yaml", "static_resources: {}")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: 1337, Gid: 1337}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("run envoy in its image: %v\n%s", err, out)
	}
}

type countingWriter int

func (c *countingWriter) Write(p []byte) (int, error) {
	*c += countingWriter(len(p))
	return len(p), nil
}

// unpack writes a layer's files below root.
func unpack(t *testing.T, layer io.Reader, root string) {
	t.Helper()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for in := tar.NewReader(layer); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(root, h.Name)
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(name, h.FileInfo().Mode()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, h.FileInfo().Mode()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSharedLibrariesOfWhatIsMissing(t *testing.T) {
	notELF := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(notELF, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{notELF, notELF + "-missing"} {
		if l, err := sharedLibraries(file); err == nil {
			t.Errorf("%s is linked to %q", file, l)
		}
	}
}
