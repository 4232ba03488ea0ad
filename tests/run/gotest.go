package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const module = "github.com/ambit-mesh/ambit"

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

// unit runs all packages that have no stage of their own.
func unit(ctx context.Context, r *runner, res *result) error {
	out, err := start(ctx, "go", "list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}", "./...").Output()
	if err != nil {
		return fmt.Errorf("list packages: %w", err)
	}
	packages := slices.DeleteFunc(strings.Fields(string(out)), func(path string) bool {
		local := strings.TrimPrefix(path, module+"/")
		return slices.ContainsFunc(separate, func(s string) bool { return local == s || strings.HasPrefix(local, s+"/") })
	})
	return goTest(goTests{timeout: unitTimeout, race: true}, packages...)(ctx, r, res)
}

// goTests is how a stage's tests are run.
type goTests struct {
	// timeout is for each package.
	timeout time.Duration
	race    bool
	// alone runs one package after the other: they share the cluster.
	alone bool
}

// goTest returns a stage that runs the tests of packages and counts them.
func goTest(how goTests, packages ...string) func(context.Context, *runner, *result) error {
	return func(ctx context.Context, r *runner, res *result) error {
		parallel := parallelPackages
		if how.alone {
			parallel = "1"
		}
		args := []string{"test", "-json", "-count=1", "-p", parallel, "-timeout", how.timeout.String()}
		if how.race {
			args = append(args, "-race")
		}
		cmd := start(ctx, "go", append(args, packages...)...)
		cmd.Stderr = r.out
		out, err := cmd.StdoutPipe()
		if err != nil {
			return fmt.Errorf("run go test: %w", err)
		}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("run go test: %w", err)
		}
		failures := r.read(out, res)
		if err := cmd.Wait(); err != nil {
			return errors.Join(fmt.Errorf("go test: %w", err), failures)
		}
		if res.tests == 0 {
			return errors.New("no test ran")
		}
		return failures
	}
}

// read follows the events of a test run, prints a line for each package, and the output of what failed.
func (r *runner) read(out io.Reader, res *result) error {
	output := map[string]*strings.Builder{}
	var failures error
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20) // a test may print a long line
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintln(r.out, lines.Text())
			continue
		}
		name := strings.TrimPrefix(e.Package, module+"/")
		key := e.Package + "." + e.Test
		switch e.Action {
		case "output", "build-output":
			if e.Action == "build-output" {
				fmt.Fprint(r.out, e.Output)
			}
			if output[key] == nil {
				output[key] = &strings.Builder{}
			}
			output[key].WriteString(e.Output)
		case "pass", "fail", "skip":
			if e.Test == "" {
				r.packageDone(e, name, output[key], res)
				if e.Action == "fail" {
					failures = errors.Join(failures, fmt.Errorf("package %s", name))
				}
				break
			}
			res.tests++
			text := text(output[key])
			switch e.Action {
			case "skip":
				res.skipped = append(res.skipped, name+" "+e.Test+": "+reason(text))
			case "fail":
				fmt.Fprintf(r.out, "--- %s %s\n%s", name, e.Test, text)
			}
			delete(output, key)
		}
	}
	return errors.Join(failures, lines.Err())
}

func (r *runner) packageDone(e event, name string, output *strings.Builder, res *result) {
	if e.Action == "skip" { // a package without tests
		return
	}
	res.packages++
	r.say("%-5s %s (%.1f s)", e.Action, name, e.Elapsed)
	if e.Action == "fail" {
		fmt.Fprint(r.out, text(output))
	}
}

func text(b *strings.Builder) string {
	if b == nil {
		return ""
	}
	return b.String()
}

// reason is the last line that a skipped test said of itself.
func reason(output string) string {
	for _, line := range slices.Backward(strings.Split(output, "\n")) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "---") && !strings.HasPrefix(line, "===") {
			return line
		}
	}
	return "no reason given"
}

var fuzzTarget = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)

// fuzz runs every fuzz target of the repository for a while.
func (r *runner) fuzz(ctx context.Context, each time.Duration) error {
	var failures error
	err := filepath.WalkDir(".", func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, match := range fuzzTarget.FindAllSubmatch(source, -1) {
			target := string(match[1])
			r.say("== %s in %s", target, filepath.Dir(path))
			run := command("go", "test", "-run", "^$", "-fuzz", "^"+target+"$", "-fuzztime", each.String(), "./"+filepath.Dir(path))
			if err := run(ctx, r, nil); err != nil {
				failures = errors.Join(failures, fmt.Errorf("%s: %w", target, err))
			}
		}
		return ctx.Err()
	})
	return errors.Join(failures, err)
}
