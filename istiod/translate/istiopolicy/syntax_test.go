package istiopolicy

import (
	"strings"
	"testing"
)

func TestCheckCEL(t *testing.T) {
	for _, good := range []string{
		`true`, `response.code >= 400`, `!has(request.useragent) || !(request.useragent.startsWith("Amazon-Route53"))`,
		`connection.mtls && request.url_path.contains('v1beta3')`, `request.headers['x-a'] in ["a", 'b',]`, `-1 + 2u * 0x1F % 3.5e-2`,
		`a ? b : c ? d : e`, `{"a": 1, 'b': [1, 2]}.a == 1`, `google.type.Expr{name: "x", other: 1,}`, `.absolute.name(1)`, `"""long " string""" == r'raw\'`,
		`b"bytes" + rb'x'`, `size([]) == 0 // comment`, "a\n&&\tb", `xs.all(x, x > 0)`, `!!-a`, `--1`, `1 - -1`, `.5 < 1.0`, `a.b[0]["c"].d()`, `'\u00e9\x41\101\?'`,
		`string(destination.port)`, `(((((a)))))`, `"é"`, `in_band`, `null`,
	} {
		if err := CheckCEL(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		``: "ends too early", `a &&`: "ends too early", `a b`: `unexpected "b" at byte 2`, `a &`: `unexpected "&" at byte 2`, `(a`: "ends too early", `a)`: `unexpected ")"`,
		`a = b`: `unexpected "="`, `"open`: "string without end at byte 0", `'a\qb'`: "bad escape", "'a\nb'": "line break", `1x`: "bad number", `a.1`: "unexpected",
		`a ? b`: "ends too early", `[1,,2]`: "unexpected", `f(a,)`: "unexpected", `{1}`: "unexpected", `if`: "unexpected", `in`: "unexpected", `a.b.`: "ends too early",
		`x{1: 2}`: "unexpected", `é`: `unexpected "é"`, `a # b`: `unexpected "#"`, `''''`: "string without end", `'\`: "bad escape", `f(`: "ends too early", `a |`: "unexpected",
		strings.Repeat("(", maxCELDepth+1): "nested deeper", strings.Repeat("a", maxCELBytes+1): "longer than", strings.Repeat("a[", 3000/2): "nested deeper",
	} {
		if err := CheckCEL(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", cut(bad), err, want)
		}
	}
}

func TestCheckFormat(t *testing.T) {
	for _, good := range []string{
		"", "text", "100%%", "%START_TIME%", "%START_TIME(%s.%3f)%", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):20%", "a%PROTOCOL%b%%c%DURATION%",
		"%DYNAMIC_METADATA(a:b:c):10%", "%CEL(request.headers['a'].size())%", "%FILTER_STATE(mesh.peer_principal:PLAIN)%",
	} {
		if err := checkFormat(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, at := range map[string]string{
		"%": "byte 0", "50%": "byte 2", "%REQ(": "byte 0", "%REQ(a)": "byte 0", "ab %lower%": "byte 3", "%REQ(a):%": "byte 0", "%REQ(a):x%": "byte 0", "%%%": "byte 2", "%A%B%": "byte 4", "%A b%": "byte 0",
	} {
		if err := checkFormat(bad); err == nil || !strings.Contains(err.Error(), at+";") {
			t.Errorf("%s: got %v, want %s", bad, err, at)
		}
	}
}

// What passes must have balanced brackets outside of strings: a sign that nothing was skipped.
func FuzzCheckCEL(f *testing.F) {
	for _, s := range []string{`a && b || c`, `{"a": [1, "x"]}.a(1)[0]`, `'''a''' + r"\"`, `1.5e3u ? .a : b{c: d}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckCEL(s) != nil || strings.ContainsAny(s, `"'/`) {
			return
		}
		for _, pair := range []string{"()", "[]", "{}"} {
			if strings.Count(s, pair[:1]) != strings.Count(s, pair[1:]) {
				t.Errorf("%q passes", s)
			}
		}
		if CheckCEL("("+s+"\n)") != nil && len(s) < maxCELBytes-4 && strings.Count(s, "(")+strings.Count(s, "[")+strings.Count(s, "{")+strings.Count(s, "?") < maxCELDepth/2 {
			t.Errorf("%q passes, but not in parentheses", s)
		}
	})
}

func FuzzCheckFormat(f *testing.F) {
	for _, s := range []string{"%REQ(a):3% %%", "%START_TIME(%s)%", "%%%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkFormat(s) == nil && checkFormat(s+"%PROTOCOL%") != nil {
			t.Errorf("%q passes, but not with a command behind it", s)
		}
	})
}
