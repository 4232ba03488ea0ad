package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// module is the import path prefix of what is built.
const module = "github.com/ambit-mesh/ambit/"

// Options say where to build and what to call the result.
type Options struct {
	// Source is the repository's root.
	Source string
	// Out receives an archive per image; out/images under Source if empty.
	Out string
	// Hub is the part of an image's name before its own; "ambit" if empty.
	Hub string
	// Tag is made of the programs' contents if empty, so that new code always has a new tag.
	Tag string
	// Only restricts the result to images of these names; empty means all.
	Only []string
}

// Result is what Build wrote.
type Result struct {
	Hub, Tag string
	Archives []string
}

// definition is an image before it has a hub, a tag and built programs.
type definition struct {
	name       string
	programs   map[string]string // import path below the module → path in the image
	user       string
	entrypoint string
	title      string
	// others finds what is not built here, if anything.
	others func() ([]File, error)
}

// definitions lists one image per level of privilege, the proxy of layer 7, and the two of the demo.
func definitions() []definition {
	return []definition{
		{name: "istiod", programs: map[string]string{"cmd/istiod": "/usr/local/bin/istiod"}, user: nonroot,
			entrypoint: "/usr/local/bin/istiod", title: "Ambit control plane"},
		// Root without privileges of its own: the pod's securityContext grants what entering a pod's network namespace needs.
		{name: "ztunnel", programs: map[string]string{"cmd/ztunnel": "/usr/local/bin/ztunnel"},
			entrypoint: "/usr/local/bin/ztunnel", title: "Ambit node proxy"},
		{name: "install-cni", programs: map[string]string{"cmd/node-agent": "/usr/local/bin/node-agent", "cmd/ambit-cni": "/opt/cni/bin/ambit-cni"},
			entrypoint: "/usr/local/bin/node-agent", title: "Ambit node agent and CNI plugin"},
		// Not root and without privileges: a gateway's ports below 1024 are the pod's to allow (a sysctl).
		{name: "waypoint", programs: map[string]string{"cmd/waypoint-agent": "/usr/local/bin/waypoint-agent"}, user: nonroot,
			entrypoint: "/usr/local/bin/waypoint-agent", title: "Ambit waypoint and gateway: Envoy with its agent", others: envoyFiles},
		{name: "shop", programs: map[string]string{"tests/demo/shop": "/usr/local/bin/shop"}, user: nonroot,
			entrypoint: "/usr/local/bin/shop", title: "Ambit demo: shop"},
		{name: "tools", programs: map[string]string{"tests/demo/tools": "/usr/local/bin/tools"}, user: nonroot,
			entrypoint: "/usr/local/bin/tools", title: "Ambit demo: load generator and tools"},
	}
}

// Names lists the images that Build knows.
func Names() []string {
	var names []string
	for _, d := range definitions() {
		names = append(names, d.name)
	}
	return names
}

// Build compiles the programs and writes an archive per image. What did not change is not written again.
func Build(ctx context.Context, o Options) (Result, error) {
	if o.Out == "" {
		o.Out = filepath.Join(o.Source, "out", "images")
	}
	if o.Hub == "" {
		o.Hub = "ambit"
	}
	wanted, err := selected(o.Only)
	if err != nil {
		return Result{}, err
	}
	bin := filepath.Join(o.Out, "bin")
	if err := compile(ctx, o, bin, wanted); err != nil {
		return Result{}, err
	}
	files, err := contents(bin, wanted)
	if err != nil {
		return Result{}, err
	}
	if o.Tag == "" {
		if o.Tag, err = contentTag(wanted, files); err != nil {
			return Result{}, err
		}
	}
	result := Result{Hub: o.Hub, Tag: o.Tag}
	for _, d := range wanted {
		archive := filepath.Join(o.Out, d.name+".tar")
		image := d.image(o, files[d.name])
		if !Same(archive, image) {
			if err := Write(archive, image); err != nil {
				return Result{}, err
			}
		}
		result.Archives = append(result.Archives, archive)
	}
	if err := os.WriteFile(filepath.Join(o.Out, "tag"), []byte(result.Tag+"\n"), 0o644); err != nil {
		return Result{}, fmt.Errorf("write the tag: %w", err)
	}
	return result, nil
}

func selected(only []string) ([]definition, error) {
	if len(only) == 0 {
		return definitions(), nil
	}
	var list []definition
	for _, name := range only {
		found := false
		for _, d := range definitions() {
			if d.name == name {
				list, found = append(list, d), true
			}
		}
		if !found {
			return nil, fmt.Errorf("build image %q: the images are %s", name, strings.Join(Names(), ", "))
		}
	}
	return list, nil
}

// compile builds all programs in one go command, which shares their packages and leaves unchanged ones untouched.
func compile(ctx context.Context, o Options, bin string, list []definition) error {
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return fmt.Errorf("make the directory of programs: %w", err)
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w " + versionFlags(ctx, o.Source), "-o", bin + string(filepath.Separator)}
	for _, d := range list {
		for pkg := range d.programs {
			args = append(args, "./"+pkg)
		}
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = o.Source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

// versionFlags stamp the nearest tag of the repository; a source without git is "unknown".
func versionFlags(ctx context.Context, source string) string {
	version := "unknown"
	cmd := exec.CommandContext(ctx, "git", "describe", "--tags", "--always")
	cmd.Dir = source
	if out, err := cmd.Output(); err == nil {
		version = strings.TrimSpace(string(out))
	}
	return "-X " + module + "internal/version.version=" + version
}

// contents are the files of each image, by its name.
func contents(bin string, list []definition) (map[string][]File, error) {
	all := map[string][]File{}
	for _, d := range list {
		files := d.files(bin)
		if d.others != nil {
			others, err := d.others()
			if err != nil {
				return nil, fmt.Errorf("build image %q: %w", d.name, err)
			}
			files = append(files, others...)
			sortFiles(files)
		}
		all[d.name] = files
	}
	return all, nil
}

// contentTag names the images by what is in them.
func contentTag(list []definition, files map[string][]File) (string, error) {
	h := sha256.New()
	for _, d := range list {
		for _, f := range files[d.name] {
			if err := hashFile(h, f); err != nil {
				return "", fmt.Errorf("make a tag: %w", err)
			}
		}
	}
	return "dev-" + hex.EncodeToString(h.Sum(nil))[:12], nil
}

func hashFile(h io.Writer, f File) error {
	in, err := os.Open(f.Source)
	if err != nil {
		return err
	}
	fmt.Fprintln(h, f.Path)
	_, err = io.Copy(h, in)
	return errors.Join(err, in.Close())
}

// files are the programs in the order of their paths.
func (d definition) files(bin string) []File {
	var files []File
	for pkg, path := range d.programs {
		files = append(files, File{Path: path, Source: filepath.Join(bin, filepath.Base(pkg)), Mode: 0o755})
	}
	sortFiles(files)
	return files
}

func (d definition) image(o Options, files []File) Image {
	return Image{
		Tag: o.Hub + "/" + d.name + ":" + o.Tag, Files: files, User: d.user, Entrypoint: []string{d.entrypoint},
		Labels: map[string]string{
			"org.opencontainers.image.title":    d.title,
			"org.opencontainers.image.version":  o.Tag,
			"org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.source":   "https://" + strings.TrimSuffix(module, "/"),
		},
	}
}
