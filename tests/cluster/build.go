package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/ambit-mesh/ambit/tests/images"
)

// kubernetesVersion is what the components report; the go.mod of tests/cluster/kubernetes pins the code.
const kubernetesVersion = "v1.34.4"

// Images that the cluster itself runs.
const (
	pauseImage   = "ambit/pause:1"
	corednsImage = "ambit/coredns:1"
)

// binaries are the paths in the cache of what the cluster is made of.
type binaries struct {
	kubernetes string   // one program with every component
	node       string   // starts processes in namespaces, and is PID 1 of a node
	archives   []string // images that every node imports at start
}

// stamp changes when any of the binaries does: the cache names them by their inputs.
func (b binaries) stamp() string {
	return strings.Join(append([]string{b.kubernetes, b.node}, b.archives...), "\n")
}

// program is a main package that the cache keeps under the hash of its inputs.
type program struct {
	name    string
	dir     string   // where go build runs
	pkg     string   // what it builds there
	inputs  []string // patterns, relative to dir, of the files whose contents name the result
	ldflags string
}

// build makes what is missing in the cache.
func (c *Cluster) build(ctx context.Context) (binaries, error) {
	var b binaries
	var pause, coredns string
	dir := filepath.Join(c.source, "tests", "cluster")
	module := []string{"go.mod", "go.sum", "main.go"}
	own := func(name string, files ...string) program {
		return program{name: name, dir: filepath.Join(dir, "cmd", name), pkg: ".", inputs: files, ldflags: "-s -w"}
	}
	for _, p := range []struct {
		program
		path *string
		step string
	}{
		{program{"kubernetes", filepath.Join(dir, "kubernetes"), ".", module, kubernetesFlags()}, &b.kubernetes, "Kubernetes " + kubernetesVersion + " (minutes the first time)"},
		{program{"coredns", filepath.Join(dir, "coredns"), ".", module, "-s -w"}, &coredns, "CoreDNS"},
		{own("node", "*.go", "../../process/process.go", "../../nodespec/*.go"), &b.node, "node program"},
		{own("pause", "*.go"), &pause, "pause program"},
	} {
		err := c.progress.Do(p.step, func() (err error) {
			*p.path, err = c.cached(ctx, p.program)
			return err
		})
		if err != nil {
			return b, err
		}
	}
	for _, i := range []images.Image{
		{Tag: pauseImage, Files: []images.File{{Path: "/pause", Source: pause, Mode: 0o755}}, Entrypoint: []string{"/pause"}},
		{Tag: corednsImage, Files: []images.File{{Path: "/coredns", Source: coredns, Mode: 0o755}}, Entrypoint: []string{"/coredns"}},
	} {
		archive := i.Files[0].Source + ".tar"
		b.archives = append(b.archives, archive)
		if _, err := os.Stat(archive); err == nil {
			continue
		}
		if err := images.Write(archive, i); err != nil {
			return b, err
		}
	}
	return b, nil
}

// kubernetesFlags stamps the version as the release build does, so that the components agree on it.
func kubernetesFlags() string {
	flags := []string{"-s -w"}
	for _, p := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		major, minor, _ := strings.Cut(strings.TrimPrefix(kubernetesVersion, "v"), ".")
		minor, _, _ = strings.Cut(minor, ".")
		for _, kv := range []string{"gitVersion=" + kubernetesVersion, "gitMajor=" + major, "gitMinor=" + minor, "gitTreeState=clean", "gitCommit=module", "buildDate=2026-01-01T00:00:00Z"} {
			flags = append(flags, "-X "+p+"."+kv)
		}
	}
	return strings.Join(flags, " ")
}

// cached returns the path of the built program, building it if its inputs are new.
func (c *Cluster) cached(ctx context.Context, p program) (string, error) {
	var files []string
	for _, pattern := range p.inputs {
		matches, err := filepath.Glob(filepath.Join(p.dir, pattern))
		if err != nil || len(matches) == 0 {
			return "", fmt.Errorf("find the inputs %q of %s: %w", pattern, p.name, errors.Join(err, os.ErrNotExist))
		}
		for _, m := range matches {
			if !strings.HasSuffix(m, "_test.go") {
				files = append(files, m)
			}
		}
	}
	hash, err := hashFiles(strings.Join([]string{p.name, p.ldflags, runtime.Version(), runtime.GOARCH}, " "), files...)
	if err != nil {
		return "", err
	}
	path := filepath.Join(c.cache, p.name+"-"+hash, p.name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	// A build directory of its own: a large link fills a small /tmp.
	scratch := filepath.Join(c.cache, "build")
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return "", fmt.Errorf("make the build cache: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("make the build cache: %w", err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", p.ldflags, "-o", path+".new", p.pkg)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOTMPDIR="+scratch, "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", p.name, err, lastLines(out))
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", fmt.Errorf("keep %s in the cache: %w", p.name, err)
	}
	return path, nil
}

// installBinaries links the cached programs into the state directory under the names of the components.
func (c *Cluster) installBinaries(b binaries) error {
	var errs []error
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"} {
		errs = append(errs, os.Symlink(b.kubernetes, filepath.Join(c.binDir(), name)))
	}
	errs = append(errs, os.Symlink(b.node, c.nodeProgram()))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("install the components: %w", err)
	}
	return nil
}

func (c *Cluster) nodeProgram() string { return filepath.Join(c.binDir(), "ambit-node") }

// lastLines is the end of a command's output, enough to see why it failed.
func lastLines(out []byte) []byte {
	const keep = 20 // lines
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if len(lines) > keep {
		lines = lines[len(lines)-keep:]
	}
	return bytes.Join(lines, []byte("\n"))
}
