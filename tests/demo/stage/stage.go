// Package stage sets up what the demo shows and the end-to-end tests check: the
// test cluster, our images, the mesh, and the shop under live traffic. It then
// answers questions about them: pods, load reports, logs, metrics, bytes on a wire.
//
// tests/demo and tests/e2e call it, as root. It works through kubectl and the ambit
// tool as a person does, so that what it shows can be done by hand. It judges
// nothing: its callers do.
package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/tests/cluster"
	"github.com/ambit-mesh/ambit/tests/images"
)

const (
	// System is the mesh's namespace.
	System = "istio-system"
	// pollInterval is how often a condition is looked at; a look costs a kubectl run of about 0.1 s.
	pollInterval = 200 * time.Millisecond
	// rolloutTimeout bounds a rollout; a few seconds are usual.
	rolloutTimeout = 120 * time.Second
	// commandTimeout bounds any run of kubectl; a rollout is the longest.
	commandTimeout = rolloutTimeout + 10*time.Second
	// execTimeout bounds a program in a pod; what runs there takes at most 10 s.
	execTimeout = 30 * time.Second
)

// Stage is one cluster with what stands on it. Make it with New.
type Stage struct {
	Cluster  *cluster.Cluster
	Progress *cluster.Progress
	// Values are chart values ("key=value") besides the images.
	Values []string
	source string
	images images.Result
	ambit  string // path of the built tool
	// Only restricts which images are built; empty means all.
	Only []string
}

// New prepares the handle; nothing is started.
func New(source string, p *cluster.Progress) (*Stage, error) {
	c, err := cluster.New(cluster.Config{Source: source, Progress: p})
	if err != nil {
		return nil, err
	}
	return &Stage{Cluster: c, Progress: p, source: source}, nil
}

// SourceRoot finds the repository from the working directory.
func SourceRoot() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the repository's root: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Up starts the cluster while the images and the ambit tool are built, and puts the images on the nodes.
func (s *Stage) Up(ctx context.Context) error {
	built := make(chan error, 1)
	go func() { built <- s.Progress.Do("images and the ambit tool", func() error { return s.build(ctx) }) }()
	up := s.Cluster.Up(ctx)
	if err := <-built; err != nil {
		return err
	}
	if up != nil {
		return up
	}
	return s.Progress.Do("images on both nodes", func() error { return s.Cluster.LoadImages(ctx, s.images.Archives...) })
}

func (s *Stage) build(ctx context.Context) error {
	var err error
	if s.images, err = images.Build(ctx, images.Options{Source: s.source, Only: s.Only}); err != nil {
		return err
	}
	s.ambit = filepath.Join(s.source, "out", "bin", "ambit")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", s.ambit, "./cmd/ambit")
	cmd.Dir = s.source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the ambit tool: %w\n%s", err, out)
	}
	return nil
}

// InstallMesh runs ambit install with our images and waits until all parts are ready.
func (s *Stage) InstallMesh(ctx context.Context) error {
	args := append([]string{s.ambit}, s.InstallArguments()...)
	out, err := s.Cluster.Command(ctx, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ambit install: %w\n%s", err, out)
	}
	return nil
}

// InstallArguments are those of the ambit tool.
func (s *Stage) InstallArguments() []string {
	args := []string{"install", "--set", "global.hub=" + s.images.Hub, "--set", "global.tag=" + s.images.Tag}
	for _, v := range s.Values {
		args = append(args, "--set", v)
	}
	return args
}

// DeployShop applies the shop and waits until all of it is ready.
func (s *Stage) DeployShop(ctx context.Context) error {
	manifest, err := shopManifest(s.images.Hub, s.images.Tag)
	if err != nil {
		return err
	}
	if err := s.Apply(ctx, manifest); err != nil {
		return err
	}
	for _, ns := range []string{Namespace, Outside} {
		if err := s.WaitRollout(ctx, ns, "deployment", ""); err != nil {
			return err
		}
	}
	return nil
}

// Apply sends a manifest to the API server.
func (s *Stage) Apply(ctx context.Context, manifest string) error {
	_, err := s.kubectl(ctx, strings.NewReader(manifest), "apply", "-f", "-")
	return err
}

// Delete removes the objects of a manifest.
func (s *Stage) Delete(ctx context.Context, manifest string) error {
	_, err := s.kubectl(ctx, strings.NewReader(manifest), "delete", "--ignore-not-found", "-f", "-")
	return err
}

// Kubectl runs kubectl and returns what it printed.
func (s *Stage) Kubectl(ctx context.Context, args ...string) (string, error) {
	return s.kubectl(ctx, nil, args...)
}

func (s *Stage) kubectl(ctx context.Context, in io.Reader, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := s.Cluster.Kubectl(ctx, args...)
	cmd.Stdin, cmd.WaitDelay = in, time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// Get decodes objects as JSON.
func (s *Stage) Get(ctx context.Context, into any, args ...string) error {
	out, err := s.Kubectl(ctx, append([]string{"get", "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("decode kubectl get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// WaitRollout waits until workloads of a kind are as they should be; an empty name means all of the namespace.
func (s *Stage) WaitRollout(ctx context.Context, namespace, kind, name string) error {
	target := kind
	if name != "" {
		target += "/" + name
	}
	_, err := s.Kubectl(ctx, "-n", namespace, "rollout", "status", target, "--timeout="+rolloutTimeout.String())
	return err
}

// Label sets or, with a minus at its end, removes a namespace's label.
func (s *Stage) Label(ctx context.Context, namespace, label string) error {
	_, err := s.Kubectl(ctx, "label", "namespace", namespace, "--overwrite", label)
	return err
}

// Exec runs a program in a pod's first container.
func (s *Stage) Exec(ctx context.Context, namespace, pod string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	return s.Kubectl(ctx, append([]string{"-n", namespace, "exec", pod, "--"}, argv...)...)
}

// Poll calls f until it returns nil or the time is over, and then returns what f said last.
func Poll(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err // not what the end of the time made of it
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", limit, last)
		case <-time.After(pollInterval):
		}
	}
}
