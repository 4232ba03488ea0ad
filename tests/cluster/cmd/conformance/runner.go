package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/tests/cluster"
	"github.com/ambit-mesh/ambit/tests/demo/stage"
	"github.com/ambit-mesh/ambit/tests/images"
)

const (
	// addresses are for Services of type LoadBalancer. Nothing else of the cluster is in this range.
	addresses = "10.97.0.0/24"
	// suiteTimeout bounds the suite; every profile takes about five minutes on two cores.
	suiteTimeout = 40 * time.Minute
	// maxLine bounds a line of the suite's output, in bytes: it logs whole objects.
	maxLine = 4 << 20
)

// runner is one run.
type runner struct {
	options  *options
	stage    *stage.Stage
	progress *cluster.Progress
	source   string
	// out receives programs, images and logs.
	out      string
	archives []string
}

func (r *runner) module() string { return filepath.Join(r.source, "tests", "conformance") }
func (r *runner) binary() string { return filepath.Join(r.out, "suite.test") }
func (r *runner) log() string    { return filepath.Join(r.out, r.options.set+".log") }

// programs of images.txt, and where they are built.
func (r *runner) programs() map[string]struct{ dir, pkg string } {
	return map[string]struct{ dir, pkg string }{
		"echo":       {r.module(), "./echo"},
		"echo-basic": {r.module(), "sigs.k8s.io/gateway-api/conformance/echo-basic"},
		"coredns":    {filepath.Join(r.module(), "coredns"), "."},
	}
}

// build makes the suite and its images. The go command skips what did not change.
func (r *runner) build(ctx context.Context) error {
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return fmt.Errorf("make %q: %w", r.out, err)
	}
	if err := goCommand(ctx, r.module(), "test", "-c", "-o", r.binary(), "./suite"); err != nil {
		return err
	}
	built := map[string]string{}
	for name, p := range r.programs() {
		if name == "coredns" && r.options.set == "mesh" {
			continue // only the gateways' set-up has it, and it is a large build
		}
		built[name] = filepath.Join(r.out, name)
		if err := goCommand(ctx, p.dir, "build", "-trimpath", "-ldflags=-s -w", "-o", built[name], p.pkg); err != nil {
			return err
		}
	}
	list, err := readImages(filepath.Join(r.module(), "images.txt"))
	if err != nil {
		return err
	}
	for _, i := range list {
		program, ok := built[i.program]
		if !ok {
			continue
		}
		archive := filepath.Join(r.out, strings.NewReplacer("/", "_", ":", "_").Replace(i.tag)+".tar")
		img := i.image(program)
		if !images.Same(archive, img) {
			if err := images.Write(archive, img); err != nil {
				return err
			}
		}
		r.archives = append(r.archives, archive)
	}
	return nil
}

func goCommand(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// suiteImage is a line of images.txt.
type suiteImage struct{ tag, program string }

func readImages(file string) ([]suiteImage, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the list of images: %w", err)
	}
	var list []suiteImage
	for line := range strings.Lines(string(b)) {
		switch fields := strings.Fields(line); {
		case len(fields) == 0 || strings.HasPrefix(fields[0], "#"):
		case len(fields) == 2:
			list = append(list, suiteImage{fields[0], fields[1]})
		default:
			return nil, fmt.Errorf("read the list of images %q: line %q is not a tag and a program", file, strings.TrimSpace(line))
		}
	}
	return list, nil
}

// image puts the program where the suite's manifests expect it.
func (i suiteImage) image(program string) images.Image {
	img := images.Image{Tag: i.tag, User: "1337:1337", Entrypoint: []string{"/" + i.program},
		Files: []images.File{{Path: "/" + i.program, Source: program, Mode: 0o755}}}
	switch i.program {
	case "echo": // the suite also runs it as "client"
		img.Files = append(img.Files, images.File{Path: "/usr/local/bin/client", Source: program, Mode: 0o755})
	case "coredns": // binds port 53 with a capability, which only root keeps over exec
		img.User = ""
	}
	return img
}

// up starts the cluster, and with the mesh builds its images and tool.
func (r *runner) up(ctx context.Context) error {
	if r.options.mesh {
		return r.stage.Up(ctx)
	}
	return r.stage.Cluster.Up(ctx)
}

func (r *runner) load(ctx context.Context) error {
	return r.stage.Cluster.LoadImages(ctx, r.archives...)
}

