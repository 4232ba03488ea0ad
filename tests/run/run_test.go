package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRead(t *testing.T) {
	const events = `{"Action":"output","Package":"github.com/ambit-mesh/ambit/a","Test":"TestOK","Output":"hidden\n"}
{"Action":"pass","Package":"github.com/ambit-mesh/ambit/a","Test":"TestOK"}
{"Action":"output","Package":"github.com/ambit-mesh/ambit/a","Test":"TestOld","Output":"    a_test.go:3: kernel too old\n"}
{"Action":"output","Package":"github.com/ambit-mesh/ambit/a","Test":"TestOld","Output":"--- SKIP: TestOld (0.00s)\n"}
{"Action":"skip","Package":"github.com/ambit-mesh/ambit/a","Test":"TestOld"}
{"Action":"pass","Package":"github.com/ambit-mesh/ambit/a","Elapsed":1.5}
{"Action":"output","Package":"github.com/ambit-mesh/ambit/b","Test":"TestBad","Output":"got 1, want 2\n"}
{"Action":"fail","Package":"github.com/ambit-mesh/ambit/b","Test":"TestBad"}
{"Action":"fail","Package":"github.com/ambit-mesh/ambit/b","Elapsed":0.1}
{"Action":"skip","Package":"github.com/ambit-mesh/ambit/c"}
`
	var out bytes.Buffer
	r := &runner{out: &out, start: time.Now()}
	res := &result{}
	err := r.read(strings.NewReader(events), res)
	if err == nil || !strings.Contains(err.Error(), "package b") {
		t.Errorf("got error %v, want one that names package b", err)
	}
	if res.packages != 2 || res.tests != 3 {
		t.Errorf("got %d packages, %d tests, want 2 and 3", res.packages, res.tests)
	}
	if diff := cmp.Diff([]string{"a TestOld: a_test.go:3: kernel too old"}, res.skipped); diff != "" {
		t.Errorf("skipped (-want +got):\n%s", diff)
	}
	if s := out.String(); !strings.Contains(s, "got 1, want 2") || strings.Contains(s, "hidden") {
		t.Errorf("output shows too little or too much:\n%s", s)
	}
}

// TestRunStops: a failing stage ends the run, and a skipped test fails its stage unless skips are allowed.
func TestRunStops(t *testing.T) {
	pass := stage{name: "pass", run: func(context.Context, *runner, *result) error { return nil }}
	fail := stage{name: "fail", run: func(context.Context, *runner, *result) error { return errors.New("broken") }}
	skip := stage{name: "skip", run: func(_ context.Context, _ *runner, r *result) error {
		r.skipped = []string{"p T: why"}
		return nil
	}}
	for _, tc := range []struct {
		name       string
		stages     []stage
		allowSkips bool
		want       string // in the error; "" for none
		ran        string
	}{
		{"all pass", []stage{pass, pass}, false, "", "2 of 2 stages"},
		{"stops", []stage{pass, fail, pass}, false, "stage fail failed: broken", "2 of 3 stages"},
		{"skip fails", []stage{skip, pass}, false, "1 tests were skipped", "1 of 2 stages"},
		{"skip allowed", []stage{skip, pass}, true, "", "skipped: p T: why"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			r := &runner{out: &out, start: time.Now(), allowSkips: tc.allowSkips}
			err := r.run(t.Context(), tc.stages)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want %q", err, tc.want)
			}
			if !strings.Contains(out.String(), tc.ran) {
				t.Errorf("output lacks %q:\n%s", tc.ran, out.String())
			}
		})
	}
}

func TestChoose(t *testing.T) {
	fast, err := choose("", true)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range fast {
		if s.cluster {
			t.Errorf("-fast runs %s, which needs a cluster", s.name)
		}
	}
	two, err := choose("vet,gofmt", false)
	if err != nil || len(two) != 2 || two[0].name != "gofmt" {
		t.Errorf("got %v, %v, want gofmt, vet", two, err)
	}
	if _, err := choose("vet,lint", false); err == nil || !strings.Contains(err.Error(), "lint") {
		t.Errorf("got error %v, want one that names lint", err)
	}
}
