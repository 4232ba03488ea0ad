package arch

import (
	"bytes"
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	// maxFileLines and maxFuncLines are where reading begins to need a map; nine of ten files and functions of the
	// code bases that we learnt from are shorter. Tests and generated code are not counted.
	maxFileLines = 500
	maxFuncLines = 60
	// maxMainLines keeps mains to parsing and wiring, so that what they do can be tested.
	maxMainLines = 60
	// minDocWords makes a package comment say more than the package's name.
	minDocWords = 12
)

func TestSizes(t *testing.T) {
	for _, f := range files(t) {
		if f.test || f.generated {
			continue
		}
		limit := maxFileLines
		if strings.HasPrefix(f.name, "cmd/") && f.pkg.Name == "main" {
			limit = maxMainLines
		}
		if lines := f.line(f.ast.FileEnd); lines > limit {
			t.Errorf("%s has %d lines, more than %d: split it by concept", f.name, lines, limit)
		}
		for _, decl := range f.ast.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok {
				if lines := f.line(fn.End()) - f.line(fn.Pos()) + 1; lines > maxFuncLines {
					t.Errorf("%s:%d: function %s has %d lines, more than %d", f.name, f.line(fn.Pos()), fn.Name.Name, lines, maxFuncLines)
				}
			}
		}
	}
}

// TestPackageDocs: every package says what it is, who calls it, what always holds and what it does not do. Only the
// first can be checked.
func TestPackageDocs(t *testing.T) {
	docs := map[string][]string{}
	onlyTests := map[string]bool{}
	for _, f := range files(t) {
		path := f.pkg.path()
		if _, seen := onlyTests[path]; !seen {
			onlyTests[path] = true
		}
		if f.test {
			continue
		}
		onlyTests[path] = false
		if f.ast.Doc != nil {
			docs[path] = append(docs[path], f.ast.Doc.Text())
		}
	}
	for path, onlyTest := range onlyTests {
		switch {
		case onlyTest: // a folder of tests speaks for itself
		case len(docs[path]) == 0:
			t.Errorf("package %s has no package comment", path)
		case len(docs[path]) > 1:
			t.Errorf("package %s has %d package comments, want one", path, len(docs[path]))
		case len(strings.Fields(docs[path][0])) < minDocWords:
			t.Errorf("package %s: the package comment says too little: %q", path, docs[path][0])
		}
	}
}

// TestTestsWaitForConditions: a test that sleeps is slow when it passes and flaky when it does not. In a synctest
// bubble time is virtual, and sleeping is how it advances.
func TestTestsWaitForConditions(t *testing.T) {
	for _, f := range files(t) {
		if !f.test || f.imports("testing/synctest") {
			continue
		}
		f.calls(func(callee string, line int) {
			if callee == "time.Sleep" {
				t.Errorf("%s:%d calls time.Sleep: wait for a condition with a deadline, or use testing/synctest", f.name, line)
			}
		})
	}
}

// TestAssertionLibraries: tests use the standard library and go-cmp.
func TestAssertionLibraries(t *testing.T) {
	for _, f := range files(t) {
		for _, path := range []string{"github.com/stretchr/testify/assert", "github.com/stretchr/testify/require", "github.com/onsi/gomega", "github.com/golang/mock/gomock"} {
			if f.imports(path) {
				t.Errorf("%s imports %s: use the standard library, go-cmp and fakes", f.name, path)
			}
		}
	}
}

func (f file) imports(path string) bool {
	return slices.ContainsFunc(f.ast.Imports, func(s *ast.ImportSpec) bool { return s.Path.Value == `"`+path+`"` })
}

// initAllowed names the packages whose init functions are known and why.
var initAllowed = map[string]string{}

func TestNoInit(t *testing.T) {
	for _, f := range files(t) {
		if f.generated || f.test {
			continue
		}
		for _, decl := range f.ast.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Name.Name == "init" && fn.Recv == nil && initAllowed[f.pkg.path()] == "" {
				t.Errorf("%s:%d: func init has effects on import: do it where it is wanted", f.name, f.line(fn.Pos()))
			}
		}
	}
}

// unfinished matches notes of work left undone. It is written so that it does not match itself.
var unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`)

func TestNothingLeftUndone(t *testing.T) {
	for _, f := range files(t) {
		if f.generated {
			continue
		}
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if m := unfinished.FindString(c.Text); m != "" {
					t.Errorf("%s:%d: %s in a comment: do it, or file an issue", f.name, f.line(c.Pos()), m)
				}
			}
		}
	}
}

// parsers are packages that read what others wrote, perhaps in bad faith. Each has a fuzz target.
var parsers = []string{
	"internal/hbone", "internal/identity", "internal/zds", "cni-plugin/plugin", "istiod/ca", "ztunnel/policy", "ztunnel/state",
	"waypoint/deploy", "istiod/status",
}

func TestParsersAreFuzzed(t *testing.T) {
	fuzzed := map[string]bool{}
	for _, f := range files(t) {
		for _, decl := range f.ast.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && f.test && strings.HasPrefix(fn.Name.Name, "Fuzz") {
				fuzzed[f.pkg.path()] = true
			}
		}
	}
	for _, path := range parsers {
		if !fuzzed[path] {
			t.Errorf("package %s reads what others wrote and has no fuzz target", path)
		}
	}
}

// TestGoMod: the module builds the same for everybody who depends on it.
func TestGoMod(t *testing.T) {
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range bytes.Split(mod, []byte("\n")) {
		fields := strings.Fields(string(line))
		if len(fields) > 0 && fields[0] == "replace" {
			t.Errorf("go.mod: %q: no replace, it does not reach those who depend on us", line)
		}
	}
	if !bytes.Contains(mod, []byte("module "+module+"\n")) {
		t.Errorf("go.mod does not name %s", module)
	}
}
