package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseHierarchies(t *testing.T) {
	got := parseHierarchies("9:name=systemd:/\n4:memory:/a/b:c\n0::/x\nnonsense\n")
	want := []hierarchy{{"name=systemd", "/"}, {"memory", "/a/b:c"}, {"", "/x"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(hierarchy{})); diff != "" {
		t.Error(diff)
	}
}

func TestMountPoints(t *testing.T) {
	text := `42 27 0:4 net:[1] /run/netns/a rw - nsfs nsfs rw
27 1 0:1 / /runner rw - ext4 x rw
28 1 0:1 / /run rw - tmpfs x rw
29 28 0:1 / /run/my\040disk rw - tmpfs x rw
short
`
	got := mountPoints(text, []string{"/run"})
	if diff := cmp.Diff([]string{"/run/netns/a", "/run", "/run/my disk"}, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzMountPoints(f *testing.F) {
	f.Add("29 28 0:1 / /run/my\\040disk rw - tmpfs x rw\n")
	f.Fuzz(func(_ *testing.T, text string) {
		mountPoints(text, []string{"/run"}) // must not panic
		parseHierarchies(text)
	})
}
