package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/tests/debian"
)

// stage is one step of a run.
type stage struct {
	name, what string
	// root says that it makes network namespaces, mounts or cgroups.
	root bool
	// cluster says that it starts the two-node Kubernetes.
	cluster bool
	run     func(context.Context, *runner, *result) error
}

// Time after which a stage's package or command counts as hung. Warm, the whole run takes less than 15 minutes.
const (
	unitTimeout    = 8 * time.Minute
	interopTimeout = 8 * time.Minute
	e2eTimeout     = 40 * time.Minute // 8 warm; on a fresh machine Kubernetes and the images are built first
	// stopGrace lets a command that was interrupted remove its namespaces and processes.
	stopGrace = time.Minute
)

// parallelPackages suits two cores: the tests of more packages at once disturb each other's deadlines.
const parallelPackages = "2"

// Folders of tests that have a stage of their own, or none: benchmarks and the command that runs this.
var separate = []string{"tests/arch", "tests/interop", "tests/e2e", "tests/bench"}

// stages returns all stages, the cheap ones first.
func stages() []stage {
	return []stage{
		{name: "gofmt", what: "every Go file is formatted", run: gofmt},
		{name: "build", what: "go build ./...", run: command("go", "build", "./...")},
		{name: "vet", what: "go vet ./...", run: command("go", "vet", "./...")},
		{name: "arch", what: "import directions, sizes, documentation, dependency lists", run: goTest(goTests{timeout: 2 * time.Minute}, "./tests/arch")},
		{name: "staticcheck", what: "staticcheck ./...", run: command("go", "tool", "staticcheck", "./...")},
		{name: "unit", what: "all packages with the race detector, in network namespaces where they need one", root: true, run: unit},
		{name: "interop", what: "internal/hbone against Envoy and x/net's HTTP/2", root: true,
			run: goTest(goTests{timeout: interopTimeout, race: true}, "./tests/interop/...")},
		{name: "e2e", what: "the demo and the other end-to-end tests, on a two-node Kubernetes", root: true, cluster: true,
			run: goTest(goTests{timeout: e2eTimeout, alone: true}, "./tests/e2e/...")},
	}
}

// runner runs stages one after the other.
type runner struct {
	out        io.Writer
	start      time.Time
	allowSkips bool
}

// result is what is known of a stage after it ran.
type result struct {
	stage    stage
	took     time.Duration
	packages int
	tests    int
	skipped  []string
	err      error
}

func (r *runner) say(format string, args ...any) {
	fmt.Fprintf(r.out, "[%6.1fs] %s\n", time.Since(r.start).Seconds(), fmt.Sprintf(format, args...))
}

func (r *runner) run(ctx context.Context, chosen []stage) error {
	for _, s := range chosen {
		if s.root && os.Geteuid() != 0 {
			return fmt.Errorf("stage %q makes network namespaces and needs root (hint: sudo make test, or make lint)", s.name)
		}
	}
	if slices.ContainsFunc(chosen, func(s stage) bool { return s.root }) {
		if err := debian.Install(ctx, debian.Tests); err != nil {
			return err
		}
	}
	var results []*result
	var failed error
	for _, s := range chosen {
		r.say("== %s: %s", s.name, s.what)
		began := time.Now()
		res := &result{stage: s}
		res.err = s.run(ctx, r, res)
		if res.err == nil && len(res.skipped) > 0 && !r.allowSkips {
			res.err = fmt.Errorf("%d tests were skipped", len(res.skipped))
		}
		res.took = time.Since(began)
		results = append(results, res)
		if res.err != nil {
			failed = fmt.Errorf("stage %s failed: %w", s.name, res.err)
			break
		}
	}
	r.summary(results, len(chosen))
	return failed
}

func (r *runner) summary(results []*result, wanted int) {
	fmt.Fprintf(r.out, "\n%-12s %-6s %8s %9s %7s %8s\n", "stage", "result", "seconds", "packages", "tests", "skipped")
	for _, res := range results {
		verdict := "ok"
		if res.err != nil {
			verdict = "FAIL"
		}
		fmt.Fprintf(r.out, "%-12s %-6s %8.1f %9d %7d %8d\n", res.stage.name, verdict, res.took.Seconds(), res.packages, res.tests, len(res.skipped))
	}
	for _, res := range results {
		for _, skip := range res.skipped {
			fmt.Fprintf(r.out, "skipped: %s\n", skip)
		}
	}
	fmt.Fprintf(r.out, "%d of %d stages ran, %.1f s\n", len(results), wanted, time.Since(r.start).Seconds())
}

// command returns a stage that passes the output of one command through.
func command(name string, args ...string) func(context.Context, *runner, *result) error {
	return func(ctx context.Context, r *runner, _ *result) error {
		cmd := start(ctx, name, args...)
		cmd.Stdout, cmd.Stderr = r.out, r.out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
		}
		return nil
	}
}

// start prepares a command that is interrupted when ctx ends, and killed if that does not stop it. It is a process
// group of its own, so that the interrupt also reaches what `go run` and `go test` start.
func start(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = stopGrace
	return cmd
}

// gofmt lists files that are not formatted.
func gofmt(ctx context.Context, r *runner, _ *result) error {
	tracked, err := start(ctx, "git", "ls-files", "--cached", "--others", "--exclude-standard", "*.go").Output()
	if err != nil {
		return fmt.Errorf("list Go files: %w", err)
	}
	names := strings.Fields(string(tracked))
	unformatted, err := start(ctx, "gofmt", append([]string{"-l"}, names...)...).Output()
	if err != nil {
		return fmt.Errorf("run gofmt: %w", err)
	}
	if len(unformatted) > 0 {
		return fmt.Errorf("not formatted (hint: gofmt -w):\n%s", unformatted)
	}
	r.say("%d files", len(names))
	return nil
}