// gatewayAPI applies the CRDs of the suite's version. They are of the experimental channel, which a policy of the
// standard one's forbids over it.
func (r *runner) gatewayAPI(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api")
	cmd.Dir = r.module()
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("find the Gateway API's module: %w", err)
	}
	if _, err := r.stage.Kubectl(ctx, "delete", "--ignore-not-found", "validatingadmissionpolicybinding,validatingadmissionpolicy",
		"safe-upgrades.gateway.networking.k8s.io"); err != nil {
		return err
	}
	_, err = r.stage.Kubectl(ctx, "apply", "--server-side", "--force-conflicts", "-k", filepath.Join(strings.TrimSpace(string(out)), "config", "crd", "experimental"))
	return err
}

func (r *runner) install(ctx context.Context) error {
	if !r.options.mesh {
		return nil
	}
	return r.stage.InstallMesh(ctx)
}

// removeNamespaces waits until the suite's namespaces are gone: they end asynchronously, and the suite does not wait.
func (r *runner) removeNamespaces(ctx context.Context) error {
	out, err := r.stage.Kubectl(ctx, "get", "namespaces", "-o", "name")
	if err != nil {
		return err
	}
	var names []string
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "namespace/gateway-conformance-") {
			names = append(names, line)
		}
	}
	if len(names) == 0 {
		return nil
	}
	_, err = r.stage.Kubectl(ctx, append([]string{"delete", "--ignore-not-found", "--timeout=120s"}, names...)...)
	return err
}

// route leads the gateways' addresses to the first node, whose kube-proxy answers on them.
func (r *runner) route(ctx context.Context) error {
	ip, err := r.stage.Kubectl(ctx, "get", "node", cluster.NodeNames()[0], "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
	if err != nil {
		return err
	}
	out, err := r.stage.Cluster.Command(ctx, "ip", "route", "replace", addresses, "via", strings.TrimSpace(ip)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("route %s to %s: %w: %s", addresses, ip, err, bytes.TrimSpace(out))
	}
	return nil
}

// suite runs the tests and returns each one's verdict.
func (r *runner) suite(ctx context.Context) (map[string]string, error) {
	results := filepath.Join(r.out, r.options.set+".json")
	if err := os.Remove(results); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	log, err := os.Create(r.log())
	if err != nil {
		return nil, err
	}
	o := r.options
	args := []string{
		r.binary(), "-test.run=^TestGatewayAPI$", "-test.v", fmt.Sprintf("-test.timeout=%s", suiteTimeout), fmt.Sprintf("-test.parallel=%d", o.parallel),
		"-set=" + o.set, fmt.Sprintf("-mesh=%t", o.mesh), "-results=" + results, "-mesh-version=" + r.version(ctx), "-addresses=" + addresses,
		fmt.Sprintf("-timeout-config-overrides=RequiredConsecutiveSuccesses:%d;MaxTimeToConsistency:%d", o.successes, int(o.consistency.Seconds())),
		fmt.Sprintf("-cleanup-base-resources=%t", !o.keep),
	}
	if o.run != "" {
		args = append(args, "-run-test="+o.run)
	}
	if o.report != "" {
		args = append(args, "-report-output="+filepath.Join(r.source, o.report))
	}
	cmd := r.stage.Cluster.Command(ctx, args...)
	cmd.Stdout = log
	failed := r.follow(cmd, log)
	if failed != nil {
		failed = fmt.Errorf("the suite failed: %w", failed)
	}
	if err := log.Close(); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(results)
	if err != nil {
		return nil, errors.Join(failed, err)
	}
	verdicts := map[string]string{}
	return verdicts, errors.Join(failed, json.Unmarshal(b, &verdicts))
}

// follow runs cmd and shows the verdicts that it prints among other things.
func (r *runner) follow(cmd *exec.Cmd, log io.Writer) error {
	pipe, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(pipe)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		if verdict, ok := strings.CutPrefix(lines.Text(), "RESULT "); ok {
			r.progress.Note("%s", verdict)
		}
		fmt.Fprintln(log, lines.Text())
	}
	return errors.Join(lines.Err(), cmd.Wait())
}

// version names what is tested.
func (r *runner) version(ctx context.Context) string {
	cmd := exec.CommandContext(ctx, "git", "describe", "--tags", "--always")
	cmd.Dir = r.source
	out, err := cmd.Output()
	if err != nil {
		return "unreleased"
	}
	return strings.TrimSpace(string(out))
}
