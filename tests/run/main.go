// Command run is what `make test` runs: every check of the repository, in stages
// that begin with the cheap ones, with a line of progress for each package and a
// table at the end. A stage that fails ends the run. A skipped test counts as a
// failure, because nobody reads about it otherwise; -fast, for a developer's
// machine, only reports it.
//
// It starts processes and reads their output; it knows nothing of what they test.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fast := flag.Bool("fast", false, "only the stages that need no cluster, and skipped tests are allowed")
	only := flag.String("stages", "", "run only these stages, separated by commas")
	list := flag.Bool("list", false, "list the stages")
	fuzz := flag.Duration("fuzz", 0, "run every fuzz target for this long, and nothing else")
	flag.Parse()

	r := &runner{out: os.Stdout, start: time.Now(), allowSkips: *fast}
	chosen, err := choose(*only, *fast)
	switch {
	case err != nil:
	case *list:
		err = listStages(os.Stdout)
	case *fuzz > 0:
		err = r.fuzz(ctx, *fuzz)
	default:
		err = r.run(ctx, chosen)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v\n", err)
		stop()
		os.Exit(1)
	}
}

// choose returns the stages to run, in their fixed order.
func choose(only string, fast bool) ([]stage, error) {
	if only == "" {
		return slices.DeleteFunc(stages(), func(s stage) bool { return fast && s.cluster }), nil
	}
	names := strings.Split(only, ",")
	var chosen []stage
	for _, s := range stages() {
		if i := slices.Index(names, s.name); i >= 0 {
			chosen = append(chosen, s)
			names = slices.Delete(names, i, i+1)
		}
	}
	if len(names) > 0 {
		return nil, fmt.Errorf("choose stages: unknown %s (hint: -list)", strings.Join(names, ", "))
	}
	return chosen, nil
}

func listStages(w io.Writer) error {
	for _, s := range stages() {
		if _, err := fmt.Fprintf(w, "%-12s %s\n", s.name, s.what); err != nil {
			return err
		}
	}
	return nil
}
