package debian

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOnlyMissingPackagesAreInstalled(t *testing.T) {
	have := map[string]bool{"/usr/bin/a": true}
	got := missing([]Requirement{{"a", "/usr/bin/a"}, {"b", "/usr/bin/b"}}, func(f string) bool { return have[f] })
	if diff := cmp.Diff([]string{"b"}, got); diff != "" {
		t.Error(diff)
	}
	if err := Install(t.Context(), []Requirement{{"this package", "/etc/passwd"}}); err != nil {
		t.Errorf("apt was asked although nothing is missing: %v", err)
	}
}

func TestErrorCarriesTheEndOfTheOutput(t *testing.T) {
	if got := string(last([]byte("1\n2\n3\n"), 2)); got != "2\n3" {
		t.Errorf("got %q", got)
	}
}
