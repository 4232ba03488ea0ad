package arch

import (
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestMetricsAreDocumented: every metric has a line in docs/metrics.md.
func TestMetricsAreDocumented(t *testing.T) {
	doc := read(t, "docs/metrics.md")
	for _, f := range files(t) {
		if f.test || strings.HasPrefix(f.name, "tests/") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			name, pos := metricName(n)
			if name != "" && !strings.Contains(doc, "`"+name) {
				t.Errorf("%s:%d: metric %s has no line in docs/metrics.md", f.name, f.line(pos), name)
			}
			return true
		})
	}
}

// metricName recognises a constant Metric… and the Name of prometheus options.
func metricName(n ast.Node) (string, token.Pos) {
	var value ast.Expr
	switch n := n.(type) {
	case *ast.ValueSpec:
		if len(n.Values) == 1 && strings.HasPrefix(n.Names[0].Name, "Metric") {
			value = n.Values[0]
		}
	case *ast.CompositeLit:
		if sel, ok := n.Type.(*ast.SelectorExpr); !ok || !strings.HasSuffix(sel.Sel.Name, "Opts") {
			break
		}
		for _, e := range n.Elts {
			if kv, ok := e.(*ast.KeyValueExpr); ok {
				if key, ok := kv.Key.(*ast.Ident); ok && key.Name == "Name" {
					value = kv.Value
				}
			}
		}
	}
	if lit, ok := value.(*ast.BasicLit); ok && lit.Kind == token.STRING {
		if s, err := strconv.Unquote(lit.Value); err == nil {
			return s, lit.Pos()
		}
	}
	return "", token.NoPos
}

var markdownLink = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

// TestLinksLead: links between our documents lead somewhere.
func TestLinksLead(t *testing.T) {
	var docs []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, found...)
	}
	for _, doc := range docs {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range markdownLink.FindAllSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), string(m[1]))); err != nil {
				t.Errorf("%s links to %s, which is not there", strings.TrimPrefix(doc, root+"/"), m[1])
			}
		}
	}
}

// TestPortsAreListed: every port of api/ports is in the port table and in the threat model.
func TestPortsAreListed(t *testing.T) {
	number := regexp.MustCompile(`(?m)^\t\w+ += (\d{4,5})$`)
	for _, m := range number.FindAllStringSubmatch(read(t, "api/ports/ports.go"), -1) {
		for _, doc := range []string{"ARCHITECTURE.md", "docs/threat-model.md"} {
			if !strings.Contains(read(t, doc), m[1]) {
				t.Errorf("%s says nothing about port %s of api/ports", doc, m[1])
			}
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestChartsSetWhatIsRead: a variable that a chart sets and its part does not read would be a setting without effect.
func TestChartsSetWhatIsRead(t *testing.T) {
	set := regexp.MustCompile(`(?m)^ +- name: ([A-Z][A-Z0-9_]+)$`)
	for chart, parts := range map[string][]string{
		"istiod":  {"istiod/...", "internal/telemetry"},
		"ztunnel": {"ztunnel/...", "internal/telemetry"},
		"cni":     {"cni-plugin/...", "internal/telemetry", "cmd/node-agent"},
	} {
		literals := map[string]bool{}
		for _, f := range files(t) {
			if f.test || !matchesAny(parts, f.pkg.path()) {
				continue
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					literals[strings.Trim(lit.Value, "\"`")] = true
				}
				return true
			})
		}
		for _, m := range set.FindAllStringSubmatch(read(t, "charts/testdata/"+chart+"-default.golden.yaml"), -1) {
			if !literals[m[1]] {
				t.Errorf("chart %s sets %s, which nothing in %s reads", chart, m[1], strings.Join(parts, ", "))
			}
		}
	}
}
