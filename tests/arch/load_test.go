package arch

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// module is the path that all our packages begin with.
const module = "github.com/ambit-mesh/ambit"

// pkg is what the go command says of a package.
type pkg struct {
	ImportPath, Dir, Name              string
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports []string
	Deps                               []string
	Standard                           bool
}

// path is the package's path inside the module; "" is the root.
func (p pkg) path() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

// goList runs `go list -json` in the repository's root.
func goList(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Dir,Name,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports,Deps,Standard"}, args...)...)
	cmd.Dir = root
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// root is the repository's root, from here.
const root = "../.."

// loaded remembers the module, since every test looks at all of it.
var loaded struct {
	sync.Once
	packages []pkg
	files    []file
}

// ours returns all packages of the module.
func ours(t *testing.T) []pkg {
	t.Helper()
	load(t)
	return loaded.packages
}

// files returns all parsed Go files of the module, tests among them.
func files(t *testing.T) []file {
	t.Helper()
	load(t)
	return loaded.files
}

func load(t *testing.T) {
	t.Helper()
	loaded.Do(func() {
		all := goList(t, "./...")
		// Build output lies in ignored folders, which the go command does not know.
		loaded.packages = slices.DeleteFunc(all, func(p pkg) bool { return matchesAny([]string{"bin/...", "out/..."}, p.path()) })
		loaded.files = parse(t, loaded.packages)
	})
}

// file is one parsed Go file of ours.
type file struct {
	pkg       pkg
	name      string // from the repository's root
	test      bool
	generated bool
	fset      *token.FileSet
	ast       *ast.File
}

func (f file) line(p token.Pos) int { return f.fset.Position(p).Line }

func parse(t *testing.T, packages []pkg) []file {
	t.Helper()
	abs, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	var all []file
	for _, p := range packages {
		add := func(names []string, test bool) {
			for _, name := range names {
				full := filepath.Join(p.Dir, name)
				rel, err := filepath.Rel(abs, full)
				if err != nil {
					t.Fatal(err)
				}
				fset := token.NewFileSet()
				tree, err := parser.ParseFile(fset, full, nil, parser.ParseComments)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, file{pkg: p, name: rel, test: test, generated: ast.IsGenerated(tree), fset: fset, ast: tree})
			}
		}
		add(p.GoFiles, false)
		add(p.TestGoFiles, true)
		add(p.XTestGoFiles, true)
	}
	return all
}

// calls reports each call of an imported function, as "import/path.Name", with its line.
func (f file) calls(report func(callee string, line int)) {
	imports := map[string]string{}
	for _, spec := range f.ast.Imports {
		path := strings.Trim(spec.Path.Value, `"`)
		name := lastElement(path)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		imports[name] = path
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok {
			if path, imported := imports[x.Name]; imported {
				report(path+"."+sel.Sel.Name, f.line(call.Pos()))
			}
		}
		return true
	})
}

var majorVersion = regexp.MustCompile(`/v[0-9]+$`)

// lastElement guesses a package's name from its path.
func lastElement(path string) string {
	path = majorVersion.ReplaceAllString(path, "")
	return path[strings.LastIndex(path, "/")+1:]
}
